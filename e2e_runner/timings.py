"""Reads a file of durations, by which every machine cuts a suite into the same shards."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e_runner.errors import UsageError
from e2e_runner.text import one_line, size
from e2e_runner.toml_lines import TomlError, parse_toml

_REPORT = "e2e-run/1"
_LARGEST = 64 * 1024**2  # bytes
_REMEDY = (
    "name a json report (--report json=FILE), or a JSON or TOML file with a table of paths and "
    'seconds, as in "examples/a.py" = 1.5'
)


def read_timings(file: Path) -> dict[str, float]:
    """Read seconds by path from a json report, or from a table in JSON or TOML.

    A TOML file is known by its suffix. Raises UsageError.
    """
    try:
        # Not by its size: a pipe has none.
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except OSError as error:
        raise _error(file, f"cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise _error(file, f"is larger than {size(_LARGEST)}")
    content = _toml(file, data) if file.suffix == ".toml" else _json(file, data)
    if not isinstance(content, dict):
        raise _error(file, f"holds {_kind(content)}, not a table of paths and seconds")
    if "schema" in content:
        return _of_report(file, content)
    return {path: _seconds(file, path, value) for path, value in content.items()}


def _toml(file: Path, data: bytes) -> Any:
    try:
        return parse_toml(data.decode()).data
    except TomlError as error:
        raise _error(file, f"is not TOML: line {error.line}: {error.message}") from error
    except UnicodeDecodeError as error:
        raise _error(file, f"is not UTF-8: {error.reason} at byte {error.start}") from error


def _json(file: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise _error(file, f"is not JSON: line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise _error(file, f"is not JSON: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise _error(file, "is nested too deeply") from error
    except ValueError as error:  # a number of too many digits
        raise _error(file, f"is not JSON: {error}") from error


def _of_report(file: Path, report: Mapping[str, Any]) -> dict[str, float]:
    """Take the durations of the examples that a report tells of, as far as they were started."""
    if report["schema"] != _REPORT:
        raise _error(file, f"is no report that durations can be taken from: {_schema(report)}")
    examples = report.get("examples")
    if not isinstance(examples, list):
        raise _error(file, 'is a report without a list of "examples"')
    found = {}
    for number, example in enumerate(examples):
        if not isinstance(example, dict) or not isinstance(example.get("path"), str):
            raise _error(file, f"example {number + 1} of the report has no path")
        if example.get("attempts"):
            path = example["path"]
            found[path] = _seconds(file, path, example.get("duration"))
    return found


def _schema(report: Mapping[str, Any]) -> str:
    return f"its schema is {one_line(str(report['schema']))[:40]!r}, not {_REPORT!r}"


def _seconds(file: Path, path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(file, f"{one_line(path)!r} has {_kind(value)} for seconds")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise _error(file, f"{one_line(path)!r} cannot take {seconds:g} seconds")
    return seconds


def _kind(value: object) -> str:
    """Name a kind of value as TOML and JSON do."""
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "a table", list: "a list", str: "a text", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else "a date or time")


def _error(file: Path, what: str) -> UsageError:
    return UsageError(f"--timings {one_line(str(file))}: {what}.", remedy=_REMEDY)
