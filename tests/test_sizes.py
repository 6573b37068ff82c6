"""Limits of the code's size: lines of a file, lines of a function."""

import ast

from tests.test_direction import FILES, ROOT

FILE_LINES, FUNCTION_LINES = 300, 80


def test_files_are_short():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    too_long = {str(path.relative_to(ROOT)): size for path, size in sizes.items() if size > FILE_LINES}
    assert not too_long


def test_functions_are_short():
    too_long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = node.end_lineno - node.lineno + 1
                if size > FUNCTION_LINES:
                    too_long[f"{path.relative_to(ROOT)}:{node.name}"] = size
    assert not too_long
