import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_history import CUT, RUN, history, play, started

from e2e_runner.events import AttemptFinished, Warned
from e2e_runner.model import (
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    Metric,
    NetworkMode,
    NetworkTier,
    ReportFormat,
    ReportTarget,
    Result,
    Status,
    Step,
    StepOutcome,
)
from e2e_runner.report.document import DocumentReporter
from e2e_runner.report.json_report import render_json
from e2e_runner.report.targets import open_reports
from e2e_runner.state import RunState

FAILED = Result(
    path="examples/b.py",
    status=Status.FAILED,
    cause="exit",
    reason="exit code 1",
    exit_code=1,
    duration=1.9300001234,
    cpu=0.8,
    max_rss=61_200_000,
    tags=("slow",),
    ports=(8000,),
    leaks=(
        LeakedProcess(pid=4242, command="uvicorn app", ports=(8000,)),
        LeakedPort(port=8000, owner="pid 4242"),
        LeakedDatabase(name="test_example_ab12", owner="app", doubt="appeared while it ran"),
    ),
    attempts=1,
    log=".e2e-run/runs/run-1/examples/b.py.log",
    output_tail="Traceback\x1b[0m\n",
    output_cut=True,
    hints=("Do this.",),
    notes=("needed SIGKILL",),
    command="python examples/b.py",
    steps=(
        Step(title="log in", started=0.1234567, duration=0.5, outcome=StepOutcome.OK),
        Step(
            title="order\n\x1b[0m",
            section="Orders",
            depth=1,
            started=0.7,
            duration=1.2,
            outcome=StepOutcome.FAILED,
            error="3 != 2",
        ),
    ),
    happened_in=1,
    metrics=(Metric(name="orders", value=5), Metric(name="done", value=False)),
    summary="Nearly",
    network=NetworkMode.ISOLATED,
    listened=(8000, 8765),
    isolation_suspect="no DNS in its network",
    repeats=5,
    repeats_passed=3,
)
PASSED = Result(path="examples/a.py", status=Status.PASSED, exit_code=0, attempts=1)


def document(events: list[Any]) -> Any:
    return json.loads("".join(render_json(play(events, []))))


def test_the_whole_document() -> None:
    events = history(
        [FAILED, PASSED],
        exit_code=1,
        deselected={"examples/c.py": "tag websocket"},
        not_examples={"examples/demo_data.py": "imported by b.py"},
        warnings=("config is odd",),
        before_end=[Warned(at=1.5, message="port is taken", path="examples/b.py")],
        run=replace(
            RUN,
            network=NetworkTier.USER_NAMESPACE,
            network_notes=("network namespace: unshare: Operation not permitted",),
        ),
        cut=CUT,
        last_failed="last failed: 2 of 3 examples",
    )
    found = document(events)
    examples = found.pop("examples")
    assert found == {
        "schema": "e2e-run/1",
        "run": {
            "id": "run-1",
            "started": "2023-11-14T22:13:20.250+00:00",
            "duration": 2.0,
            "exit_code": 1,
            "interrupted": False,
            "jobs": 2,
            "isolation": {
                "network": "user-namespace",
                "processes": "cgroup",
                "notes": [],
                "network_notes": ["network namespace: unshare: Operation not permitted"],
            },
            "shard": {"index": 1, "count": 2, "basis": "3f9a2c", "by": "timings"},
            "last_failed": True,
            "postgres": None,
            "python": ".venv/bin/python",
            "version": "0.1.0",
        },
        "totals": {"passed": 1, "failed": 1, "skipped": 1},
        "not_examples": [{"path": "examples/demo_data.py", "reason": "imported by b.py"}],
        "warnings": [
            {"message": "config is odd", "path": None},
            {"message": "port is taken", "path": "examples/b.py"},
        ],
    }
    assert [(example["path"], example["status"]) for example in examples] == [
        ("examples/a.py", "passed"),
        ("examples/b.py", "failed"),
        ("examples/c.py", "skipped"),
    ]
    assert examples[1] == {
        "path": "examples/b.py",
        "status": "failed",
        "cause": "exit",
        "reason": "exit code 1",
        "exit_code": 1,
        "signal": None,
        "duration": 1.93,
        "cpu": 0.8,
        "max_rss": 61200000,
        "tags": ["slow"],
        "ports": [8000],
        "network": "isolated",
        "listened": [8000, 8765],
        "isolation_suspect": "no DNS in its network",
        "leaks": [
            {
                "kind": "process",
                "pid": 4242,
                "command": "uvicorn app",
                "ports": [8000],
                "kept": None,
            },
            {"kind": "port", "port": 8000, "owner": "pid 4242"},
            {
                "kind": "database",
                "name": "test_example_ab12",
                "owner": "app",
                "doubt": "appeared while it ran",
                "kept": None,
            },
        ],
        "attempts": 1,
        "repeat": {"runs": 5, "passed": 3},
        "log": ".e2e-run/runs/run-1/examples/b.py.log",
        "output_tail": "Traceback\x1b[0m\n",
        "output_cut": True,
        "output_dropped": 0,
        "hints": ["Do this."],
        "notes": ["needed SIGKILL"],
        "command": "python examples/b.py",
        "steps": [
            {
                "title": "log in",
                "section": "",
                "depth": 0,
                "started": 0.123457,
                "duration": 0.5,
                "outcome": "ok",
                "error": None,
            },
            {
                "title": "order\n\x1b[0m",
                "section": "Orders",
                "depth": 1,
                "started": 0.7,
                "duration": 1.2,
                "outcome": "failed",
                "error": "3 != 2",
            },
        ],
        "happened_in": 1,
        "metrics": {"orders": 5, "done": False},
        "summary": "Nearly",
        "failed_attempts": [],
    }
    told = {key: examples[0][key] for key in ("steps", "happened_in", "metrics", "summary")}
    assert told == {"steps": [], "happened_in": None, "metrics": {}, "summary": ""}
    absent = {
        key: examples[0][key] for key in ("network", "listened", "isolation_suspect", "repeat")
    }
    assert absent == {
        "network": None,
        "listened": [],
        "isolation_suspect": None,
        "repeat": None,
    }
    assert examples[2]["reason"] == "tag websocket"


def test_earlier_attempts_that_failed_are_told() -> None:
    first = replace(FAILED, isolation_suspect="", network=NetworkMode.HOST, log="1.log")
    second = replace(PASSED, path=FAILED.path, status=Status.FLAKY, attempts=2)
    events = history([second])
    tried = AttemptFinished(at=0.5, number=1, result=first, again="retry 1")
    examples = document([*events[:3], tried, *events[3:]])["examples"]
    assert examples[0]["failed_attempts"] == [
        {
            "number": 1,
            "again": "retry 1",
            "status": "failed",
            "cause": "exit",
            "reason": "exit code 1",
            "duration": 1.93,
            "network": "host",
            "isolation_suspect": None,
            "log": "1.log",
        }
    ]


def test_an_empty_run() -> None:
    found = document(history([], exit_code=4, run=replace(RUN, processes=None)))
    assert found["run"]["isolation"]["processes"] is None
    assert (found["examples"], found["totals"], found["run"]["exit_code"]) == ([], {}, 4)


@hypothesis.settings(deadline=None)
@given(st.text(alphabet=st.characters()))
def test_any_text_is_valid_ascii_json(text: str) -> None:
    result = Result(path=text, status=Status.FAILED, output_tail=text, reason=text)
    written = "".join(render_json(play(history([result]), [])))
    assert written.isascii()
    assert json.loads(written)["examples"][0]["output_tail"] == text


def test_it_is_written_when_the_run_is_over(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    reporter = DocumentReporter(
        open_reports([ReportTarget(format=ReportFormat.JSON, file=file)])[0], render_json
    )
    state = RunState()
    *events, last = history([PASSED])
    for event in events:
        state.apply(event)
        reporter.handle(event, state)
    assert not file.exists()
    state.apply(last)
    reporter.handle(last, state)
    assert json.loads(file.read_text())["run"]["exit_code"] == 0
    reporter.close()
    assert reporter.problems == []


def test_a_run_that_breaks_off_is_written_on_close(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    reporter = DocumentReporter(
        open_reports([ReportTarget(format=ReportFormat.JSON, file=file)])[0], render_json
    )
    play([started([PASSED])], [reporter])
    found = json.loads(file.read_text())
    assert (found["run"]["id"], found["run"]["exit_code"]) == (RUN.id, None)


def test_a_full_disk_is_a_problem_and_no_exception() -> None:
    (opened,) = open_reports([ReportTarget(format=ReportFormat.JSON, file=Path("/dev/full"))])
    reporter = DocumentReporter(opened, render_json)
    play(history([PASSED]), [reporter])
    assert reporter.problems == [
        "the json report /dev/full is not complete: No space left on device"
    ]


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/project/.venv/bin/python"])
def test_paths_are_relative_where_they_can_be(python: str) -> None:
    found = document(history([PASSED], run=replace(RUN, python=python)))
    assert found["run"]["python"] == python.removeprefix("/project/")
