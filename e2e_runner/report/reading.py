"""Reads ``json`` reports back: of this version and others, whole or not, written by hand or not."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from e2e_runner import text
from e2e_runner.model import NetworkMode, ResultRecord, RunRecord, Status
from e2e_runner.report.shape import SCHEMA

_FAMILY = SCHEMA.partition("/")[0]
_EVENTS = "is a `jsonl` report; a `json` report is needed"
_LONGEST_SHOWN = 40  # characters of a wrong value


class NotAReport(ValueError):  # noqa: N818 - says what the text is not
    """The text is no ``json`` report; the message says why, as the end of a sentence about the file."""


def read_report(data: bytes) -> tuple[RunRecord, tuple[ResultRecord, ...]]:
    """Read the run and the results of a report; raises NotAReport.

    Only the paths and the statuses of examples must be there. Of a start that is not told the time is
    0, of an identifier that is not told it is empty. Keys that are unknown are ignored, and so are
    values that only another version knows, except for statuses.
    """
    document = _parse(data)
    if not isinstance(document, dict):
        raise NotAReport(f"is JSON, but no report: it is {_kind(document)}, not an object")
    _check_schema(document)
    run = _run(document.get("run"))
    examples = document.get("examples")
    if not isinstance(examples, list):
        raise NotAReport(f"has no list of examples: `examples` is {_kind(examples)}")
    results = tuple(_result(shape, f"examples[{n}]", run) for n, shape in enumerate(examples))
    seen: set[str] = set()
    for result in results:
        if result.path in seen:
            raise NotAReport(f"tells of {_shown(result.path)} twice")
        seen.add(result.path)
    return run, results


def _parse(data: bytes) -> Any:
    if not data.strip():
        raise NotAReport("is empty")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise NotAReport("is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        if _is_event_stream(data):
            raise NotAReport(_EVENTS) from None
        where = f"line {error.lineno}, column {error.colno}"
        raise NotAReport(f"is no JSON, or was cut off: {error.msg} at {where}") from None
    except RecursionError:
        raise NotAReport("is nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise NotAReport(f"cannot be read: {error}") from None


def _is_event_stream(data: bytes) -> bool:
    try:
        first = json.loads(data.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "event" in first


def _check_schema(document: Mapping[str, Any]) -> None:
    if "event" in document:
        raise NotAReport(_EVENTS)
    schema = document.get("schema")
    if schema == SCHEMA:
        return
    if schema is None:
        raise NotAReport(f'is JSON, but no report: it lacks "schema": "{SCHEMA}"')
    if isinstance(schema, str) and schema.startswith(f"{_FAMILY}/"):
        raise NotAReport(
            f"has the schema {_shown(schema)} of another version; this one reads {SCHEMA}"
        )
    raise NotAReport(f"has the schema {_shown(schema)}, which is not {SCHEMA}")


def _run(shape: Any) -> RunRecord:
    if shape is None:
        shape = {}
    if not isinstance(shape, dict):
        raise NotAReport(f"has a `run` that is {_kind(shape)}, not an object")
    isolation = shape.get("isolation")
    tiers = isolation if isinstance(isolation, dict) else {}
    return RunRecord(
        id=_words(shape, "id"),
        started=_moment(shape.get("started")),
        duration=_number(shape, "duration", "run"),
        exit_code=_count(shape, "exit_code", "run"),
        interrupted=shape.get("interrupted") is True,
        jobs=_count(shape, "jobs", "run") or 1,
        network=_words(tiers, "network"),
        processes=_words(tiers, "processes"),
        python=_words(shape, "python"),
        version=_words(shape, "version"),
        shard=_shard(shape.get("shard")),
    )


def _result(shape: Any, where: str, run: RunRecord) -> ResultRecord:
    if not isinstance(shape, dict):
        raise NotAReport(f"has in {where} {_kind(shape)}, not an object")
    path = shape.get("path")
    if not isinstance(path, str) or not path:
        raise NotAReport(f"has in {where} no path: `path` is {_shown(path)}")
    status = shape.get("status")
    if not isinstance(status, str) or status not in list(Status):
        accepted = ", ".join(Status)
        raise NotAReport(
            f"has in {where} ({_shown(path)}) the status {_shown(status)}; known are {accepted}"
        )
    network = shape.get("network")
    listened = shape.get("listened")
    said = shape.get("repeat")
    repeat = said if isinstance(said, dict) else {}
    return ResultRecord(
        run=run.id,
        started=run.started,
        path=path,
        status=Status(status),
        cause=_words(shape, "cause") or None,
        reason=_words(shape, "reason"),
        duration=_number(shape, "duration", where) or 0.0,
        cpu=_number(shape, "cpu", where),
        max_rss=_count(shape, "max_rss", where),
        attempts=_count(shape, "attempts", where) or 0,
        repeats=_count(repeat, "runs", f"{where}.repeat") or 1,
        repeats_passed=_count(repeat, "passed", f"{where}.repeat") or 0,
        network=NetworkMode(network) if network in list(NetworkMode) else None,
        listened=tuple(port for port in listened if isinstance(port, int))
        if isinstance(listened, list)
        else (),
    )


def _words(shape: Mapping[str, Any], key: str) -> str:
    value = shape.get(key)
    return value if isinstance(value, str) else ""


def _number(shape: Mapping[str, Any], key: str, where: str) -> float | None:
    value = shape.get(key)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number >= 0:
            return number
    raise NotAReport(f"has in {where} as `{key}` {_shown(value)}, which is no number of 0 or more")


def _count(shape: Mapping[str, Any], key: str, where: str) -> int | None:
    value = shape.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise NotAReport(
        f"has in {where} as `{key}` {_shown(value)}, which is no whole number of 0 or more"
    )


def _shard(shape: Any) -> str:
    """Give INDEX/COUNT; empty where it is none."""
    if not isinstance(shape, dict):
        return ""
    index, count = (_count(shape, key, "run.shard") for key in ("index", "count"))
    return f"{index}/{count}" if index and count else ""


def _moment(value: Any) -> float:
    """Read an ISO 8601 time as seconds since the epoch; 0 where it is none."""
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _kind(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def _shown(value: Any) -> str:
    return text.shorten(text.one_line(json.dumps(value, ensure_ascii=False)), _LONGEST_SHOWN)
