"""Finds in a file of SQL what reaches beyond the database that it is to fill."""

import mmap
import re
from pathlib import Path

_CUSTOM = b"PGDMP"
_PIECE, _OVERLAP = 1 << 18, 1 << 12  # bytes
_BOM = b"\xef\xbb\xbf"

_GAP = rb"(?:\s|--[^\n]*\n|/\*.*?\*/)"
_STATEMENT = (
    rb"(?:(?:CREATE|DROP|ALTER)" + _GAP + rb"+DATABASE"
    rb"|DROP" + _GAP + rb"+(?:ROLE|GROUP|OWNED|USER(?!" + _GAP + rb"+MAPPING\b))"
    rb"|REASSIGN" + _GAP + rb"+OWNED"
    rb"|ALTER" + _GAP + rb"+SYSTEM)\b"
)
_LEAVE = rb"\\c(?:onnect)?(?=[\s\\;]|\Z)"
_INCLUDE = rb"\\i(?:r|nclude|nclude_relative)?[ \t]"
_FLAGS = re.IGNORECASE | re.DOTALL

# Most files hold nothing of the kind anywhere, and are not looked at more closely.
_SUSPECT = re.compile(rb"\b" + _STATEMENT, _FLAGS)
_SUSPECT_LINE = re.compile(_LEAVE + rb"|" + _INCLUDE)
_LEAVES = re.compile(_LEAVE)

_BETWEEN = re.compile(_GAP + rb"*", _FLAGS)
_AT_BEGINNING = re.compile(_STATEMENT, _FLAGS)
_FROM_STDIN = re.compile(rb"\\?COPY\b.*\bFROM\s+stdin\b", _FLAGS)
_END_OF_DATA = re.compile(rb"^\\\.\r?$", re.MULTILINE)
_END_OF_LINE = re.compile(rb"\r?\n|\Z")
_ARGUMENT = re.compile(rb"[ \t]+(?:'([^'\n]*)'|([^\s'\\]+))")
# What a statement is made of, as far as it matters. A quote without its end is passed by: what
# follows it is then looked at, too, and at worst refused in vain.
_TOKEN = re.compile(
    rb"(?P<skip>--[^\n]*|/\*.*?\*/|\b[eE]'(?:[^'\\]|\\.|'')*'|'[^']*'|\"[^\"]*\""
    rb"|(?P<dollar>\$(?:[^\W\d]\w*)?\$).*?(?P=dollar))"
    rb"|(?P<end>;)|(?P<command>\\[a-zA-Z]\w*)",
    re.DOTALL,
)


def beyond(file: Path) -> str:
    r"""Say what in a file, or one that it includes, leaves its database or changes others.

    Empty where nothing does. A ``\connect``, and what makes, drops or changes databases, or drops
    roles, at the beginning of a statement; and a dump in the custom format. Raises OSError.
    """
    return _look(file, file.parent, frozenset())


def _look(file: Path, folder: Path, above: frozenset[Path]) -> str:
    with file.open("rb") as opened:
        if opened.read(len(_CUSTOM)) == _CUSTOM:
            return (
                'it is a dump in the custom format: use command = "pg_restore ..." for it, or make '
                "a plain dump (without -Fc)"
            )
        if not opened.seek(0, 2):
            return ""
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if not _is_suspect(text):
                return ""
            return _Reader(text, file, folder, above).read()


def _is_suspect(text: mmap.mmap) -> bool:
    # Piece by piece, since nothing else in this process runs during a search.
    return any(
        _SUSPECT.search(text, begin, begin + _PIECE + _OVERLAP)
        or _SUSPECT_LINE.search(text, begin, begin + _PIECE + _OVERLAP)
        for begin in range(0, len(text), _PIECE)
    )


class _Reader:
    """Reads the statements of one file, and the commands for psql between them."""

    def __init__(self, text: mmap.mmap, file: Path, folder: Path, above: frozenset[Path]) -> None:
        self._text = text
        self._file = file
        self._folder = folder  # that psql runs in
        self._above = above

    def read(self) -> str:
        text = self._text
        begin = at = self._next_statement(len(_BOM) if text[: len(_BOM)] == _BOM else 0)
        while True:
            if begin == at and (found := _AT_BEGINNING.match(text, at)):
                return self._refused(found)
            token = _TOKEN.search(text, at)
            if token is None:
                return ""
            if token["end"]:
                copies = _FROM_STDIN.match(text, begin, token.end())
                after = self._after_data(token.end()) if copies else token.end()
                begin = at = self._next_statement(after)
            elif token["command"]:
                said, at = self._command(token)
                if said:
                    return said
                begin = at = self._next_statement(at)
            else:
                at = token.end()

    def _command(self, token: "re.Match[bytes]") -> tuple[str, int]:
        """Judge a command for psql; gives what is wrong with it, and where its line ends."""
        text = self._text
        if found := _LEAVES.match(text, token.start()):
            return self._refused(found), 0
        line = _END_OF_LINE.search(text, token.end())
        end = line.end() if line else len(text)
        match token["command"]:
            case b"\\i" | b"\\include" | b"\\ir" | b"\\include_relative":
                return self._include(token), end
            case b"\\copy" if _FROM_STDIN.match(text, token.start(), end):
                return "", self._after_data(token.end())
            case b"\\gexec" if found := _SUSPECT.search(text):
                return self._refused(found), 0  # a string that is run as a statement, perhaps
            case _:
                # One in the middle of a statement is read as its end: at worst a refusal in vain.
                return "", end

    def _include(self, token: "re.Match[bytes]") -> str:
        argument = _ARGUMENT.match(self._text, token.end())
        if argument is None:
            return ""
        name = (argument[1] or argument[2] or b"").decode(errors="surrogateescape")
        relative = token["command"] in {b"\\ir", b"\\include_relative"}
        file = (self._file.parent if relative else self._folder) / name
        above = self._above | {self._file}
        if file in above or not file.is_file():  # psql will say so
            return ""
        said = _look(file, self._folder, above)
        return f"{name}, which it includes: {said}" if said else ""

    def _next_statement(self, at: int) -> int:
        found = _BETWEEN.match(self._text, at)
        return found.end() if found else at

    def _after_data(self, at: int) -> int:
        found = _END_OF_DATA.search(self._text, at)
        return found.end() if found else len(self._text)

    def _refused(self, found: "re.Match[bytes]") -> str:
        line = self._text[: found.start()].count(b"\n") + 1
        what = " ".join(found[0].decode(errors="replace").split())
        if what.startswith("\\"):
            return f"line {line}: {what} leaves for another database: {_REMEDY}"
        return f"line {line}: {what.upper()} reaches beyond the database that it fills: {_REMEDY}"


_REMEDY = (
    "make the dump without --create (-C), and take out what concerns other databases and roles"
)
