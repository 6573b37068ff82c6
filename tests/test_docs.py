"""The documentation names files, modules and links that exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(r"(?<![\w./-])((?:embedserve|indexing|api|benchmarks|tests|docs|constraints)/[\w./-]*\.\w+)")
MODULE = re.compile(r"(?<![\w./-])python -m ((?:embedserve|benchmarks|api)\.[\w.]+)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_modules_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    files, modules = PATH.findall(text), MODULE.findall(text)
    missing = [name for name in files if "NAME" not in name and not (ROOT / name).exists()]
    missing += [name for name in modules if "NAME" not in name and find_spec(name.rstrip(".")) is None]
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_pages_are_found():
    assert len(PAGES) > 20 and all(page.is_file() for page in PAGES)
