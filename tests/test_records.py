import json
import math
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.records import (
    LONGEST_LINE,
    LONGEST_TEXT,
    MetricTold,
    Record,
    SectionBegan,
    StepBegan,
    StepEnded,
    SummaryTold,
    decode,
    encode,
)

TEXTS = st.one_of(
    st.text(st.characters(), max_size=30),  # lone surrogates included
    st.text(st.sampled_from("a\n\0\x1b\U0001f600\u202e\ud800"), min_size=480, max_size=700),
)
TIMES = st.floats(-1e9, 1e9)
IDS = st.integers(0, 2**53)
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), TEXTS
).filter(lambda value: not isinstance(value, float) or math.isfinite(value))
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(SectionBegan, at=TIMES, title=TEXTS),
    st.builds(StepBegan, at=TIMES, step=IDS, title=TEXTS, within=st.none() | IDS),
    st.builds(StepEnded, at=TIMES, step=IDS, error=TEXTS),
    st.builds(MetricTold, at=TIMES, name=TEXTS.filter(bool), value=VALUES),
    st.builds(SummaryTold, at=TIMES, text=TEXTS),
)


def cut(text: Any) -> Any:
    if not isinstance(text, str) or len(text) <= LONGEST_TEXT:
        return text
    return text[: LONGEST_TEXT - 1] + "…"


def with_cut_texts(record: Record) -> Record:
    match record:
        case SectionBegan() | StepBegan():
            return replace(record, title=cut(record.title))
        case StepEnded():
            return replace(record, error=cut(record.error))
        case MetricTold():
            return replace(record, name=cut(record.name), value=cut(record.value))
        case SummaryTold():
            return replace(record, text=cut(record.text))


@hypothesis.settings(deadline=None)
@given(RECORDS)
def test_a_record_is_read_as_it_was_written_but_for_long_texts(record: Record) -> None:
    line = encode(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= LONGEST_LINE
    read = decode(line)
    assert read == with_cut_texts(record)
    if isinstance(record, MetricTold) and isinstance(read, MetricTold):
        assert type(read.value) is type(record.value)


@hypothesis.settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_nothing(line: bytes) -> None:
    decode(line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_KINDS = st.sampled_from(["section", "step", "step-ended", "metric", "summary", "other"])
_KEYS = st.sampled_from(["at", "title", "step", "within", "error", "name", "value", "text"])


@hypothesis.settings(deadline=None)
@given(_KINDS, st.dictionaries(_KEYS, _JSON | st.floats() | IDS))
def test_any_json_is_a_record_that_can_be_written_again_or_nothing(
    kind: str, shape: dict[str, Any]
) -> None:
    record = decode(json.dumps({"record": kind, "at": 1} | shape).encode())
    if record is not None:
        assert decode(encode(record)) == record


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\0" * 100,
        b"\xff\xfe\xfd",
        b"\xef\xbb\xbf",
        b"[" * LONGEST_LINE,
        b'{"a":' * 3000,
        b'{"record": "section", "at": 1, "title": ' + b"[" * 10_000,
        b"null",
        b"[]",
        b'"section"',
        b'{"record": "section", "title": "no time"}',
        b'{"record": "section", "at": true, "title": "x"}',
        b'{"record": "section", "at": NaN, "title": "x"}',
        b'{"record": "section", "at": -Infinity, "title": "x"}',
        b'{"record": "section", "at": 1e10, "title": "x"}',
        b'{"record": "section", "at": ' + b"9" * 400 + b', "title": "x"}',
        b'{"record": "section", "at": ' + b"9" * 9000 + b', "title": "x"}',
        b'{"record": "section", "at": 1, "title": 7}',
        b'{"record": "step", "at": 1, "title": "no id"}',
        b'{"record": "step", "at": 1, "step": true, "title": "x"}',
        b'{"record": "step", "at": 1, "step": -1, "title": "x"}',
        b'{"record": "step", "at": 1, "step": 9007199254740993, "title": "x"}',
        b'{"record": "step", "at": 1, "step": 1.5, "title": "x"}',
        b'{"record": "step-ended", "at": 1}',
        b'{"record": "metric", "at": 1, "name": "", "value": 1}',
        b'{"record": "metric", "at": 1, "name": "x"}',
        b'{"record": "metric", "at": 1, "name": "x", "value": null}',
        b'{"record": "metric", "at": 1, "name": "x", "value": [1]}',
        b'{"record": "metric", "at": 1, "name": "x", "value": NaN}',
        b'{"record": "metric", "at": 1, "name": "x", "value": 9007199254740993}',
        b'{"record": "summary", "at": 1}',
        b'{"record": "summary", "at": 1, "text": "' + b"x" * LONGEST_LINE + b'"}',
    ],
)
def test_what_is_no_record(line: bytes) -> None:
    assert decode(line) is None


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (
            b'{"record":"step","at":3,"step":1,"title":"x","more":1}\r\n',
            StepBegan(at=3, step=1, title="x"),
        ),
        (
            b'{"record":"step","at":3,"step":1,"title":"x","within":"y"}',
            StepBegan(at=3, step=1, title="x"),
        ),
        (
            b'{"record":"step-ended","at":3,"step":1,"error":["y"]}',
            StepEnded(at=3, step=1),
        ),
    ],
)
def test_what_is_understood_all_the_same(line: bytes, record: Record) -> None:
    assert decode(line) == record


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2**53 + 1, "9007199254740993"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        pytest.param(10**5000, "a number of more than 4,000 digits", id="huge"),
        pytest.param(10**1000, "1" + "0" * 498 + "…", id="large"),
    ],
)
def test_a_number_that_no_reader_takes_is_told_in_words(value: float, told: str) -> None:
    assert decode(encode(MetricTold(at=1, name="x", value=value))) == MetricTold(
        at=1, name="x", value=told
    )
