"""The sample source: docstrings of the Python packages that embedserve installs."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from indexing.sources.corpus import Document

MIN_DOC = 20  # minimum characters of a docstring
# Maximum characters of a description of several paragraphs. With the queries of benchmarks/encoding/sample_search.py,
# 200 and 300 were equally good, 400 and more were worse (all-MiniLM-L6-v2, and nano before its latest training).
MAX_DESCRIPTION = 200

STDLIB = """
    abc argparse array ast asyncio atexit base64 bdb binascii bisect builtins bz2 calendar cmath cmd code
    codecs codeop collections collections.abc colorsys compileall concurrent.futures configparser contextlib
    contextvars copy copyreg csv ctypes ctypes.util curses dataclasses datetime dbm decimal difflib dis doctest email
    email.header email.headerregistry email.message email.mime.multipart email.mime.text email.parser email.policy
    email.utils encodings enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc getopt
    getpass gettext glob graphlib grp gzip hashlib heapq hmac html html.entities html.parser http http.client
    http.cookiejar http.cookies http.server imaplib importlib importlib.abc importlib.machinery importlib.metadata
    importlib.resources importlib.util inspect io ipaddress itertools json json.decoder json.encoder keyword linecache
    locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes mmap modulefinder
    multiprocessing multiprocessing.connection multiprocessing.managers multiprocessing.pool
    multiprocessing.shared_memory netrc numbers operator optparse os os.path pathlib pdb pickle pickletools pkgutil
    platform plistlib poplib pprint profile pstats pty pwd py_compile pyclbr pydoc queue quopri random re
    reprlib resource runpy sched secrets select selectors shelve shlex shutil signal site smtplib socket
    socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys sysconfig syslog tabnanny
    tarfile tempfile termios textwrap threading time timeit token tokenize tomllib trace traceback tracemalloc tty
    types typing unicodedata unittest unittest.mock urllib.error urllib.parse urllib.request urllib.robotparser uuid
    venv warnings wave weakref webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util
    wsgiref.validate xml.dom xml.dom.minidom xml.dom.pulldom xml.etree.ElementTree xml.sax xml.sax.handler
    xml.sax.saxutils xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
"""
INSTALLED = """
    numpy numpy.char numpy.ctypeslib numpy.dtypes numpy.exceptions numpy.fft numpy.lib numpy.lib.array_utils
    numpy.lib.format numpy.lib.mixins numpy.lib.npyio numpy.lib.scimath numpy.lib.stride_tricks numpy.linalg numpy.ma
    numpy.polynomial numpy.polynomial.chebyshev numpy.polynomial.hermite numpy.polynomial.hermite_e
    numpy.polynomial.laguerre numpy.polynomial.legendre numpy.polynomial.polynomial numpy.polynomial.polyutils
    numpy.random numpy.rec numpy.strings numpy.testing numpy.typing
    torch torch.amp torch.autograd torch.autograd.forward_ad torch.autograd.functional torch.autograd.graph
    torch.autograd.profiler torch.backends.cuda torch.backends.cudnn torch.compiler torch.cpu torch.cuda
    torch.cuda.memory torch.distributions torch.distributions.constraints torch.distributions.kl
    torch.distributions.transforms torch.fft torch.func torch.futures torch.fx torch.hub torch.jit torch.library
    torch.linalg torch.masked torch.mps torch.multiprocessing torch.nested torch.nn torch.nn.attention
    torch.nn.functional torch.nn.init torch.nn.modules torch.nn.parallel torch.nn.utils torch.nn.utils.parametrizations
    torch.nn.utils.parametrize torch.nn.utils.prune torch.nn.utils.rnn torch.nn.utils.stateless torch.optim
    torch.optim.lr_scheduler torch.optim.swa_utils torch.overrides torch.profiler torch.quasirandom
    torch.random torch.serialization torch.sparse torch.special torch.testing torch.utils torch.utils.benchmark
    torch.utils.checkpoint torch.utils.data torch.utils.data.distributed torch.utils.dlpack torch.utils.hooks
    torch.utils.model_zoo
    fastapi fastapi.concurrency fastapi.encoders fastapi.exceptions fastapi.middleware.cors fastapi.params
    fastapi.responses fastapi.routing fastapi.security fastapi.utils
    pydantic pydantic.alias_generators pydantic.config pydantic.dataclasses pydantic.fields
    pydantic.functional_serializers pydantic.functional_validators pydantic.json_schema pydantic.networks
    pydantic.types
"""
TYPES = """
    builtins.bytes builtins.dict builtins.float builtins.int builtins.list builtins.set builtins.str builtins.tuple
    datetime.date datetime.datetime datetime.timedelta pathlib.Path re.Match re.Pattern numpy.ndarray
"""  # types whose methods are included
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
SIGNATURE = re.compile(
    r"""
    [\w.]+ (?P<parameters> \( (?: [^()] | \([^()]*\) )* \) )               # stack(tensors, dim=0, *, out=None)
    (?: [ ]* [-=]+> (?: [ ]* (?: \([^()]*\) | \S+ (?:[ ]\S+){,3} ) [ ]*$ )?   # -> Tensor; longer is description
      | [ ]* [-:] (?=\s)                                                    # name(): what it does
      | [ ]* $
    )
    (?: \n--$ )? \s*
    """,
    re.VERBOSE | re.MULTILINE,
)  # first line of docstrings of compiled functions
BLOCK = re.compile(
    r"""
    \A[ ]                                              # an indented paragraph: code, a formula, a list of parameters
    | ^[ ]* (?:
        \S.*\n[ ]* ([-=~*^])\1\1+ [ ]*$                # a heading over a line of dashes
      | [A-Z]\w* (?:[ ]\w+){,2} ::? [ ]*$              # Args:  Keyword args:  Example::
      | :\w[^:`\n]*: (?=\s|$)                          # :param x:  :returns:
      | \.\.[ ] | !!! | \#+[ ] | \*\*\w+\*\*$          # .. note::  !!! note  ## Example  **Example**
      | >>> | ```                                      # code
    )
    """,
    re.VERBOSE | re.MULTILINE,
)
ROLE = re.compile(r":[a-z][\w:]*:`~?([^`]*)`")  # :func:`torch.add`


def python_documents(modules: str = STDLIB + INSTALLED, types: str = TYPES) -> Iterator[Document]:
    """Yield one document per public function and class of ``modules`` and method of ``types``, sorted by name.

    An object with several names appears once, by its shortest name, such as ``numpy.stack``. The text is the
    `description` in its docstring. ``metadata`` has ``package``, ``module``, ``kind`` and ``signature``, which is empty
    if it is unknown.
    """
    with warnings.catch_warnings():  # left before the first yield, else it would also affect the caller
        warnings.simplefilter("ignore")
        entries = by_shortest_name(chain(module_members(modules.split()), type_members(types.split())))
        documents = [document for entry in entries if (document := document_of(entry)) is not None]
    yield from documents


def by_shortest_name(entries: Iterable[DocstringEntry]) -> list[DocstringEntry]:
    """Return each object once, by its shortest name, sorted by name."""
    shortest: dict[int, DocstringEntry] = {}
    for entry in entries:
        known = shortest.get(id(entry.value))
        if known is None or entry.rank < known.rank:
            shortest[id(entry.value)] = entry
    return sorted(shortest.values(), key=lambda entry: entry.name)


@dataclass(frozen=True)
class DocstringEntry:
    """A function, class or method, and one of its names."""

    module: str
    path: str
    value: Any

    @property
    def name(self) -> str:
        """Qualified name; builtins have no module."""
        return self.path if self.module == "builtins" else f"{self.module}.{self.path}"

    @property
    def rank(self) -> tuple[int, int, str]:
        """Sort key of the names of one object: fewest parts, then shortest, then alphabetical."""
        return self.name.count("."), len(self.name), self.name

    @property
    def kind(self) -> str:
        """``class``, ``method`` or ``function``."""
        if inspect.isclass(self.value):
            return "class"
        return "method" if "." in self.path else "function"


def module_members(names: Sequence[str]) -> Iterator[DocstringEntry]:
    """Yield the public functions and classes of modules."""
    modules = {}
    for module_name in names:  # all first: torch replaces functions of other modules
        with suppress(Exception):  # not available on this platform, or an optional dependency is missing
            modules[module_name] = importlib.import_module(module_name)
    for module_name, module in modules.items():
        listed = getattr(module, "__all__", None)
        for name in public_names(dir(module) if listed is None else listed):
            value = getattr(module, f"__{name}__", None)  # sys keeps originals of replaced functions there
            value = value if inspect.isroutine(value) else getattr(module, name, None)
            if is_described(value) and (listed is not None or is_defined_in(value, module_name)):
                yield DocstringEntry(module_name, name, value)


def type_members(names: Sequence[str]) -> Iterator[DocstringEntry]:
    """Yield the public methods of types, named ``module.Type``."""
    for path in names:
        module_name, _, type_name = path.rpartition(".")
        owner = getattr(importlib.import_module(module_name), type_name)
        for name in public_names(dir(owner)):
            value = getattr(owner, name, None)
            if inspect.isroutine(value):
                yield DocstringEntry(module_name, f"{type_name}.{name}", value)


def public_names(names: Iterable[Any]) -> list[str]:
    """Return the names without a leading underscore, sorted."""
    return sorted({name for name in names if isinstance(name, str) and not name.startswith("_")})


def is_described(value: Any) -> bool:
    """Return whether ``value`` is a function or class, including compiled ones and NumPy ufuncs."""
    return inspect.isclass(value) or inspect.isroutine(value) or type(value).__name__ == "ufunc"


def is_defined_in(value: Any, module_name: str) -> bool:
    """Return whether ``value`` is defined in the package of ``module_name``, not only imported there."""
    home = getattr(value, "__module__", None) or module_name
    return str(home).lstrip("_").split(".")[0] == module_name.split(".")[0]


def own_doc(value: Any) -> str:
    """Return the cleaned docstring of ``value`` itself; empty if it is inherited."""
    raw = value.__dict__.get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
    return inspect.cleandoc(raw) if isinstance(raw, str) else ""


def signature_of(entry: DocstringEntry) -> str:
    """Return ``name(parameters)`` without annotations, from the object or its docstring; empty if unknown."""
    try:
        full = inspect.signature(entry.value)
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in full.parameters.values()]
        text = str(full.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    except Exception:  # compiled functions have no signature and raise various errors
        written = SIGNATURE.match(own_doc(entry.value))
        text = " ".join(written["parameters"].split()) if written else ""
    return entry.name + ADDRESS.sub("", text) if text else ""


def description(doc: str) -> str:
    """Return the description in a docstring: the prose before the first section, code or other block.

    The first paragraph is kept whole, and further ones up to ``MAX_DESCRIPTION`` characters in all: later text is about
    parameters and special cases and would blur the vector. Signatures and blocks before the prose are skipped. A
    docstring without prose is returned unchanged.
    """
    prose = doc
    while signature := SIGNATURE.match(prose):
        prose = prose[signature.end() :]
    prefix = ""
    for paragraph in re.split(r"\n\s*\n", prose):
        block = BLOCK.search(paragraph)
        longer = f"{prefix}\n\n{paragraph[: block.start()] if block else paragraph}".strip()
        if prefix and len(longer) > MAX_DESCRIPTION:
            break
        prefix = longer
        if prefix and block:
            break
    return ROLE.sub(r"\1", prefix or doc)


def document_of(entry: DocstringEntry) -> Document | None:
    """Return the document of an object; None if its docstring is too short."""
    doc = own_doc(entry.value)
    if len(doc) < MIN_DOC:
        return None
    package = entry.module.partition(".")[0]
    metadata = {"package": package, "module": entry.module, "kind": entry.kind, "signature": signature_of(entry)}
    return Document(id=entry.name, title=entry.name, text=description(doc), metadata=metadata)
