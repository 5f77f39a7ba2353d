"""Reads inline script metadata (PEP 723): what an example says about itself.

The block is the comment between ``# /// script`` and ``# ///``; e2e-run's part of it is the table
``[tool.e2e-run]``. Scripts in other languages write it in their own line comments.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from e2e_runner.layers import Layer, read_table
from e2e_runner.model import Problem, Source
from e2e_runner.settings import Scope
from e2e_runner.text import one_line
from e2e_runner.toml_lines import TomlError, parse_toml

_SLASHES = frozenset(
    {".js", ".mjs", ".cjs", ".ts", ".mts", ".go", ".rs", ".java", ".kt", ".php", ".swift", ".scala"}
)
_DASHES = frozenset({".lua", ".sql", ".hs"})
_TYPE = re.compile(r"[a-zA-Z0-9-]+")
_NEWLINE = re.compile(r"\r\n?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a script says about itself. `declared` is true when it has a ``[tool.e2e-run]`` table."""

    layer: Layer = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    declared: bool = False


class Block(NamedTuple):
    """One metadata block: its type, its TOML, and the line of the file on which that begins."""

    type: str
    content: str
    line: int


def comment_prefix(suffix: str) -> str:
    """Give what begins a line comment in files with `suffix`."""
    if suffix in _SLASHES:
        return "//"
    return "--" if suffix in _DASHES else "#"


def find_blocks(text: str, prefix: str = "#") -> Iterator[Block]:
    """Find the metadata blocks of a script, by the rules of PEP 723.

    A block that nothing closes is none. A line ``# ///`` closes a block only when the next line is
    not a comment that could go on with it: the last such line of a run of comments counts.
    """
    lines = _NEWLINE.sub("\n", text).split("\n")
    opening = f"{prefix} /// "
    closing = f"{prefix} ///"
    at = 0
    while at < len(lines):
        kind = lines[at].removeprefix(opening)
        if kind == lines[at] or not _TYPE.fullmatch(kind):
            at += 1
            continue
        end = at + 1
        closed = None
        while end < len(lines) and (lines[end] == prefix or lines[end].startswith(prefix + " ")):
            if lines[end] == closing and end > at + 1:
                closed = end
            end += 1
        if closed is None:
            at += 1
            continue
        content = "\n".join(line[len(prefix) + 1 :] for line in lines[at + 1 : closed])
        yield Block(kind, content, at + 2)
        at = closed + 1


def read_metadata(text: str, path: str, suffix: str = ".py") -> Metadata:
    """Read the metadata of the script `path`; what is wrong with it is in `problems`.

    Only ``[tool.e2e-run]`` is checked. A block that is not TOML is a problem only when it mentions
    e2e-run: the script may belong to somebody who never heard of it.
    """
    path = one_line(path)
    prefix = comment_prefix(suffix)
    if f"{prefix} /// script" not in text:
        return Metadata()
    blocks = [block for block in find_blocks(text, prefix) if block.type == "script"]
    if len(blocks) > 1:
        lines = ", ".join(str(block.line - 1) for block in blocks)
        return _broken(
            f"{path}:{blocks[1].line - 1}: script: more than one metadata block (lines {lines}); "
            "accepted: one block"
        )
    return _read_block(blocks[0], path) if blocks else Metadata()


def _read_block(block: Block, path: str) -> Metadata:
    offset = block.line - 1
    try:
        document = parse_toml(block.content)
    except TomlError as error:
        if "e2e-run" not in block.content:
            return Metadata()
        return _broken(
            f"{path}:{offset + error.line}: script: the metadata is not TOML: {error.message}"
        )
    tool = document.data.get("tool")
    if not isinstance(tool, dict) or "e2e-run" not in tool:
        return Metadata()
    table = tool["e2e-run"]
    if not isinstance(table, dict):
        line = offset + document.line("tool", "e2e-run")
        return _broken(f"{path}:{line}: tool.e2e-run: is not a table; accepted: a table")

    def locate(key: str) -> tuple[str, str]:
        place = f"{path}:{offset + document.line('tool', 'e2e-run', key)}"
        return place, place

    layer, problems = read_table(table, scope=Scope.METADATA, source=Source.METADATA, locate=locate)
    return Metadata(
        layer=layer, problems=tuple(Problem(message=each) for each in problems), declared=True
    )


def _broken(message: str) -> Metadata:
    return Metadata(problems=(Problem(message=message),), declared=True)
