"""What processes of a job run: encoders that any process can make, and a job that the test which started it kills.

Arguments: source, data folder, seconds to rest at each block.
"""

import os
import sys
import time
from pathlib import Path

from embedserve.errors import LoadError
from indexing.collections.catalog import collection_path
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.sources.corpus import read_all
from tests.indexing.bag import BagEncoder


def load_bag(device):
    return BagEncoder()


class SlowBag(BagEncoder):
    def __init__(self, rest):
        super().__init__()
        self.rest = rest

    def embed(self, texts, task="document", **options):
        time.sleep(self.rest)
        return super().embed(texts, task)


def load_slow_bag(device):
    return SlowBag(0.3)


class DyingBag(BagEncoder):
    """Ends its process at the first text with a word of its own."""

    def embed(self, texts, task="document", **options):
        if any("number77" in text for text in texts):
            os._exit(1)
        return super().embed(texts, task)


def load_nothing(device):
    raise LoadError(f"no model for device {device}")


def load_dying_bag(device):
    return DyingBag()


def main(source, data, rest):
    place = collection_path(data, "docs"), job_path(data, "docs")
    run_job(
        read_all(source), SlowBag(rest), *place, JobOptions(shard_size=50),
        progress=lambda progress: print(progress.stage, progress.done, flush=True),  # noqa: T201
    )  # fmt: skip
    print("end", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
