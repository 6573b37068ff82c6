"""The hint that every message about an unknown name gives."""

import pytest

from embedserve.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("serch", ["/search", "/embed"], "did you mean '/search'? "),
        ("docs", {"python-docs": 1, "notes": 2}, "did you mean 'python-docs'? "),
        ("zzz", ["mean", "last_token"], ""),
        ("mean", [], ""),
    ],
)
def test_the_nearest_name_is_asked_after(name, known, hint):
    assert did_you_mean(name, known) == hint
