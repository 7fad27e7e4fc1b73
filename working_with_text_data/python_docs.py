"""The embedded corpus `python-docs`: prose that is on every machine that can run this project.

Python ships its language reference (the text of `help("for")`, in `pydoc_data/topics.py`) and, in its standard
library's sources, some thousand docstrings: together about 1.6 MB of English about programming, enough to try
every stage without a network. The sources are parsed with `ast` and never imported, so nothing of them runs.
The text depends on the Python version, and with it every figure measured on it.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Not library documentation: test suites, bundled programs and installers, and what users installed themselves.
_NOT_DOCUMENTATION = {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip"}
_INSTALLED = {"site-packages", "dist-packages"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def standard_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def topics(library: Path) -> dict[str, str]:
    """The language reference: topic -> text, as `pydoc` keeps it.

    Raises:
        ValueError: this Python was installed without it (some Linux distributions split it off).
    """
    path = library / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise ValueError(
            f"this Python has no {path}: install your distribution's full Python (on Debian the package "
            "`libpython3-stdlib`), or use --corpus with a text file of your own"
        )
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign):
            return dict(ast.literal_eval(statement.value))
    raise ValueError(f"{path} does not hold the dictionary of topics that it should")


def docstrings(source: bytes, module: str) -> str:
    """The public docstrings of a module's source: its own, then each public function and class under its full name.

    "" if it has none. A source that this Python cannot parse counts as having none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    own = ast.get_docstring(tree)
    parts = [f"{module}\n\n{own}"] if own else []
    parts += _of_definitions(tree, module)
    return "\n\n\n".join(parts)


def _of_definitions(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in parent.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            if text := ast.get_docstring(node):
                yield f"{name}\n\n{text}"
            if isinstance(node, ast.ClassDef):
                yield from _of_definitions(node, name)


def python_docs(library: Path | None = None) -> Iterator[tuple[str, str]]:
    """(name, text) of every document: the reference's topics, then one document for each documented module.

    Raises:
        ValueError: the language reference is missing from this Python.
    """
    for topic, text in sorted(topics(library or standard_library()).items()):
        yield f"topic:{topic}", text.strip() + "\n"
    for module, path in library_modules(library):
        if text := docstrings(path.read_bytes(), module):
            yield f"module:{module}", text.strip() + "\n"


def library_modules(library: Path | None = None) -> Iterator[tuple[str, Path]]:
    """(module, source) of all public modules of the standard library that are written in Python, in a fixed order."""
    library = library or standard_library()
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if _INSTALLED & set(parts) or _NOT_DOCUMENTATION & set(parts):
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if not names or any(name.startswith("_") for name in names):
            continue
        yield ".".join(names), path
