"""Reads inline script metadata (PEP 723): what an example says about itself.

The block is the comment between ``# /// script`` and ``# ///``; e2e-run's part of it is the table
``[tool.e2e-run]``. Scripts in other languages write it in their own line comments.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from e2e_runner.layers import Layer, misspelt_table, read_table
from e2e_runner.model import Problem, Source
from e2e_runner.settings import Scope
from e2e_runner.text import one_line
from e2e_runner.toml_lines import TomlDocument, TomlError, parse_toml

_SLASHES = frozenset(
    {".js", ".mjs", ".cjs", ".ts", ".mts", ".go", ".rs", ".java", ".kt", ".php", ".swift", ".scala"}
)
_DASHES = frozenset({".lua", ".sql", ".hs"})
_TYPE = re.compile(r"[a-zA-Z0-9-]+")
_NEWLINE = re.compile(r"\r\n?")
_HEADER = re.compile(r"\s*\[+\s*(?:tools?\s*\.\s*)?e2e[-_. ]?run(?:ner)?\s*\]+\s*")
_OPENING = re.compile(r"\s*/{2,4}\s*(script)\s*|\s?/// ([a-zA-Z0-9-]+)", re.IGNORECASE)
_SECOND = re.compile(r"^/// script$", re.MULTILINE)
_CLOSING = re.compile(r"^///$", re.MULTILINE)

# What a source holds that may have metadata, or something meant to be metadata.
MAY_HAVE_METADATA = re.compile(rb"(?i)/// ?script|e2e[-_. ]?run(?:ner)?\s*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a script says about itself. `declared` is true when it has a ``[tool.e2e-run]`` table.

    `warnings` name what looks like metadata for e2e-run and is not, each with file and line.
    """

    layer: Layer = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
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
    lines = _lines(text)
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
    blocks = [block for block in find_blocks(text, prefix) if block.type == "script"]
    warnings = tuple(_overlooked(_lines(text), prefix, blocks, path))
    if len(blocks) > 1:
        metadata = _two_blocks(blocks[0].line - 1, blocks[1].line - 1, path)
    else:
        metadata = _read_block(blocks[0], path) if blocks else Metadata()
    return replace(metadata, warnings=(*metadata.warnings, *warnings)) if warnings else metadata


def _read_block(block: Block, path: str) -> Metadata:
    offset = block.line - 1
    try:
        document = parse_toml(block.content)
    except TomlError as error:
        return _not_toml(block, error, path)
    tool = document.data.get("tool")
    if not isinstance(tool, dict) or "e2e-run" not in tool:
        return _without_table(document, offset, path)
    table = tool["e2e-run"]
    if not isinstance(table, dict):
        line = offset + document.line("tool", "e2e-run")
        return _broken(f"{path}:{line}: tool.e2e-run: is not a table; accepted: a table")

    def locate(*keys: str) -> tuple[str, str]:
        place = f"{path}:{offset + document.line('tool', 'e2e-run', *keys)}"
        return place, place

    layer, problems = read_table(table, scope=Scope.METADATA, source=Source.METADATA, locate=locate)
    return Metadata(
        layer=layer, problems=tuple(Problem(message=each) for each in problems), declared=True
    )


def _not_toml(block: Block, error: TomlError, path: str) -> Metadata:
    if "e2e-run" not in block.content:
        return Metadata()
    second = _SECOND.search(block.content)
    if second is None:
        line = block.line - 1 + error.line
        return _broken(f"{path}:{line}: script: the metadata is not TOML: {error.message}")
    first = block.line - 1
    line = block.line + block.content.count("\n", 0, second.start())
    if _CLOSING.search(block.content, 0, second.start()):
        return _two_blocks(first, line, path)
    return _broken(
        f"{path}:{line}: script: a second metadata block begins before that of line {first} is "
        "closed; accepted: one block, closed by `# ///`"
    )


def _without_table(document: TomlDocument, offset: int, path: str) -> Metadata:
    wrong = misspelt_table(document.data)
    if not wrong:
        return Metadata()
    place = f"{path}:{offset + document.line(*wrong)}"
    name = one_line(".".join(wrong))
    return Metadata(warnings=(f"{place}: [{name}] is ignored; did you mean [tool.e2e-run]?",))


def _two_blocks(first: int, second: int, path: str) -> Metadata:
    return _broken(
        f"{path}:{second}: script: more than one metadata block (lines {first}, {second}); "
        "accepted: one block"
    )


def _overlooked(lines: list[str], prefix: str, blocks: Iterable[Block], path: str) -> Iterator[str]:
    """Tell of comments that are meant to be metadata and that nobody reads, once for each run."""
    read = {
        at
        for block in blocks
        for at in range(block.line - 2, block.line + block.content.count("\n"))
    }
    opening, closing = f"{prefix} /// script", f"{prefix} ///"
    at = 0
    while at < len(lines):
        start = at
        while at < len(lines) and lines[at].startswith(prefix):
            at += 1
        run = [index for index in range(start, at) if index not in read]
        headers = [index for index in run if _HEADER.fullmatch(lines[index], len(prefix))]
        openings = [
            (index, found)
            for index in run
            if (found := _OPENING.fullmatch(lines[index], len(prefix)))
            and (
                (headers and index < headers[-1])
                or (lines[index] == opening and lines[index + 1 : index + 2] != [closing])
            )
        ]
        if openings:
            index, found = openings[0]
            yield f"{path}:{_ignored(lines[:at], prefix, index, found)}"
        elif headers:
            yield (
                f"{path}:{headers[0] + 1}: {one_line(lines[headers[0]])!r} is ignored: it is not in "
                f"a block that `{opening}` opens and `{closing}` closes"
            )
        at = max(at, start + 1)


def _ignored(lines: list[str], prefix: str, at: int, found: re.Match[str]) -> str:
    """Say why the block that seems to begin at index `at` is not read; `lines` end with its run."""
    if found[2]:
        return f"{at + 1}: the block of type {found[2]} is ignored; accepted: `{prefix} /// script`"
    if lines[at] != f"{prefix} /// script":
        return f"{at + 1}: {lines[at]!r} opens no metadata block; accepted: `{prefix} /// script`"
    bad = next(
        (
            index + 1
            for index in range(at + 1, len(lines))
            if lines[index] != prefix and not lines[index].startswith(f"{prefix} ")
        ),
        None,
    )
    where = f", but line {bad} does not" if bad else ""
    return (
        f"{at + 1}: the metadata block is never closed, and ignored; accepted: lines that begin with "
        f"`{prefix} `{where}, the last of them `{prefix} ///`"
    )


def _lines(text: str) -> list[str]:
    return _NEWLINE.sub("\n", text).split("\n")


def _broken(message: str) -> Metadata:
    return Metadata(problems=(Problem(message=message),), declared=True)
