"""Which package may import which; read from the code, so that a wrong arrow fails here."""

import ast
from functools import cache
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
    "embedserve": {"faiss", "starlette", "uvicorn", "mteb"},
    "indexing": {"starlette", "uvicorn", "mteb", "sentence_transformers", "transformers"},
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


@cache
def modules_imported(path):
    """Every module of the project that a file imports, for types too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def test_no_module_imports_itself_by_way_of_others():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph = {name: modules_imported(path) & names.keys() for name, path in names.items()}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the modules


# The folders of each package from the bottom up; a folder imports from itself and from folders before it.
FLOORS = {
    "embedserve": ("data", "client", "strategies", "loading", "training"),
    "indexing": (
        "storage", "kernels", "sources", "engines", "query", "late_interaction", "segments", "collections", "jobs",
    ),
    "api": (
        "telemetry", "http", "inference", "collections", "schemas", "responses", "actions", "openapi", "routes",
        "pages", "cli",
    ),
    "benchmarks": ("common", "indexes", "encoding", "serving", "jobs", "harness"),
}  # fmt: skip
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}


def folder_of(module):
    """The package and folder of a module; for a file beside the folders, its own name."""
    return tuple(module.removesuffix(".__init__").split(".")[:2])


@pytest.mark.parametrize("package", FLOORS)
def test_every_folder_has_a_floor(package):
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} - {"nano", "zoo"}
    assert folders == set(FLOORS[package])


def test_folders_import_only_from_folders_below():
    wrong = []
    for module, path in MODULES.items():
        package, folder = (*folder_of(module), "")[:2]
        for target in modules_imported(path) & MODULES.keys():
            other_package, other = (*folder_of(target), "")[:2]
            floors = FLOORS[package]
            if (
                other_package == package
                and {folder, other} <= set(floors)
                and floors.index(other) > floors.index(folder)
            ):
                wrong.append(f"{module} -> {target}")
    assert not wrong


def test_folders_form_no_cycle():
    graph = {}
    for module, path in MODULES.items():
        if module.count("."):  # the package's own __init__ offers names of all folders
            targets = {folder_of(target) for target in modules_imported(path) & MODULES.keys() if target.count(".")}
            graph.setdefault(folder_of(module), set()).update(targets - {folder_of(module)})
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the folders


# File names that several folders share. In api/ a resource has the same name in every layer; each name means one thing.
SHARED_NAMES = {
    "__init__", "__main__",
    "access", "cohere", "collection", "collections", "documents", "embed", "external_formats", "jobs", "metrics",
    "health", "models", "openai", "rerank", "search", "snapshots", "tei", "train",
}  # fmt: skip


def test_no_two_files_share_a_name_for_different_things():
    names = [path.stem for path in FILES]
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated - SHARED_NAMES == set()
    outside_api = {
        name for name in repeated - {"__init__"} for path in FILES if path.stem == name and "api" not in path.parts
    }
    assert outside_api <= {"collection", "snapshots", "train"}  # the same concepts as in api/


def test_public_names_are_few():
    import embedserve
    import indexing

    for package in (embedserve, indexing):
        assert len(package.__all__) <= 20
        assert all(hasattr(package, name) for name in package.__all__)
