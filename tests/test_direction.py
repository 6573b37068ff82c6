"""Which package may import which; read from the code, so that a wrong arrow fails here."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("embedserve", "indexing", "api", "benchmarks", "tests")
ALLOWED = {
    "embedserve": {"embedserve"},
    "indexing": {"indexing", "embedserve"},
    "api": {"api", "indexing", "embedserve"},
    "benchmarks": {"benchmarks", "indexing", "embedserve", "api"},
}
FORBIDDEN = {
    "embedserve": {"faiss", "fastapi", "uvicorn", "mteb"},
    "indexing": {"fastapi", "uvicorn", "mteb", "sentence_transformers", "transformers"},
    "api": {"torch", "faiss", "transformers", "sentence_transformers", "mteb"},
    "benchmarks": set(),
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    found = set(imported(path))
    assert not (found & set(OURS)) - ALLOWED[package]
    assert not found & FORBIDDEN[package]
    assert "faiss" not in found or path == ROOT / "indexing" / "engines" / "faiss_index.py"


def test_every_package_is_read():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ALLOWED)


def modules_imported(path):
    """Every module of the project that a file imports, for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_itself_by_way_of_others():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph = {name: {*modules_imported(path)} & names.keys() for name, path in names.items()}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the modules
