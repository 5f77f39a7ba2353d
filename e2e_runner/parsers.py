"""The parsers of setting values.

A parser takes what a flag or an environment variable gives (text) or what TOML gives (typed values)
and returns the value, or raises `ValueError` with one clause that says what is wrong.
"""

import math
import re
from collections.abc import Callable, Iterable
from datetime import date, time
from pathlib import Path
from typing import Any

from e2e_runner.addresses import PLACEHOLDERS, is_postgres_url, parse_url, placeholders
from e2e_runner.model import (
    DatabaseDefinition,
    Endpoint,
    HttpProbe,
    LogProbe,
    PostgresMode,
    Probe,
    ReportFormat,
    ServerAddress,
    Shard,
    TcpProbe,
)

Parser = Callable[[object], Any]

MAX_JOBS = 1000
MAX_SHARDS = 10_000
MAX_PORT = 65535
_LONGEST_DURATION = 366 * 86400.0
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SHOWN = 60  # characters of a rejected value that a message quotes


class NestedError(ValueError):
    """What is wrong inside a table; `path` leads from the setting to the key."""

    def __init__(self, path: tuple[str, ...], message: str, *, accepted: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.accepted = accepted  # other than for the whole setting


class UnknownKeyError(NestedError):
    """A key of a table that means nothing; `known` are those that do."""

    def __init__(self, path: tuple[str, ...], known: Iterable[str]) -> None:
        self.known = tuple(known)
        super().__init__(path, "unknown key", accepted=", ".join(self.known))


def quoted(value: object) -> str:
    """Show a rejected value as TOML writes it, cut to a length that fits a message.

    >>> print(quoted(True), quoted("on"), quoted([1, False]), quoted({"port": 8000}))
    true 'on' [1, false] { port = 8000 }
    """
    shown = _written(value)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"


def _written(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(map(_written, value))}]"
        case dict():
            pairs = ", ".join(f"{_key(key)} = {_written(each)}" for key, each in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case date() | time():
            return value.isoformat()
        case _:
            return repr(value)


def _key(key: object) -> str:
    return key if isinstance(key, str) and _BARE_KEY.fullmatch(key) else repr(key)


def _items(value: object) -> list[object]:
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        raise ValueError("a table stands where a list belongs")  # noqa: TRY004 - parsers raise one type
    return [value]


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def parse_text(value: object) -> str:
    """Read a string as it stands."""
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not a string")  # noqa: TRY004 - parsers raise one type
    if "\0" in value:
        raise ValueError(f"{quoted(value)} contains a NUL character")
    return value


def parse_name(value: object) -> str:
    """Read a string that says something, without the space around it."""
    text = parse_text(value).strip()
    if not text:
        raise ValueError("an empty string says nothing")
    return text


def _argument(value: object) -> str:
    """Read one command-line argument or environment value: numbers are written as TOML wrote them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return parse_text(value)


# --- numbers -------------------------------------------------------------------------------------

_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?",
    re.ASCII,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d+", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 20  # digits; what is longer is out of every range
_SMALLEST_SIZE = 1024
_LARGEST_SIZE = 1024**5
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        # An integer too large for a float is refused by comparison, before it is converted.
        return float(value) if 0 <= value <= _LONGEST_DURATION else None
    text = value.strip().lower() if isinstance(value, str) else ""
    if not text or len(text) > 4 * _LONGEST_NUMBER:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if not found:
        return None
    hours, minutes, seconds, millis = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000


def parse_duration(value: object) -> float:
    """Read a duration, in seconds.

    >>> [parse_duration(v) for v in ("90", "90s", "1m30s", "500ms", "1h", 2, 0.5)]
    [90.0, 90.0, 90.0, 0.5, 3600.0, 2.0, 0.5]
    """
    seconds = _seconds(value)
    if seconds is None or not math.isfinite(seconds):
        raise ValueError(f"{quoted(value)} is not a duration")
    if seconds > _LONGEST_DURATION:
        raise ValueError(f"{quoted(value)} is longer than a year")
    return seconds


def parse_positive_duration(value: object) -> float:
    """Read a duration above zero, in seconds."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{quoted(value)} is no time at all")
    return seconds


def parse_size(value: object) -> int:
    """Read a size, in bytes, of at least 1 KiB.

    >>> [parse_size(v) for v in ("64MiB", "1GB", "4096", 4096)]
    [67108864, 1000000000, 4096, 4096]
    """
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        unit = _UNITS.get(found.group(2).lower()) if found else None
        if found is None or unit is None or len(found.group(1)) > _LONGEST_NUMBER:
            raise ValueError(f"{quoted(value)} is not a size")
        number = found.group(1)
        count = int(number) * unit if number.isdigit() else int(float(number) * unit)
    if not _SMALLEST_SIZE <= count <= _LARGEST_SIZE:
        raise ValueError(f"{quoted(value)} is out of range")
    return count


def integer(*, least: int, most: int) -> Parser:
    """Make a parser of integers from `least` to `most`."""

    def parse(value: object) -> int:
        if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
            text = value.strip()
            number: object = int(text) if _INTEGER.fullmatch(text) else None
        else:
            number = value
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{quoted(value)} is not a whole number")  # noqa: TRY004 - parsers raise one type
        if not least <= number <= most:
            raise ValueError(f"{quoted(value)} is out of range")
        return number

    return parse


def parse_jobs(value: object) -> int | None:
    """Read how many examples run at a time; ``auto`` is None.

    >>> parse_jobs("auto"), parse_jobs(4)
    (None, 4)
    """
    if isinstance(value, str) and value.strip().lower() == "auto":
        return None
    number: int = integer(least=1, most=MAX_JOBS)(value)
    return number


def parse_shard(value: object) -> Shard:
    """Read ``I/N``: which part, and of how many.

    >>> parse_shard("2/4")
    Shard(index=2, count=4)
    """
    index, slash, count = parse_name(value).partition("/")
    number = integer(least=1, most=MAX_SHARDS)
    if not slash:
        raise ValueError(f"{quoted(value)} is not I/N")
    shard = Shard(index=number(index), count=number(count))
    if shard.index > shard.count:
        raise ValueError(f"{quoted(value)}: there is no part {shard.index} of {shard.count}")
    return shard


def parse_flag(value: object) -> bool:
    """Read a truth value; text as CI systems write it."""
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"{quoted(value)} is neither true nor false")


# --- text ----------------------------------------------------------------------------------------


def choice(names: Iterable[str], make: Callable[[str], Any]) -> Parser:
    """Make a parser that accepts exactly `names` and hands the one given to `make`."""
    accepted = tuple(names)

    def parse(value: object) -> Any:
        text = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(text, str) or text not in accepted:
            raise ValueError(f"{quoted(value)} is not one of them")
        return make(text)

    return parse


def parse_glob(value: object) -> str:
    """Read one glob pattern."""
    text = parse_name(value)
    if text.startswith("!"):
        raise ValueError(f"{quoted(value)} negates, which is not supported")
    return text


def parse_regex(value: object) -> str:
    """Read a regular expression; returns its pattern."""
    text = parse_text(value)
    if not text:
        raise ValueError("an empty pattern matches everything")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{quoted(text)} is not a regular expression ({error})") from error
    return text


def parse_tag(value: object) -> str:
    """Read one tag."""
    text = parse_name(value)
    if re.search(r"[\s,]", text):
        raise ValueError(f"{quoted(value)} is not one word")
    return text


def parse_report(value: object) -> tuple[ReportFormat, str]:
    """Read ``FORMAT=PATH``."""
    name, equals, path = parse_text(value).partition("=")
    if not equals or not path:
        raise ValueError(f"{quoted(value)} is not FORMAT=PATH")
    try:
        return ReportFormat(name.strip().lower()), path
    except ValueError:
        raise ValueError(f"there is no report format {quoted(name)}") from None


def list_of(parse_item: Parser) -> Parser:
    """Make a parser of lists (one value alone is a list of one), each item once, in order."""

    def parse(value: object) -> tuple[Any, ...]:
        return _unique(parse_item(item) for item in _items(value))

    return parse


def parse_arguments(value: object) -> tuple[str, ...]:
    """Read a list of command-line arguments, repeats kept."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{quoted(value)} is not a list")  # noqa: TRY004 - parsers raise one type
    return tuple(_argument(item) for item in value)


def parse_command(value: object) -> tuple[str, ...]:
    """Read a command: a list of words, or one string that is split as a shell would."""
    if isinstance(value, str):
        import shlex

        try:
            words = tuple(shlex.split(parse_text(value)))
        except ValueError as error:
            raise ValueError(f"{quoted(value)} is not a command ({error})") from error
    else:
        words = parse_arguments(value)
    if not words or not words[0]:
        raise ValueError("an empty command runs nothing")
    return words


# --- tables --------------------------------------------------------------------------------------


def parse_environment(value: object) -> dict[str, str]:
    """Read environment variables: a table, or a list of ``NAME=VALUE``."""
    if isinstance(value, dict):
        pairs = list(value.items())
    else:
        pairs = []
        for item in _items(value):
            name, equals, content = parse_text(item).partition("=")
            if not equals:
                raise ValueError(f"{quoted(item)} is not NAME=VALUE")
            pairs.append((name, content))
    result = {}
    for name, content in pairs:
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{quoted(name)} is not a name of an environment variable")
        try:
            result[name] = _argument(content)
        except ValueError as error:
            raise ValueError(f"{quoted(name)}: {error}") from error
    return result


def parse_interpreters(value: object) -> dict[str, str]:
    """Read a table from file suffix to command, as in ``{".sh": "bash"}``."""
    if not isinstance(value, dict):
        raise ValueError(f"{quoted(value)} is not a table")  # noqa: TRY004 - parsers raise one type
    result = {}
    for suffix, command in value.items():
        if not suffix.startswith(".") or len(suffix) == 1 or "/" in suffix:
            raise ValueError(f"{quoted(suffix)} is not a file suffix")
        if not isinstance(command, str):
            raise ValueError(f"{quoted(suffix)}: {quoted(command)} is not a string")  # noqa: TRY004 - same
        parse_command(command)
        result[suffix] = command
    return result


# --- readiness -----------------------------------------------------------------------------------


def parse_probe(value: object) -> Probe:
    """Read how a server's readiness is probed.

    >>> parse_probe("tcp://127.0.0.1:8000")
    TcpProbe(host='127.0.0.1', port=8000)
    """
    text = parse_name(value)
    if text.startswith("log:"):
        return LogProbe(pattern=parse_regex(text.removeprefix("log:").strip()))
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{quoted(text)} is not a URL ({error})") from error
    if parts.scheme not in {"http", "https", "tcp"}:
        raise ValueError(f"{quoted(text)} names no probe")
    if not host or port == 0 or re.search(r"\s", text):
        raise ValueError(f"{quoted(text)} names no server")
    if parts.scheme != "tcp":
        return HttpProbe(url=text)
    if port is None or parts.path not in {"", "/"} or parts.query or parts.username is not None:
        raise ValueError(f"{quoted(text)} is not tcp://HOST:PORT")
    return TcpProbe(host=host, port=port)


def parse_endpoint(value: object) -> Endpoint:
    """Read ``HOST:PORT``; an IPv6 address stands in brackets.

    >>> parse_endpoint("[::1]:6379")
    Endpoint(host='::1', port=6379)
    """
    text = parse_name(value)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    if not colon or not name or re.search(r"[\s/@,]", name) or (":" in name) is not bracketed:
        raise ValueError(f"{quoted(value)} is not HOST:PORT")
    return Endpoint(host=name.lower(), port=integer(least=1, most=MAX_PORT)(port))


# --- PostgreSQL ----------------------------------------------------------------------------------

_DATABASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*", re.ASCII)
_SUFFIX = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_LONGEST_SUFFIX = 24  # bytes that the name of an attempt leaves free of PostgreSQL's 63
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHORTEST_PREFIX = 4
_DEFINITION = ("command", "env", "suffix", "template")  # the keys
_MODES = {mode.value: mode for mode in PostgresMode if mode is not PostgresMode.URL}


def parse_server(value: object) -> PostgresMode | ServerAddress:
    """Read which server examples get. No message quotes what may hold a password."""
    text = value.strip() if isinstance(value, str) else ""
    if mode := _MODES.get(text.lower()):
        return mode
    if is_postgres_url(text):
        return parse_url(text)
    shown = quoted(text) if re.fullmatch(r"[\w-]+", text) else "this"
    raise ValueError(f"{shown} is neither one of the names nor a URL of a PostgreSQL server")


def parse_server_url(value: object) -> ServerAddress:
    """Read the URL of a server. No message quotes it: it may hold a password."""
    return parse_url(value.strip() if isinstance(value, str) else "")


def parse_wants_postgres(value: object) -> bool:
    """Read a truth value; a table in its place is not quoted, for it may hold a password."""
    if isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - parsers raise one type
            "a table stands where true or false belongs: the server is a setting of the whole run"
        )
    return parse_flag(value)


def parse_database_pattern(value: object) -> str:
    """Read which databases may be dropped: a literal beginning, or a glob when it has a star."""
    text = parse_text(value)
    if "*" not in text and len(text) < _SHORTEST_PREFIX:
        raise ValueError(f"{quoted(text)} is too short: too many names begin so")
    if not text.strip("*"):
        raise ValueError(f"{quoted(text)} matches every database")
    return text


def parse_templates(value: object) -> dict[str, str]:
    """Read variables whose values have placeholders; only their form is checked."""
    if not isinstance(value, dict):
        raise ValueError(f"{quoted(value)} is not a table")  # noqa: TRY004 - parsers raise one type
    result = parse_environment(value)
    for name, template in result.items():
        try:
            placeholders(template)
        except ValueError as error:
            raise NestedError((name,), f"{error}") from error
    return result


def parse_databases(value: object) -> tuple[DatabaseDefinition, ...]:
    """Read a table of databases. Paths stay as written; no two share a suffix or a variable."""
    if not isinstance(value, dict):
        raise ValueError(f"{quoted(value)} is not a table")  # noqa: TRY004 - parsers raise one type
    found: list[DatabaseDefinition] = []
    for name, table in value.items():
        definition = _definition(name, table)
        for at, other in enumerate(found):
            if _suffix(definition, len(found)) == _suffix(other, at):
                raise NestedError(
                    (name,), f"its name would be that of {other.name}: the same suffix"
                )
            for variable in definition.env:
                if variable in other.env:
                    raise NestedError((name, "env"), f"{variable} is given by {other.name} already")
        found.append(definition)
    return tuple(found)


def parse_wanted_databases(
    value: object,
) -> tuple[DatabaseDefinition, ...] | tuple[str, ...]:
    """Read names of databases, or a table that defines them."""
    if isinstance(value, dict):
        return parse_databases(value)
    names = _unique(parse_name(item) for item in _items(value))
    for name in names:
        _check_database(name, (name,))
    return names


def _suffix(definition: DatabaseDefinition, index: int) -> str:
    if definition.suffix is None:
        return f"_{definition.name}" if index else ""
    return definition.suffix


def _definition(name: str, table: object) -> DatabaseDefinition:
    _check_database(name, (name,))
    if not isinstance(table, dict):
        raise NestedError((name,), f"{quoted(table)} is not a table")
    for key in table:
        if key not in _DEFINITION:
            raise UnknownKeyError((name, key), _DEFINITION)

    def read(key: str, parse: Parser, absent: Any) -> Any:
        try:
            return parse(table[key]) if key in table else absent
        except ValueError as error:
            raise NestedError((name, key), str(error)) from error

    return DatabaseDefinition(
        name=name,
        env=read("env", list_of(_parse_variable), ()),
        suffix=read("suffix", _parse_suffix, None),
        template=tuple(map(Path, read("template", list_of(parse_name), ()))),
        command=read("command", parse_command, ()),
    )


def _check_database(name: str, path: tuple[str, ...]) -> None:
    if not _DATABASE.fullmatch(name) or len(name) >= _LONGEST_SUFFIX:
        raise NestedError(
            path,
            f"{quoted(name)} is no name for a database",
            accepted=f"up to {_LONGEST_SUFFIX - 1} ASCII letters, digits, _ and -",
        )
    if name in PLACEHOLDERS:
        raise NestedError(
            path,
            f"{quoted(name)} is a placeholder of its own in `postgres.env`: choose another name",
        )


def _parse_suffix(value: object) -> str:
    text = parse_text(value)
    if not _SUFFIX.fullmatch(text) or len(text) > _LONGEST_SUFFIX:
        raise ValueError(
            f"{quoted(text)} is no suffix of up to {_LONGEST_SUFFIX} ASCII letters, digits, _ and -"
        )
    return text


def _parse_variable(value: object) -> str:
    text = parse_name(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a name of an environment variable")
    return text
