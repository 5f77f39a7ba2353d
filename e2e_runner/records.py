"""The records that a script writes about itself: steps, metrics, sections. Pure.

A run names a file in ``E2E_RUN_RECORDS``, and `e2e_runner.kit` appends a line of JSON to it for each
thing that it tells. What stands there is a claim of the script, so that a reader takes any bytes:
`decode` gives None for what is no record, and bounds what is one.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

VARIABLE = "E2E_RUN_RECORDS"

LONGEST_TEXT = 500  # characters of a title, a name or an error; the rest is cut
LONGEST_LINE = 16384  # bytes; a longer line is no record
_LARGEST = 2**53  # of ids and of whole numbers: beyond it, readers of JSON lose digits
_LONGEST_TIME = 1e9  # seconds

Value: TypeAlias = int | float | str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionBegan:
    """What follows belongs to another part of the story."""

    at: float  # on the monotonic clock of the machine, in seconds; as all of these
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBegan:
    """A step began; `step` tells it from the others of this script, `within` is the one around it."""

    at: float
    step: int
    title: str
    within: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """A step ended. `error` is why it failed, in one line; empty when it did not.

    One that was `cancelled` was given up, and did not fail; `error` then says what became of it.
    """

    at: float
    step: int
    error: str = ""
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTold:
    """A figure worth telling; a later one of the same name replaces it."""

    at: float
    name: str
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryTold:
    """What the script says of itself at its end."""

    at: float
    text: str


Record = SectionBegan | StepBegan | StepEnded | MetricTold | SummaryTold


def encode(record: Record) -> bytes:
    r"""Give the line of a record, with its newline.

    Long texts are cut, and a number that no reader takes is told in words; `step`, `within` and `at`
    are the writer's own and must be in their ranges.

    >>> encode(SectionBegan(at=1.5, title="Orders"))
    b'{"record": "section", "at": 1.5, "title": "Orders"}\n'
    """
    return json.dumps(_shape(record), ensure_ascii=True).encode("ascii") + b"\n"


def _shape(record: Record) -> dict[str, Any]:
    match record:
        case SectionBegan():
            return {"record": "section", "at": record.at, "title": _cut(record.title)}
        case StepBegan():
            return {
                "record": "step",
                "at": record.at,
                "step": record.step,
                "title": _cut(record.title),
                "within": record.within,
            }
        case StepEnded():
            return {
                "record": "step-ended",
                "at": record.at,
                "step": record.step,
                "error": _cut(record.error),
                "cancelled": record.cancelled,
            }
        case MetricTold():
            value = _value(record.value)
            if value is None:
                value = _in_words(record.value)
            return {"record": "metric", "at": record.at, "name": _cut(record.name), "value": value}
        case SummaryTold():
            return {"record": "summary", "at": record.at, "text": _cut(record.text)}
        case _:
            assert_never(record)


def decode(line: bytes) -> Record | None:
    """Read a line; None for what is no record. Never raises.

    >>> decode(b'{"record": "metric", "at": 2, "name": "orders", "value": 3}')
    MetricTold(at=2.0, name='orders', value=3)
    >>> decode(b"nonsense")
    """
    if len(line) > LONGEST_LINE:
        return None
    try:
        shape = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(shape, dict):
        return None
    at = _number(shape.get("at"))
    return None if at is None else _read(shape, at)


def _read(shape: dict[str, Any], at: float) -> Record | None:
    match shape:
        case {"record": "section", "title": str(title)}:
            return SectionBegan(at=at, title=_cut(title))
        case {"record": "step", "step": int(step), "title": str(title)} if _is_id(step):
            within = shape.get("within")
            return StepBegan(
                at=at, step=step, title=_cut(title), within=within if _is_id(within) else None
            )
        case {"record": "step-ended", "step": int(step)} if _is_id(step):
            error = shape.get("error")
            return StepEnded(
                at=at,
                step=step,
                error=_cut(error) if isinstance(error, str) else "",
                cancelled=shape.get("cancelled") is True,
            )
        case {"record": "metric", "name": str(name)} if name:
            value = _value(shape.get("value"))
            return None if value is None else MetricTold(at=at, name=_cut(name), value=value)
        case {"record": "summary", "text": str(text)}:
            return SummaryTold(at=at, text=_cut(text))
    return None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST  # bool is an int for Python, and no id


def _number(value: object) -> float | None:
    """Take a time: seconds, in a range that no machine's clock leaves."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LONGEST_TIME <= value <= _LONGEST_TIME else None  # no NaN is between


def _value(value: object) -> Value | None:
    match value:
        case str():
            return _cut(value)
        case bool():
            return value
        case int():
            return value if abs(value) <= _LARGEST else None
        case float():
            return value if math.isfinite(value) else None
    return None


def _in_words(value: Value) -> str:
    try:
        return _cut(str(value))
    except ValueError:  # more digits than Python writes
        return "a number of more than 4,000 digits"
