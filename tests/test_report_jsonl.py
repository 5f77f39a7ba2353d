import json
from pathlib import Path
from typing import Any

from report_history import history, play, started

from e2e_runner.events import (
    AttemptFinished,
    Event,
    ExampleFinished,
    ExampleStarted,
    Interrupted,
    MetricReported,
    OutputWritten,
    Phase,
    PhaseChanged,
    RunFinished,
    StepFinished,
    StepStarted,
    Warned,
)
from e2e_runner.model import Metric, ReportFormat, ReportTarget, Result, Status
from e2e_runner.report.jsonl import JsonlReporter
from e2e_runner.report.shape import result_shape
from e2e_runner.report.targets import open_reports
from e2e_runner.state import RunState

FAILED = Result(path="a.py", status=Status.FAILED, exit_code=1, attempts=1)
PASSED = Result(path="a.py", status=Status.PASSED, exit_code=0, attempts=1)


def open_jsonl(file: Path | str) -> JsonlReporter:
    target = ReportTarget(format=ReportFormat.JSONL, file=Path(file))
    return JsonlReporter(open_reports([target])[0])


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def test_every_event_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    events: list[Event] = [
        started(
            [PASSED],
            deselected={"c.py": "tag websocket"},
            not_examples={"d.py": "helper"},
            warnings=("odd",),
        ),
        ExampleStarted(at=0.5, path="a.py", limit=60.0),
        PhaseChanged(at=0.6, path="a.py", phase=Phase.WAITING_FOR_PORT, detail="port 8000"),
        OutputWritten(at=0.7, path="a.py", text="a\nb\ud800"),
        StepStarted(at=0.71, path="a.py", step=4, title="log in", depth=1, section="Users"),
        StepFinished(
            at=0.72, path="a.py", step=4, title="log in", depth=1, duration=0.5, error="401"
        ),
        MetricReported(at=0.73, path="a.py", metric=Metric(name="users", value=3)),
        Warned(at=0.8, message="careful"),
        AttemptFinished(at=0.9, number=1, result=FAILED, again="retry 1"),
        ExampleStarted(at=0.91, path="a.py", limit=60.0, attempt=2),
        ExampleFinished(at=1.0, result=PASSED),
        Interrupted(at=1.1, signal="SIGINT", count=1),
        RunFinished(at=1.2345678, exit_code=130, interrupted=True),
    ]
    play(events, [open_jsonl(file)])
    first, *others = lines(file)
    assert first == {
        "event": "run-started",
        "at": 0.0,
        "schema": "e2e-run/1",
        "run": {
            "id": "run-1",
            "started": "2023-11-14T22:13:20.250+00:00",
            "jobs": 2,
            "isolation": {
                "network": "host",
                "processes": "cgroup",
                "notes": [],
                "network_notes": [],
            },
            "shard": None,
            "last_failed": False,
            "postgres": None,
            "python": ".venv/bin/python",
            "version": "0.1.0",
        },
        "examples": ["a.py"],
        "deselected": [{"path": "c.py", "reason": "tag websocket"}],
        "not_examples": [{"path": "d.py", "reason": "helper"}],
        "warnings": ["odd"],
    }
    assert others == [
        {"event": "example-started", "at": 0.5, "path": "a.py", "limit": 60.0, "attempt": 1},
        {
            "event": "phase-changed",
            "at": 0.6,
            "path": "a.py",
            "phase": "waiting for port",
            "detail": "port 8000",
        },
        {"event": "output-written", "at": 0.7, "path": "a.py", "text": "a\nb\ud800"},
        {
            "event": "step-started",
            "at": 0.71,
            "path": "a.py",
            "step": 4,
            "title": "log in",
            "depth": 1,
            "section": "Users",
        },
        {
            "event": "step-finished",
            "at": 0.72,
            "path": "a.py",
            "step": 4,
            "title": "log in",
            "depth": 1,
            "duration": 0.5,
            "error": "401",
            "cancelled": False,
        },
        {"event": "metric-reported", "at": 0.73, "path": "a.py", "name": "users", "value": 3},
        {"event": "warned", "at": 0.8, "message": "careful", "path": None},
        {
            "event": "attempt-finished",
            "at": 0.9,
            "number": 1,
            "again": "retry 1",
            "result": result_shape(FAILED),
        },
        {"event": "example-started", "at": 0.91, "path": "a.py", "limit": 60.0, "attempt": 2},
        {"event": "example-finished", "at": 1.0, "result": result_shape(PASSED)},
        {"event": "interrupted", "at": 1.1, "signal": "SIGINT", "count": 1},
        {
            "event": "run-finished",
            "at": 1.234568,
            "exit_code": 130,
            "interrupted": True,
            "totals": {"passed": 1, "skipped": 1},
        },
    ]


def test_a_line_is_there_as_soon_as_the_event_is(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    reporter = open_jsonl(file)
    state = RunState()
    for number, event in enumerate(history([PASSED]), start=1):
        state.apply(event)
        reporter.handle(event, state)
        assert len(lines(file)) == number
    reporter.close()


def test_a_full_disk_ends_the_report_with_one_problem() -> None:
    reporter = open_jsonl("/dev/full")
    play(history([PASSED]), [reporter])
    assert reporter.problems == [
        "the jsonl report /dev/full is not complete: No space left on device"
    ]
