"""Which files of ours a file imports, found in its source: nothing is run.

Imports inside functions count, and so does the name of a lazily loaded package: where a package
does not bind a name at its top, all of its files are taken to be used.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

OURS = ("dsts_pipeline", "stages", "cli")


def statements_of(path: Path, package: str) -> Iterator[tuple[str, str | None]]:
    """(module, imported name or None) of every import in a file; `package` resolves dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)]
            base = ".".join(parents) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((module, alias.name) for alias in node.names)


def name_of(path: Path, root: Path) -> str:
    """Dotted module name of a file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_of(module: str, root: Path) -> Path | None:
    """The file that a dotted name of ours stands for, if there is one."""
    place = root.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.exists():
            return path
    return None


def imports_of(path: Path, root: Path) -> set[Path]:
    """Files of ours that `path` imports, packages on the way included."""
    own = name_of(path, root)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    found: set[Path] = set()
    for module, name in statements_of(path, package):
        if module.split(".")[0] not in OURS:
            continue
        parts = module.split(".")
        chain = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        found |= {file for file in (file_of(link, root) for link in chain) if file}
        found |= _files_behind(module, name, root)
    return found - {path}


def closure_of(path: Path, root: Path) -> set[Path]:
    """All files of ours that running `path` may load, `path` itself included."""
    seen, waiting = {path}, [path]
    while waiting:
        new = imports_of(waiting.pop(), root) - seen
        seen |= new
        waiting += new
    return seen


def _files_behind(module: str, name: str | None, root: Path) -> set[Path]:
    if name is None:
        return set()
    submodule = file_of(f"{module}.{name}", root)
    if submodule:
        return {submodule}
    package = file_of(module, root)
    if package is None or package.name != "__init__.py" or name in _bound_names(package):
        return set()
    return set(package.parent.glob("*.py"))


def _bound_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
