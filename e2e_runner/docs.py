"""Writes the parts of the documentation that follow from the code.

``python -m e2e_runner.docs README.md docs/kit.md`` replaces the tables of settings, which stand between
``<!-- reference: config -->`` (or ``metadata``) and ``<!-- /reference -->``, and the block of code after
``<!-- signature: NAME -->``, which shows how that name of the kit is called.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import get_overloads

from e2e_runner import kit
from e2e_runner.settings import SETTINGS, Scope, Setting

_BLOCK = re.compile(r"(<!-- reference: (\w+) -->\n).*?(<!-- /reference -->)", re.DOTALL)
_SIGNATURE = re.compile(
    r"(^<!-- signature: (\w+) -->\n```python\n).*?(^```$)", re.DOTALL | re.MULTILINE
)
_WIDTH = 88  # columns of a signature, which is not to be scrolled
_TYPE_VARIABLE = re.compile(r"\b_(?=[A-Z]\b)")
_QUOTED_TYPE = re.compile(r"((?:->|:) )'([^']*)'")


def config_reference() -> str:
    """Give the Markdown table of what configuration, environment and flags may say."""
    rows = [
        (
            f"`{setting.name}`" if Scope.CONFIG in setting.scopes else "",
            setting.kind.name,
            setting.default_words or "false",
            f"`{setting.variable}`" if Scope.ENVIRONMENT in setting.scopes else "",
            ", ".join(f"`{flag}`" for flag in setting.flags),
            setting.help,
        )
        for setting in SETTINGS
        if setting.scopes - {Scope.METADATA}
    ]
    return _table(("key", "type", "default", "environment", "flag", "what it does"), rows)


def metadata_reference() -> str:
    """Give the Markdown table of what inline metadata and overrides may say."""
    rows = [
        (
            f"`{setting.name}`",
            setting.kind.name,
            _accepted(setting),
            setting.default_words,
            setting.help,
        )
        for setting in SETTINGS
        if Scope.METADATA in setting.scopes
    ]
    return _table(("key", "type", "accepted", "default", "what it does"), rows)


def signature(name: str) -> str:
    """Show how a name of the kit is called, in the words of its source; of a class, what it has."""
    value = getattr(kit, name)
    if isinstance(value, FunctionType):
        return "\n".join(_call(each) for each in get_overloads(value) or [value])
    return _class(value)


def update(text: str) -> str:
    """Replace the generated parts of a Markdown text by current ones."""
    references = {"config": config_reference, "metadata": metadata_reference}
    text = _BLOCK.sub(lambda found: found[1] + references[found[2]]() + found[3], text)
    return _SIGNATURE.sub(lambda found: found[1] + signature(found[2]) + found[3], text)


def _call(function: Callable[..., object]) -> str:
    """Give the head of a function; each parameter has a line of its own where one is not enough."""
    node = _parsed(function)
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(f"{function!r} is no function")
    parameters = list(_parameters(node.args))
    result = ast.unparse(node.returns) if node.returns else "None"
    head = f"def {node.name}({', '.join(parameters)}) -> {result}"
    if len(head) > _WIDTH:
        lines = "".join(f"    {each},\n" for each in parameters)
        head = f"def {node.name}(\n{lines}) -> {result}"
    return f"{_as_written(head)}\n"


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    """Give the parameters one by one. The kit has none that are positional only, and no ``**``."""
    without = len(arguments.args) - len(arguments.defaults)
    defaults = [*([None] * without), *arguments.defaults]
    for argument, default in zip(arguments.args, defaults, strict=True):
        yield _parameter(argument, default)
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(argument, default)


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    told = ast.unparse(argument)
    return told if default is None else f"{told} = {ast.unparse(default)}"


def _class(kind: type) -> str:
    """Give the head of a class, and its public fields and properties."""
    node = _parsed(kind)
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{kind!r} is no class")
    base = kind.__mro__[1]
    told = [ast.unparse(each) for each in node.bases]
    if base.__module__ not in ("builtins", "collections.abc"):  # an inner one of the kit
        told = [base.__mro__[1].__name__]
    head = f"class {node.name}({', '.join(told)}):" if node.bases else f"class {node.name}:"
    members = [f"    {each}\n" for each in _members(node)]
    return _as_written("".join([head, "\n", *members]) if members else f"{head} ...\n")


def _members(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, ast.AnnAssign):
            name = ast.unparse(each.target)
            if not name.startswith("_"):
                yield f"{name}: {ast.unparse(each.annotation)}"
        elif isinstance(each, ast.FunctionDef) and each.returns is not None and _is_property(each):
            yield f"{each.name}: {ast.unparse(each.returns)}"


def _is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(each) == "property" for each in function.decorator_list)


def _parsed(value: Callable[..., object]) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _as_written(text: str) -> str:
    """Write type variables without their underscore, quoted types without quotes, and quotes double."""
    text = _TYPE_VARIABLE.sub("", text)
    return _QUOTED_TYPE.sub(r"\1\2", text).replace("'", '"')


def _accepted(setting: Setting) -> str:
    return setting.kind.accepted


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(update(page.read_text("utf-8")), "utf-8")
