"""Finds and reads the configuration file: ``pyproject.toml`` or ``e2e-run.toml``."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_runner.errors import ConfigError
from e2e_runner.layers import misspelt_table
from e2e_runner.text import one_line
from e2e_runner.toml_lines import TomlDocument, TomlError, parse_toml

OWN_NAME = "e2e-run.toml"
PROJECT_NAME = "pyproject.toml"
TABLE = ("tool", "e2e-run")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A configuration file. `table` is e2e-run's part of it, `prefix` the path of keys to there."""

    file: Path
    shown: str  # the file as messages name it
    table: dict[str, Any]
    prefix: tuple[str, ...]
    document: TomlDocument

    def place(self, *path: str | int) -> str:
        """Name the line of a key for a message."""
        return f"{self.shown}:{self.document.line(*self.prefix, *path)}"

    def origin(self, *path: str | int) -> str:
        """Name the line of a key relative to the project's root."""
        return f"{self.file.name}:{self.document.line(*self.prefix, *path)}"


def find_config(starts: Iterable[Path], cwd: Path) -> tuple[ConfigFile | None, list[str]]:
    """Search upwards from each of `starts` (folders) in turn; returns the file and the warnings.

    A ``pyproject.toml`` without the table is passed over, as is one that is not TOML and does not
    mention e2e-run. Raises `ConfigError` for one that cannot be read.
    """
    warnings: list[str] = []
    for folder in _upwards(starts):
        own = _load_own(folder / OWN_NAME, cwd)
        project, more = _load_project(folder / PROJECT_NAME, cwd)
        warnings += more
        if own and project:
            warnings.append(
                f"{own.shown} and {project.shown} both configure e2e-run: {own.shown} is used"
            )
        if own or project:
            return own or project, warnings
    return None, warnings


def load_config(file: Path, cwd: Path) -> ConfigFile:
    """Read the configuration file that the user named; raises `ConfigError`."""
    shown = show_path(file, cwd)
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(
            f"{shown}: the configuration file {kind}",
            remedy=f"name a {PROJECT_NAME} or a file in the form of {OWN_NAME} with --config",
        )
    if file.name != PROJECT_NAME:
        return _own_form(file, _read(file, shown), shown)
    document = _read(file, shown)
    if not isinstance(_table(document.data), dict):
        wrong = _misspelt(document, shown)
        raise ConfigError(
            f"{shown}: has no [tool.e2e-run] table",
            facts=(wrong,) if wrong else (),
            remedy=f"add the table, or leave out --config: {PROJECT_NAME} is found by itself",
        )
    return _project_form(file, document, shown)


def show_path(file: Path, cwd: Path) -> str:
    """Name a file briefly: relative to the working directory where it is below it."""
    return str(file.relative_to(cwd)) if file.is_relative_to(cwd) else str(file)


def _upwards(starts: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for start in starts:
        for folder in (start, *start.parents):
            if folder not in seen:
                seen.add(folder)
                yield folder


def _load_own(file: Path, cwd: Path) -> ConfigFile | None:
    if not os.path.lexists(file):
        return None
    shown = show_path(file, cwd)
    return _own_form(file, _read(file, shown), shown)


def _own_form(file: Path, document: TomlDocument, shown: str) -> ConfigFile:
    if isinstance(_table(document.data), dict):
        return _project_form(file, document, shown)
    if wrong := _misspelt(document, shown):
        raise ConfigError(
            wrong, remedy="correct the table's name, or write its keys without a table"
        )
    return ConfigFile(file=file, shown=shown, table=document.data, prefix=(), document=document)


def _load_project(file: Path, cwd: Path) -> tuple[ConfigFile | None, list[str]]:
    """Read a ``pyproject.toml`` that may be there and may configure e2e-run; gives the warnings."""
    if not os.path.isfile(file):  # noqa: PTH113 - says no, and does not raise, in a closed folder
        return None, []
    shown = show_path(file, cwd)
    data = _bytes(file, shown)
    try:
        document = _parse(data, shown)
    except ConfigError as error:
        if b"e2e-run" in data:
            raise
        return None, [f"{error.message} (passed over: it does not mention e2e-run)"]
    table = _table(document.data)
    if table is None:
        wrong = _misspelt(document, shown)
        return None, [wrong] if wrong else []
    if not isinstance(table, dict):
        line = document.line(*TABLE)
        raise ConfigError(f"{shown}:{line}: tool.e2e-run: is not a table; accepted: a table")
    return _project_form(file, document, shown), []


def _misspelt(document: TomlDocument, shown: str) -> str:
    """Tell of a table that is meant to be e2e-run's; an empty string where there is none."""
    path = misspelt_table(document.data)
    if not path:
        return ""
    name = one_line(".".join(path))
    line = document.line(*path)
    return f"{shown}:{line}: [{name}] is no table of e2e-run; did you mean [tool.e2e-run]?"


def _project_form(file: Path, document: TomlDocument, shown: str) -> ConfigFile:
    table = _table(document.data)
    return ConfigFile(file=file, shown=shown, table=table, prefix=TABLE, document=document)


def _table(data: dict[str, Any]) -> Any:
    tool = data.get(TABLE[0])
    return tool.get(TABLE[1]) if isinstance(tool, dict) else None


def _read(file: Path, shown: str) -> TomlDocument:
    return _parse(_bytes(file, shown), shown)


def _bytes(file: Path, shown: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}") from error


def _parse(data: bytes, shown: str) -> TomlDocument:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown}:{line}: not UTF-8: byte 0x{data[error.start]:02x}; accepted: TOML in UTF-8"
        ) from error
    try:
        return parse_toml(text)
    except TomlError as error:
        column = f":{error.column}" if error.column else ""
        raise ConfigError(f"{shown}:{error.line}{column}: not TOML: {error.message}") from error
