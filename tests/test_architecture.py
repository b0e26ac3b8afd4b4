"""The map lists every file, with the first sentence of its docstring; imports make no circle.

`python -m tests.test_architecture` writes the list anew.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree -->\n```text\n", "```\n<!-- end of tree -->\n"
COLUMN = 30
PACKAGES = ("conf", "pipeline", "modules", "datamodules")


def about(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).rstrip(".")


def imported(file: Path) -> Iterator[str]:
    """What a module imports anywhere, within functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def described(folder: Path, depth: int = 0) -> Iterator[str]:
    """The folder, its files and its folders; of files without code, their names."""
    indent = "  " * depth
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    package = folder / "__init__.py"
    yield f"{indent + folder.name + '/':<{COLUMN}}{about(package) if package.is_file() else ''}"
    modules = [file for file in files if file.suffix == ".py" and file != package]
    others = [file.name for file in files if file.suffix not in {".py", ".pyc"}]
    for file in modules:
        yield f"{indent + '  ' + file.name:<{COLUMN}}{about(file)}"
    if others:
        yield f"{indent}  {' '.join(others)}"
    for child in sorted(folder.iterdir()):
        if child.is_dir() and child.name != "__pycache__":
            yield from described(child, depth + 1)


def tree() -> str:
    lines = [line.rstrip() for name in PACKAGES for line in described(ROOT / name)]
    return "\n".join(lines) + "\n"


def test_every_file_is_on_the_map() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = text.partition(BEGIN)[2].partition(END)[0]
    assert listed == tree(), "bring it up to date with `python -m tests.test_architecture`"


def test_no_module_imports_another_in_a_circle() -> None:
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }
    graph = {
        name: {found for found in imported(file) if found in modules and found != name}
        for name, file in modules.items()
    }
    TopologicalSorter(graph).prepare()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + tree() + END + after, encoding="utf-8")
