"""``json`` reports read back: those that e2e-run wrote, and whatever else is handed in."""

import json
from typing import Any

import past_runs
import pytest
import report_history
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.model import NetworkMode, Status
from e2e_runner.report.json_report import render_json
from e2e_runner.report.reading import NotAReport, read_report
from e2e_runner.state import RunState
from e2e_runner.text import one_line

MINIMAL: dict[str, Any] = {
    "schema": "e2e-run/1",
    "examples": [{"path": "a.py", "status": "passed"}],
}


def written(letters: str) -> bytes:
    """Have the reporter write a report on an example for each letter."""
    results = [past_runs.result(c, path=f"{n}.py", duration=1.5) for n, c in enumerate(letters)]
    state = RunState()
    for event in report_history.history(results, exit_code=1, run=past_runs.info(0)):
        state.apply(event)
    return "".join(render_json(state)).encode()


def data(shape: Any) -> bytes:
    return json.dumps(shape).encode()


def with_example(**more: Any) -> bytes:
    return data({**MINIMAL, "examples": [{**MINIMAL["examples"][0], **more}]})


def with_run(**more: Any) -> bytes:
    return data({**MINIMAL, "run": more})


def complaint(report: bytes) -> str:
    with pytest.raises(NotAReport) as caught:
        read_report(report)
    message = str(caught.value)
    assert one_line(message) == message
    assert len(message) < 250
    return message


def test_what_was_written_is_read() -> None:
    run, results = read_report(written("pft~!sbn"))
    assert (run.id, run.started, run.duration) == (past_runs.run_id(0), past_runs.START, 8.0)
    assert (run.exit_code, run.interrupted, run.jobs) == (1, False, 2)
    assert (run.network, run.processes, run.version) == ("namespace", "cgroup", "0.1.0")
    assert run.python == ".venv/bin/python"
    assert [each.status for each in results] == [past_runs.LETTERS[c] for c in "pft~!sbn"]
    failed = results[1]
    assert (failed.path, failed.cause, failed.reason) == ("1.py", "assertion", "exit code 1")
    assert (failed.duration, failed.attempts, failed.network) == (1.5, 1, NetworkMode.ISOLATED)
    assert (failed.run, failed.started) == (run.id, run.started)


def test_little_is_needed() -> None:
    run, (result,) = read_report(data(MINIMAL))
    assert (run.id, run.started, run.duration, run.exit_code, run.jobs) == ("", 0, None, None, 1)
    assert (result.path, result.status, result.duration) == ("a.py", Status.PASSED, 0)
    assert (result.repeats, result.repeats_passed) == (1, 0)


def test_a_byte_order_mark_and_spaces_do_no_harm() -> None:
    assert read_report(b"\xef\xbb\xbf " + data(MINIMAL) + b"\n\n")[1]


def test_what_another_version_adds_is_ignored() -> None:
    report = with_example(network="tunnelled", mood="good", repeat={"runs": 3, "passed": 2})
    ((result,), run) = read_report(report)[::-1]
    assert result.network is None
    assert (result.repeats, result.repeats_passed) == (3, 2)
    assert run.shard == ""


def test_a_shard_is_read_as_a_part_of_so_many() -> None:
    state = RunState()
    for event in report_history.history([past_runs.result("p")], cut=report_history.CUT):
        state.apply(event)
    assert read_report("".join(render_json(state)).encode())[0].shard == "1/2"


@pytest.mark.parametrize("shard", [None, "1/2", 7, [], {}, {"index": 1}, {"index": 0, "count": 2}])
def test_what_is_no_shard_is_none(shard: object) -> None:
    assert read_report(with_run(shard=shard))[0].shard == ""


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("2026-01-31T12:00:00+00:00", 1_769_860_800.0),
        ("2026-01-31T12:00:00Z", 1_769_860_800.0),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800.0),
        ("2026-01-31T12:00:00", 1_769_860_800.0),
        ("yesterday", 0.0),
        ("0001-01-01T00:00:00+14:00", 0.0),
        (17, 0.0),
        (None, 0.0),
    ],
)
def test_the_start_is_a_time_or_unknown(words: object, seconds: float) -> None:
    run, _ = read_report(with_run(started=words))
    assert max(run.started, 0.0) == seconds


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe{}", "is no UTF-8 text"),
        (b"<testsuites/>", "is no JSON, or was cut off: Expecting value at line 1, column 1"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"1" * 5000, "cannot be read: Exceeds the limit"),
        (b"[]", "is JSON, but no report: it is a list, not an object"),
        (b"null", "is JSON, but no report: it is nothing, not an object"),
        (b"{}", 'is JSON, but no report: it lacks "schema": "e2e-run/1"'),
        (
            b'{"schema": "e2e-run/2"}',
            'schema "e2e-run/2" of another version; this one reads e2e-run/1',
        ),
        (b'{"schema": "e2e-run-list/1"}', 'the schema "e2e-run-list/1", which is not e2e-run/1'),
        (b'{"schema": 1}', "the schema 1, which is not e2e-run/1"),
        (b'{"schema": "e2e-run/1"}', "has no list of examples: `examples` is nothing"),
        (data({**MINIMAL, "examples": {}}), "has no list of examples: `examples` is an object"),
        (data({**MINIMAL, "examples": [7]}), "has in examples[0] a number, not an object"),
        (data({**MINIMAL, "examples": [{}]}), "has in examples[0] no path: `path` is null"),
        (with_example(path=""), 'has in examples[0] no path: `path` is ""'),
        (
            with_example(status="great"),
            'examples[0] ("a.py") the status "great"; known are passed, ',
        ),
        (with_example(status=["passed"]), 'the status ["passed"]'),
        (with_example(duration="1s"), 'has in examples[0] as `duration` "1s", which is no number'),
        (with_example(duration=-1), "as `duration` -1, which is no number of 0 or more"),
        (with_example(duration=True), "as `duration` true"),
        (with_example(duration=float("nan")), "as `duration` NaN"),
        (with_example(duration=10**400), "as `duration` 1000"),
        (with_example(attempts=1.5), "as `attempts` 1.5, which is no whole number"),
        (with_example(repeat={"runs": "2"}), 'has in examples[0].repeat as `runs` "2"'),
        (data({**MINIMAL, "run": []}), "has a `run` that is a list, not an object"),
        (with_run(duration="long"), 'has in run as `duration` "long"'),
        (
            with_run(shard={"index": "1", "count": 2}),
            'has in run.shard as `index` "1", which is no',
        ),
        (with_run(exit_code="0"), 'has in run as `exit_code` "0"'),
        (data({**MINIMAL, "examples": MINIMAL["examples"] * 2}), 'tells of "a.py" twice'),
        (with_example(status="x\x1b[31m\u202e" * 99), "the status"),
    ],
)
def test_what_is_no_report_is_told(report: bytes, said: str) -> None:
    assert said in complaint(report)


@pytest.mark.parametrize("kept", [1, 100, 400, -5])
def test_a_report_that_was_cut_off(kept: int) -> None:
    assert "is no JSON, or was cut off: " in complaint(written("pp")[:kept])


def test_a_stream_of_events_is_told_apart() -> None:
    line = data({"event": "run-started", "schema": "e2e-run/1"})
    for report in (line, line + b"\n" + line + b"\n"):
        assert complaint(report) == "is a `jsonl` report; a `json` report is needed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "run": st.dictionaries(
                st.sampled_from(["id", "started", "duration", "jobs", "isolation", "shard"]), JSON
            ),
            "examples": st.lists(
                st.dictionaries(
                    st.sampled_from(["path", "status", "duration", "network", "listened", "cause"]),
                    JSON | st.sampled_from(["passed", "a.py"]),
                ),
                max_size=3,
            ),
        },
    )
)
def test_anything_is_read_or_complained_of(shape: dict[str, Any]) -> None:
    report = data({"schema": "e2e-run/1", **shape})
    try:
        run, results = read_report(report)
    except NotAReport:
        complaint(report)
    else:
        assert run.jobs >= 1
        assert len(results) == len(shape["examples"])


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_complained_of(report: bytes) -> None:
    with pytest.raises(NotAReport):
        read_report(report)
