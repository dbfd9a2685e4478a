"""Modules import each other in one direction, and use no names that are private to another one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"lnb_kernels": ROOT / "lnb_kernels", "lnb": ROOT / "python/lnb", "lnb_bench": ROOT / "bench/lnb_bench"}


def modules() -> dict[str, Path]:
    """The modules of all packages, by their full names."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Imports that run, those inside functions included: those under ``if TYPE_CHECKING`` are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from statements(other)
        else:
            yield from statements(node)


def imported(statement: ast.stmt) -> Iterator[str]:
    """Of our modules."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names if alias.name in MODULES)
    elif isinstance(statement, ast.ImportFrom) and statement.module and statement.level == 0:
        for alias in statement.names:
            inner = f"{statement.module}.{alias.name}"
            if inner in MODULES:
                yield inner
            elif statement.module in MODULES:
                yield statement.module


def graph() -> dict[str, set[str]]:
    """What each module imports."""
    return {
        name: {
            other
            for statement in statements(ast.parse(path.read_text(encoding="utf-8")))
            for other in imported(statement)
            if other != name
        }
        for name, path in MODULES.items()
    }


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there are none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(imports[name]):
                if found := visit(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in imports if (found := visit(name, []))), [])


def test_no_module_imports_itself_through_others() -> None:
    imports = graph()
    assert len(imports) > 200
    assert "lnb.step" in imports["lnb.optimizer"], "the graph is not that of the packages"
    assert cycle(imports) == []


def test_a_cycle_would_be_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(path: Path, own: str) -> Iterator[str]:
    """Names that a module takes from another one of ours and that are private there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FOLDERS:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    aliases[alias.asname or alias.name] = inner
                elif is_private(alias.name) and node.module != own:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {inner}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES and (alias.asname or "." not in alias.name):
                    aliases[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr):
            module = aliases.get(node.value.id)
            if module is not None and f"{module}.{node.attr}" not in MODULES and module != own:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {module}.{node.attr}"


def test_no_module_uses_a_name_that_is_private_to_another() -> None:
    scripts = {
        f"script {path.name}": path for path in [*(ROOT / "bench").glob("*.py"), *(ROOT / "examples").glob("*.py")]
    }
    found = [line for own, path in {**MODULES, **scripts}.items() for line in private_names(path, own)]
    assert found == []
