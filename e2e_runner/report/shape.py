"""The shapes of the machine-readable reports: plain dictionaries, the same in json and jsonl."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, assert_never

from e2e_runner.events import (
    AttemptFinished,
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
    Plan,
    Result,
    RunInfo,
    ShardCut,
    Status,
    Step,
)
from e2e_runner.report.paths import relative
from e2e_runner.state import RunState

SCHEMA = "e2e-run/1"

Shape = dict[str, Any]


def to_json(shape: Shape) -> str:
    """Give one line of ASCII JSON: any string is escaped, lone surrogates included."""
    return json.dumps(shape, ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def run_shape(run: RunInfo, plan: Plan) -> Shape:
    """Describe the run by what is known when it starts."""
    return {
        "id": run.id,
        "started": datetime.fromtimestamp(run.started, tz=UTC).isoformat(timespec="milliseconds"),
        "jobs": run.jobs,
        "isolation": {
            "network": run.network.value,
            "processes": None if run.processes is None else run.processes.value,
            "notes": list(run.containment_notes),
            "network_notes": list(run.network_notes),
        },
        "shard": None if plan.cut is None else shard_shape(plan.cut),
        "last_failed": bool(plan.last_failed),
        "postgres": run.postgres or None,
        "python": relative(run.python, run.root),
        "version": run.version,
    }


def shard_shape(cut: ShardCut) -> Shape:
    """Describe a shard: those fit together that have the same count and basis."""
    return {"index": cut.index, "count": cut.count, "basis": cut.basis, "by": cut.by.value}


def finished_run_shape(state: RunState) -> Shape:
    """Describe the run by what is known at its end; `exit_code` is null when it never came to one."""
    end = state.finished
    return {
        **(run_shape(state.run, state.plan) if state.run else {}),
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
        "network": None if result.network is None else result.network.value,
        "listened": list(result.listened),
        "isolation_suspect": result.isolation_suspect or None,
        "leaks": [leak_shape(leak) for leak in result.leaks],
        "attempts": result.attempts,
        "repeat": _repeat_shape(result),
        "log": result.log,
        "output_tail": result.output_tail,
        "output_cut": result.output_cut,
        "output_dropped": result.output_dropped,
        "hints": list(result.hints),
        "notes": list(result.notes),
        "command": result.command,
        "steps": [step_shape(step) for step in result.steps],
        "happened_in": result.happened_in,
        "metrics": {metric.name: metric.value for metric in result.metrics},
        "summary": result.summary,
    }


def _repeat_shape(result: Result) -> Shape | None:
    """Describe what came of ``--repeat``; None without it."""
    if result.repeats == 1:
        return None
    return {"runs": result.repeats, "passed": result.repeats_passed}


def attempt_shape(attempt: AttemptFinished) -> Shape:
    """Describe an earlier attempt at an example."""
    result = attempt.result
    return {
        "number": attempt.number,
        "again": attempt.again,
        "status": result.status.value,
        "cause": result.cause,
        "reason": result.reason,
        "duration": seconds(result.duration),
        "network": None if result.network is None else result.network.value,
        "isolation_suspect": result.isolation_suspect or None,
        "log": result.log,
    }


def step_shape(step: Step) -> Shape:
    """Describe a step that the script told of; `error` is null where it did not fail."""
    return {
        "title": step.title,
        "section": step.section,
        "depth": step.depth,
        "started": seconds(step.started),
        "duration": seconds(step.duration),
        "outcome": step.outcome.value,
        "error": step.error or None,
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
                "kept": leak.kept or None,
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
        case RunStarted() | RunFinished() | Warned() | Interrupted():
            return _run_event_shape(event, state)
        case AttemptFinished():
            return _event("attempt-finished", event.at) | {
                "number": event.number,
                "again": event.again,
                "result": result_shape(event.result),
            }
        case ExampleFinished():
            shape = {"result": result_shape(event.result)}
            return _event("example-finished", event.at) | shape
        case _:
            return _running_event_shape(event)


def _run_event_shape(
    event: RunStarted | RunFinished | Warned | Interrupted, state: RunState
) -> Shape:
    """Describe what happens to the run as a whole."""
    match event:
        case RunStarted():
            return _event("run-started", event.at) | {
                "schema": SCHEMA,
                "run": run_shape(event.run, event.plan),
                "examples": [example.path for example in event.plan.examples],
                "deselected": [
                    {"path": left_out.example.path, "reason": left_out.reason}
                    for left_out in event.plan.deselected
                ],
                "not_examples": [not_example_shape(file) for file in event.plan.not_examples],
                "warnings": list(event.plan.warnings),
            }
        case RunFinished():
            return _event("run-finished", event.at) | {
                "exit_code": event.exit_code,
                "interrupted": event.interrupted,
                "totals": totals_shape(state.counts),
            }
        case Warned():
            return _event("warned", event.at) | {"message": event.message, "path": event.path}
        case Interrupted():
            return _event("interrupted", event.at) | {"signal": event.signal, "count": event.count}
        case _:
            assert_never(event)


def _running_event_shape(
    event: ExampleStarted
    | PhaseChanged
    | OutputWritten
    | StepStarted
    | StepFinished
    | MetricReported,
) -> Shape:
    """Describe what a running example does."""
    name: str
    shape: Shape
    match event:
        case ExampleStarted():
            name = "example-started"
            shape = {"limit": event.limit, "attempt": event.attempt}
        case PhaseChanged():
            name = "phase-changed"
            shape = {"phase": event.phase.value, "detail": event.detail}
        case OutputWritten():
            name, shape = "output-written", {"text": event.text}
        case StepStarted():
            name = "step-started"
            shape = {
                "step": event.step,
                "title": event.title,
                "depth": event.depth,
                "section": event.section,
            }
        case StepFinished():
            name = "step-finished"
            shape = {
                "step": event.step,
                "title": event.title,
                "depth": event.depth,
                "duration": seconds(event.duration),
                "error": event.error,
                "cancelled": event.cancelled,
            }
        case MetricReported():
            name = "metric-reported"
            shape = {"name": event.metric.name, "value": event.metric.value}
        case _:
            assert_never(event)
    return _event(name, event.at) | {"path": event.path} | shape


def _event(name: str, at: float) -> Shape:
    return {"event": name, "at": seconds(at)}


def seconds(value: float) -> float:
    """Round to microseconds: more digits are noise."""
    return round(value, 6)
