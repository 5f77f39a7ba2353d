"""Reads TOML and remembers the line of every key, which `tomllib` does not tell."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]

_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LITERAL = re.compile(r"'[^'\n]*'")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LONG_LITERAL = re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL)
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL)
_SCALAR = re.compile(r"[^,\]}\n#]*")


class TomlError(ValueError):
    """Text that is not TOML. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True, kw_only=True)
class TomlDocument:
    """A parsed document. `lines` maps the path of a key to its line, counted from 1."""

    data: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, *path: str | int) -> int:
        """Give the line of the key, or of the nearest table around it that is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


def parse_toml(text: str) -> TomlDocument:
    """Parse a document; raises `TomlError`."""
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
        lines = _Scanner(text).scan()
    except RecursionError:
        raise TomlError("values are nested too deeply", 1, None) from None
    except ValueError as error:  # TOMLDecodeError, or an integer of too many digits
        message = str(error)
        place = _PLACE.search(message)
        if place is None:
            raise TomlError(message, 1, None) from None
        message = message[: place.start()]
        if place.group(1) is None:
            raise TomlError(f"{message}, at the end", text.count("\n") + 1, None) from None
        raise TomlError(message, int(place.group(1)), int(place.group(2))) from None
    return TomlDocument(data=data, lines=lines)


class _Scanner:
    """Walks over text that is known to be TOML and notes where each key stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.elements: dict[KeyPath, int] = {}  # arrays of tables: number of elements so far
        self._counted = 0
        self._line = 1

    def scan(self) -> dict[KeyPath, int]:
        prefix: KeyPath = ()
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return self.lines
            if self.text[self.at] == "[":
                prefix = self._header()
            else:
                self._pair(prefix)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found.group()

    def _note(self, path: KeyPath) -> None:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        self.lines.setdefault(path, self._line)

    def _header(self) -> KeyPath:
        is_array = self.text.startswith("[[", self.at)
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        self.at += 2 if is_array else 1
        names = self._key()
        self._skip(_SPACE)
        self.at += 2 if is_array else 1
        path: KeyPath = ()
        for index, name in enumerate(names):
            path = (*path, name)
            self._note(path)
            last = index == len(names) - 1
            if last and is_array:
                self.elements[path] = self.elements.get(path, 0) + 1
            if path in self.elements:
                path = (*path, self.elements[path] - 1)
                self._note(path)
        if not is_array:
            self.lines[path] = self._line  # a header is a better place than a mention on the way
        return path

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            names.append(self._name())
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return names
            self.at += 1

    def _name(self) -> str:
        if raw := self._skip(_BARE):
            return raw
        if raw := self._skip(_LITERAL):
            return raw[1:-1]
        raw = self._skip(_BASIC)
        return str(tomllib.loads(f"name = {raw}")["name"])

    def _pair(self, prefix: KeyPath) -> None:
        path = prefix
        for name in self._key():
            path = (*path, name)
            self._note(path)
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        text, at = self.text, self.at
        if text.startswith('"""', at):
            self._skip(_LONG_BASIC)
        elif text.startswith("'''", at):
            self._skip(_LONG_LITERAL)
        elif text.startswith('"', at):
            self._skip(_BASIC)
        elif text.startswith("'", at):
            self._skip(_LITERAL)
        elif text.startswith("[", at):
            self._array(path)
        elif text.startswith("{", at):
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self.text.startswith("]", self.at):
                self.at += 1
                return
            self._note((*path, index))
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while True:
            self._skip(_BLANK)
            if self.text.startswith("}", self.at):
                self.at += 1
                return
            self._pair(path)
            self._skip(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1
