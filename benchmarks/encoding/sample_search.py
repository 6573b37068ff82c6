"""How well the sample collection answers the questions of a newcomer.

python -m benchmarks.encoding.sample_search [--model nano] [--misses]

The queries say what somebody wants to do, in everyday words, and were written before any result was seen. Each names
the documents that answer it; the best placed of them counts. MRR@10 is the mean of 1 / place, 0 from the eleventh on;
hit@1 is the share of queries with an answer in the first place. With 70 queries a difference in MRR@10 below 0.05 or so
is chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from embedserve import Encoder
from indexing import Document
from indexing.base import TextEncoder
from indexing.sources.python_docs import python_documents

QUERIES = {
    # text and data formats
    "read a json file": "json.load",
    "parse a json string": "json.loads",
    "turn a dict into json text": "json.dumps",
    "read rows of a csv file": "csv.reader",
    "read a toml configuration file": "tomllib.load",
    "replace all matches of a regular expression": "re.sub",
    "split a string at commas": "str.split",
    "remove whitespace at both ends of a string": "str.strip",
    "does a string begin with some prefix": "str.startswith",
    "break long text into lines of limited width": "textwrap.wrap textwrap.fill",
    "find words that are spelled almost the same": "difflib.get_close_matches",
    "encode bytes as base64": "base64.b64encode",
    "print a nested data structure nicely": "pprint.pprint pprint.pp",
    # collections and iteration
    "most common elements of a list": "collections.Counter",
    "dictionary with a default value for missing keys": "collections.defaultdict",
    "double ended queue": "collections.deque",
    "sort a list": "sorted list.sort",
    "loop over a list with an index": "enumerate",
    "loop over two lists at the same time": "zip",
    "all orderings of the elements": "itertools.permutations",
    "join several iterables one after another": "itertools.chain",
    "insert into a sorted list and keep it sorted": "bisect.insort bisect.insort_right bisect.insort_left",
    "the n largest items": "heapq.nlargest",
    "shuffle a list": "random.shuffle",
    "pick a random element": "random.choice",
    "cache the results of a function": "functools.lru_cache functools.cache",
    "fix some arguments of a function": "functools.partial",
    # files, system, time, network
    "list the files in a directory": "os.listdir os.scandir pathlib.Path.iterdir",
    "delete a directory with everything in it": "shutil.rmtree",
    "copy a folder": "shutil.copytree",
    "create a directory and its parents": "os.makedirs pathlib.Path.mkdir",
    "does a file exist": "os.path.exists pathlib.Path.exists",
    "find files that match a wildcard pattern": "glob.glob glob.iglob pathlib.Path.glob pathlib.Path.rglob",
    "make a temporary file": "tempfile.NamedTemporaryFile tempfile.TemporaryFile tempfile.mkstemp",
    "run a shell command and get its output": "subprocess.run subprocess.check_output subprocess.getoutput",
    "turn a date into text": "datetime.date.strftime time.strftime",
    "pause for some seconds": "time.sleep asyncio.sleep",
    "download a web page": "urllib.request.urlopen urllib.request.urlretrieve",
    "open a page in the web browser": "webbrowser.open",
    "run coroutines at the same time and collect their results": "asyncio.gather",
    "average of a list of numbers": "statistics.mean statistics.fmean",
    "greatest common divisor": "math.gcd",
    "hash a password": "hashlib.pbkdf2_hmac",
    "parse command line arguments": "argparse.ArgumentParser",
    "deep copy of an object": "copy.deepcopy",
    "how long does a small piece of code take": "timeit.timeit timeit.Timer",
    # numpy
    "join arrays along a new axis": "numpy.stack torch.stack",
    "array of evenly spaced numbers": "numpy.linspace numpy.arange torch.linspace",
    "index of the largest element": "numpy.argmax torch.argmax",
    "matrix filled with zeros": "numpy.zeros torch.zeros",
    "solve a system of linear equations": "numpy.linalg.solve torch.linalg.solve",
    "inverse of a matrix": "numpy.linalg.inv torch.linalg.inv",
    "unique values of an array": "numpy.unique",
    "limit values to a range": "numpy.clip torch.clamp torch.clip",
    "repeat an array several times": "numpy.tile numpy.repeat torch.tile torch.repeat_interleave",
    "save several arrays in one file": "numpy.savez numpy.savez_compressed",
    "fit a polynomial to points": "numpy.polyfit numpy.polynomial.polynomial.polyfit",
    # torch, pydantic, fastapi
    "fully connected layer": "torch.nn.Linear",
    "randomly zero some elements during training": "torch.nn.Dropout torch.nn.functional.dropout",
    "loss for classification": "torch.nn.CrossEntropyLoss torch.nn.functional.cross_entropy torch.nn.NLLLoss",
    "lookup table of word vectors": "torch.nn.Embedding torch.nn.functional.embedding",
    "compute without tracking gradients": "torch.no_grad torch.inference_mode",
    "gradient of a function": "torch.autograd.grad torch.func.grad torch.gradient",
    "scale gradients down to a maximum norm": "torch.nn.utils.clip_grad_norm_",
    "load training samples in shuffled batches": "torch.utils.data.DataLoader",
    "is a gpu available": "torch.cuda.is_available",
    "base class for data models with validation": "pydantic.BaseModel",
    "check that a text is an email address": "pydantic.EmailStr pydantic.validate_email",
    "upload a file in a web api": "fastapi.UploadFile",
    "return an error status to the client": "fastapi.HTTPException",
}  # query -> ids of the documents that answer it


def places(encoder: TextEncoder, documents: Sequence[Document], queries: Mapping[str, str] = QUERIES) -> dict[str, int]:
    """Return the place of each query's best answer among all documents, from 1; 0 where none of them is there."""
    rows = {document.id: row for row, document in enumerate(documents)}
    contents = [document.content for document in documents]
    scores = encoder.embed(list(queries), "query").vectors @ encoder.embed(contents, "document").vectors.T  # (Q, N)
    found = {}
    for (query, answers), row_scores in zip(queries.items(), scores, strict=True):
        best = max((row_scores[rows[answer]] for answer in answers.split() if answer in rows), default=None)
        found[query] = 0 if best is None else 1 + int(np.sum(row_scores > best))
    return found


def summary(found: Mapping[str, int], k: int = 10) -> dict[str, float]:
    """Return MRR@k, hit@1 and hit@k of the places of the answers."""
    ranks = np.array(list(found.values()))
    within = (ranks >= 1) & (ranks <= k)
    reciprocal = np.divide(1, ranks, out=np.zeros(len(ranks)), where=within)
    return {f"MRR@{k}": float(reciprocal.mean()), "hit@1": float(np.mean(ranks == 1)), f"hit@{k}": float(within.mean())}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding.sample_search", description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--misses", action="store_true", help="name the queries whose answer is not among the first 10")
    args = parser.parse_args()
    documents = list(python_documents())
    found = places(Encoder.load(args.model), documents)
    print(f"{args.model}: {len(found)} queries, {len(documents)} documents")
    print("   ".join(f"{name} {value:.3f}" for name, value in summary(found).items()))
    if args.misses:
        for query, place in sorted(found.items(), key=lambda item: item[1]):
            if not 1 <= place <= 10:
                print(f"{place:5d}  {query}  ({QUERIES[query]})")


if __name__ == "__main__":
    main()
