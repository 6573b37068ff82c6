"""Which route a path belongs to, known before it is routed: for access, limits, metrics and the log."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.routing import compile_path
from starlette.types import Scope

UNMATCHED = "unmatched"  # what metrics and log call a path of no route


class Paths:
    """The templates of an application's paths, such as ``/v1/collections/{name}``.

    Args:
        methods: The methods of each template; it may still grow.
    """

    def __init__(self, methods: Mapping[str, set[str]]) -> None:
        self.methods = methods
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._fixed: dict[str, list[str]] = {}  # what a path without parameters may belong to

    def matching(self, path: str) -> list[str]:
        """Return every template that ``path`` could belong to; routing takes one of them.

        The patterns are those of the router, and are tried as it tries them: what it would find is found here.
        """
        if len(self._patterns) < len(self.methods):
            self._patterns = {template: compile_path(template)[0] for template in self.methods}
            open_ends = {name: pattern for name, pattern in self._patterns.items() if "{" in name}
            self._fixed = {
                name: [name, *(other for other, pattern in open_ends.items() if pattern.match(name))]
                for name in self._patterns.keys() - open_ends.keys()
            }
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        return [name for name, pattern in self._patterns.items() if pattern.match(path)]


def path_of(scope: Scope) -> str:
    """Return the path below the one that the application is mounted at, as routing sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if not root or not path.startswith(root):
        return path
    rest = path[len(root) :]
    return rest if not rest or rest.startswith("/") else path
