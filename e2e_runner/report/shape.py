"""The shapes of the machine-readable reports: plain dictionaries, the same in json and jsonl."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, assert_never

from e2e_runner.events import (
    Event,
    ExampleFinished,
    ExampleStarted,
    Interrupted,
    MetricReported,
    OutputWritten,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    Warned,
)
from e2e_runner.model import (
    Leak,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    NotExample,
    Result,
    RunInfo,
    Status,
)
from e2e_runner.report.paths import relative
from e2e_runner.state import RunState

SCHEMA = "e2e-run/1"

Shape = dict[str, Any]


def to_json(shape: Shape) -> str:
    """Give one line of ASCII JSON: any string is escaped, lone surrogates included."""
    return json.dumps(shape, ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def run_shape(run: RunInfo) -> Shape:
    """Describe the run by what is known when it starts."""
    return {
        "id": run.id,
        "started": datetime.fromtimestamp(run.started, tz=UTC).isoformat(timespec="milliseconds"),
        "jobs": run.jobs,
        "isolation": {
            "network": run.network,
            "processes": None if run.processes is None else run.processes.value,
            "notes": list(run.containment_notes),
        },
        "postgres": run.postgres or None,
        "python": relative(run.python, run.root),
        "version": run.version,
    }


def finished_run_shape(state: RunState) -> Shape:
    """Describe the run by what is known at its end; `exit_code` is null when it never came to one."""
    end = state.finished
    return {
        **(run_shape(state.run) if state.run else {}),
        "duration": seconds(state.now),
        "exit_code": end.exit_code if end else None,
        "interrupted": end.interrupted if end else bool(state.interruptions),
    }


def totals_shape(counts: Mapping[Status, int]) -> dict[str, int]:
    """Count results by status, leaving out what did not occur."""
    return {status.value: counts[status] for status in Status if counts[status]}


def result_shape(result: Result) -> Shape:
    """Describe the verdict on one example."""
    return {
        "path": result.path,
        "status": result.status.value,
        "cause": result.cause,
        "reason": result.reason,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "duration": seconds(result.duration),
        "cpu": None if result.cpu is None else seconds(result.cpu),
        "max_rss": result.max_rss,
        "tags": list(result.tags),
        "ports": list(result.ports),
        "leaks": [leak_shape(leak) for leak in result.leaks],
        "attempts": result.attempts,
        "log": result.log,
        "output_tail": result.output_tail,
        "output_cut": result.output_cut,
        "output_dropped": result.output_dropped,
        "hints": list(result.hints),
        "notes": list(result.notes),
        "command": result.command,
    }


def leak_shape(leak: Leak) -> Shape:
    """Describe one thing that was left behind; `kind` tells which."""
    match leak:
        case LeakedProcess():
            return {
                "kind": "process",
                "pid": leak.pid,
                "command": leak.command,
                "ports": list(leak.ports),
            }
        case LeakedPort():
            return {"kind": "port", "port": leak.port, "owner": leak.owner}
        case LeakedDatabase():
            return {
                "kind": "database",
                "name": leak.name,
                "owner": leak.owner,
                "doubt": leak.doubt or None,
                "kept": leak.kept or None,
            }
        case _:
            assert_never(leak)


def not_example_shape(file: NotExample) -> Shape:
    """Describe a file that is no example."""
    return {"path": file.path, "reason": file.reason}


def event_shape(event: Event, state: RunState) -> Shape:
    """Describe one event: its name, its time, and what it carries."""
    match event:
        case RunStarted():
            return _event("run-started", event.at) | {
                "schema": SCHEMA,
                "run": run_shape(event.run),
                "examples": [example.path for example in event.plan.examples],
                "deselected": [
                    {"path": left_out.example.path, "reason": left_out.reason}
                    for left_out in event.plan.deselected
                ],
                "not_examples": [not_example_shape(file) for file in event.plan.not_examples],
                "warnings": list(event.plan.warnings),
            }
        case ExampleFinished():
            shape = {"result": result_shape(event.result)}
            return _event("example-finished", event.at) | shape
        case RunFinished():
            return _event("run-finished", event.at) | {
                "exit_code": event.exit_code,
                "interrupted": event.interrupted,
                "totals": totals_shape(state.counts),
            }
        case _:
            return _small_event_shape(event)


def _small_event_shape(
    event: ExampleStarted
    | PhaseChanged
    | OutputWritten
    | StepStarted
    | StepFinished
    | MetricReported
    | Warned
    | Interrupted,
) -> Shape:
    match event:
        case ExampleStarted():
            shape: Shape = {"path": event.path, "limit": event.limit}
            return _event("example-started", event.at) | shape
        case PhaseChanged():
            shape = {"path": event.path, "phase": event.phase.value, "detail": event.detail}
            return _event("phase-changed", event.at) | shape
        case OutputWritten():
            return _event("output-written", event.at) | {"path": event.path, "text": event.text}
        case StepStarted():
            shape = {
                "path": event.path,
                "title": event.title,
                "depth": event.depth,
                "section": event.section,
            }
            return _event("step-started", event.at) | shape
        case StepFinished():
            shape = {
                "path": event.path,
                "title": event.title,
                "depth": event.depth,
                "duration": seconds(event.duration),
                "error": event.error,
            }
            return _event("step-finished", event.at) | shape
        case MetricReported():
            shape = {"path": event.path, "name": event.metric.name, "value": event.metric.value}
            return _event("metric", event.at) | shape
        case Warned():
            return _event("warned", event.at) | {"message": event.message, "path": event.path}
        case Interrupted():
            shape = {"signal": event.signal, "count": event.count}
            return _event("interrupted", event.at) | shape
        case _:
            assert_never(event)


def _event(name: str, at: float) -> Shape:
    return {"event": name, "at": seconds(at)}


def seconds(value: float) -> float:
    """Round to microseconds: more digits are noise."""
    return round(value, 6)
