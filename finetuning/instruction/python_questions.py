"""Questions and answers about Python, made from the running Python's own documentation: instructions for every machine.

Each documented name of the standard library gives up to three pairs:

    What does `textwrap.dedent` do?                     the first sentence of its docstring
    Which method of `str` returns a copy …?             `str.lower`, where that sentence says what it returns
    Show the signature of `textwrap.dedent`.            `textwrap.dedent(text)`

The sources are parsed with `ast` and never imported. The built-in types are written in C and have no source here: they
are asked for their docstrings, since they are there in any case. A pair carries the name that it is about, and the
split goes by that: no question about a held-out name is ever learned from.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from working_with_text_data.python_docs import Definition, library_modules

LONGEST = 160  # characters of an answer
_SHORTEST = 12
_END_OF_SENTENCE = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?](?=\s|$)")
_CALL = re.compile(r"^[\w.]+\(.*\)(\s*->.*)?$", re.S)  # a paragraph that only repeats how it is called
_RETURNS = re.compile(r"^(?:Return|Returns) (?=\S)")


@dataclass(frozen=True)
class Documented:
    """A public name and what its documentation says."""

    name: str
    """With the modules and classes around it: textwrap.dedent, str.lower."""
    kind: str
    """class, method or function."""
    docstring: str
    signature: str | None
    """Its arguments in parentheses; None where they are not known."""


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the name that both are about."""

    name: str
    question: str
    answer: str


def documented_names(library: Path | None = None) -> Iterator[Documented]:
    """Everything public that has a docstring, in a fixed order: built-in names, then the standard library's modules.

    Args:
        library: the folder of the standard library; the running Python's if not given.
    """
    yield from _builtin_names()
    for module, path in library_modules(library):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # meant for another Python
            continue
        yield from _in_source(tree, module, inside_class=False)


def _in_source(parent: ast.Module | ast.ClassDef, prefix: str, inside_class: bool) -> Iterator[Documented]:
    for node in parent.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        if docstring := ast.get_docstring(node):
            kind = "class" if is_class else "method" if inside_class else "function"
            yield Documented(name, kind, docstring, _signature(node, inside_class))
        if isinstance(node, ast.ClassDef):
            yield from _in_source(node, name, inside_class=True)


def _signature(node: Definition, inside_class: bool) -> str | None:
    """`(text, *, width=70)`, without the `self` of a method; None for classes."""
    if isinstance(node, ast.ClassDef):
        return None
    decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    if "property" in decorators:
        return None
    arguments = ast.unparse(node.args)
    if inside_class and "staticmethod" not in decorators:
        arguments = re.sub(r"^(self|cls)(, /)?(, |$)", "", arguments)
    return f"({arguments})"


def _builtin_names() -> Iterator[Documented]:
    """Built-in functions, types and the types' methods."""
    for name, thing in sorted(vars(builtins).items()):
        if name.startswith("_") or not (inspect.isclass(thing) or inspect.isbuiltin(thing)):
            continue
        if thing.__doc__ and thing.__name__ == name:  # some errors have a second, older name
            kind = "class" if inspect.isclass(thing) else "function"
            yield Documented(name, kind, inspect.cleandoc(thing.__doc__), _asked(thing) if kind == "function" else None)
        for inner, member in sorted(vars(thing).items()) if inspect.isclass(thing) else ():
            if not inner.startswith("_") and callable(member) and getattr(member, "__doc__", None):
                yield Documented(f"{name}.{inner}", "method", inspect.cleandoc(member.__doc__), _asked(member))


def _asked(thing: object) -> str | None:
    """The signature that a function in C tells of itself, if it does."""
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return re.sub(r"^\((self|cls)(, /)?(, (/, )?|(?=\)))", "(", text)


def first_sentence(docstring: str) -> str | None:
    """What a docstring says first, on one line; None if that is no short sentence."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring.strip())]
    if paragraphs and _CALL.match(paragraphs[0]):
        del paragraphs[0]
    if not paragraphs or paragraphs[0].startswith(">>>"):  # an example is no sentence
        return None
    found = _END_OF_SENTENCE.search(paragraphs[0])
    sentence = paragraphs[0][: found.end()] if found else paragraphs[0]
    if not _SHORTEST <= len(sentence) <= LONGEST or sentence.endswith(":"):
        return None
    return sentence if sentence[-1] in ".!?" else sentence + "."


def python_questions(library: Path | None = None) -> list[Pair]:
    """All pairs, in a fixed order. A question to which there would be two answers is left out."""
    pairs = [pair for one in documented_names(library) for pair in _pairs_of(one)]
    asked = Counter(pair.question for pair in pairs)
    return [pair for pair in pairs if asked[pair.question] == 1]


def _pairs_of(one: Documented) -> Iterator[Pair]:
    sentence = first_sentence(one.docstring)
    if sentence is not None:
        question = f"What is `{one.name}`?" if one.kind == "class" else f"What does `{one.name}` do?"
        yield Pair(one.name, question, sentence)
        owner = one.name.rpartition(".")[0]
        if owner and one.kind != "class" and _RETURNS.match(sentence):
            what = _RETURNS.sub("", sentence).rstrip(".")
            yield Pair(one.name, f"Which {one.kind} of `{owner}` returns {what}?", f"`{one.name}`")
    if one.signature is not None and len(one.name + one.signature) <= LONGEST:
        yield Pair(one.name, f"Show the signature of `{one.name}`.", f"`{one.name}{one.signature}`")
