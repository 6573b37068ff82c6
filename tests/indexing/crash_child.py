"""Build a collection of 300 documents, telling at every step where it is; killed by the test that started it.

Arguments: the directory, where to wait for ever (or "nowhere"), the largest file that may be written (or 0), how many
seconds to rest at every step.
"""

import resource
import sys
import time
from pathlib import Path

from embedserve.errors import EmbedserveError
from indexing import build_collection
from indexing.collections import publication as publishing
from indexing.segments import segment as segments
from indexing.storage import files
from tests.indexing.bag import BagEncoder, make_documents

directory, stop, limit, rest = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])


def tell(step):
    print(step, flush=True)  # noqa: T201
    time.sleep(60 if step == stop else rest)


def stepping(module, name, step, when=lambda args: True):
    """Tell before and after every call of a function, of those whose arguments matter."""
    function = getattr(module, name)

    def told(*args, **kwargs):
        if not when(args):
            return function(*args, **kwargs)
        tell(f"before-{step}")
        result = function(*args, **kwargs)
        tell(f"after-{step}")
        return result

    setattr(module, name, told)


stepping(publishing, "write_manifest", "publish")
stepping(segments.SegmentWriter, "seal", "sync")
stepping(files.os, "replace", "replace", lambda args: Path(args[1]).name == "manifest.json")
tell("start")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    build_collection(
        make_documents(300, "new"), BagEncoder(), directory, index="hnsw", batch_size=30,
        progress=lambda progress: tell(f"{progress.stage}-{progress.done}"),
    )  # fmt: skip
except EmbedserveError as error:
    print(error.message, flush=True)  # noqa: T201
    raise SystemExit(3) from None
tell("end")
