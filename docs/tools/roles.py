"""The roles of docstrings (``:class:`lnb.LNB```) as links of the site, where what they name is on it, and else as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

PAGES = Path(__file__).resolve().parents[1] / "reference"
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


def shown() -> dict[str, str]:
    """What the reference has blocks of: by every name that is written for it, the name of its block."""
    found = {}
    for page in sorted(PAGES.glob("*.md")):
        for name, heading in re.findall(r"^::: (\S+)\n(?:.*?heading: ([\w.]+))?", page.read_text(), re.M):
            found[name] = name
            if heading:
                found[heading] = name
    return found


def without_members() -> set[str]:
    """The blocks that show a module's docstring alone."""
    text = "\n".join(page.read_text() for page in sorted(PAGES.glob("*.md")))
    return set(re.findall(r"^::: (\S+)\n.*members: false", text, re.M))


class Roles(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._shown, self._alone = shown(), without_members()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """A module, class, function or attribute with its docstring."""
        if obj.docstring is not None and ":`" in obj.docstring.value:
            obj.docstring.value = ROLE.sub(lambda match: self._link(obj, match), obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """A package that is loaded by itself, which is no object of another."""
        self.on_object(obj=pkg)

    def _link(self, obj: griffe.Object, match: re.Match[str]) -> str:
        short, name = match.groups()
        text = name.rpartition(".")[2] if short else name
        target = self._shown.get(name) or self._member(obj, name)
        return f"[`{text}`][{target}]" if target else f"`{text}`"

    def _member(self, obj: griffe.Object, name: str) -> str | None:
        """``step`` in a docstring of LNB, ``lnb.LNB.plan`` anywhere, or a neighbour in the same module."""
        owner, _, last = name.rpartition(".")
        if owner in self._shown and owner not in self._alone:
            return f"{self._shown[owner]}.{last}"
        scope: griffe.Object | None = obj
        while scope is not None:
            for public, target in self._shown.items():
                module, _, short = public.rpartition(".")
                if short == name and (module == scope.path or scope.path.startswith(f"{module}.")):
                    return target
                if scope.is_class and public.endswith(f".{scope.name}") and name in scope.members:
                    return f"{target}.{name}"
            scope = scope.parent
        return None
