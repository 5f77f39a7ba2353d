"""Runs as event histories, for the tests of whoever consumes events."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from e2e_runner.events import (
    Event,
    ExampleFinished,
    ExampleStarted,
    Phase,
    PhaseChanged,
    RunFinished,
    RunStarted,
)
from e2e_runner.model import (
    Capture,
    Color,
    Containment,
    CutBy,
    Deselected,
    Example,
    ExampleSettings,
    NotExample,
    OnPortConflict,
    Plan,
    ReportTarget,
    Result,
    RunInfo,
    RunSettings,
    ShardCut,
)
from e2e_runner.report import Reporter
from e2e_runner.state import RunState

ROOT = Path("/project")

RUN = RunInfo(
    id="run-1",
    started=1_700_000_000.25,
    root=ROOT,
    jobs=2,
    python="/project/.venv/bin/python",
    version="0.1.0",
    processes=Containment.CGROUP,
)

CUT = ShardCut(index=1, count=2, basis="3f9a2c", by=CutBy.TIMINGS)


def settings(
    *,
    reports: Sequence[ReportTarget] = (),
    strict: bool = False,
    verbose: int = 0,
    quiet: bool = False,
    no_capture: bool = False,
    color: Color = Color.AUTO,
) -> RunSettings:
    return RunSettings(
        root=ROOT,
        config_file=None,
        state_dir=ROOT / ".e2e-run",
        paths=(ROOT / "examples",),
        python="python",
        keyword=None,
        only=(),
        skip=(),
        include=(),
        exclude=(),
        interpreters={},
        fail_on_output=(),
        strict=strict,
        fail_fast=False,
        max_fail=None,
        on_port_conflict=OnPortConflict.FAIL,
        free_ports=False,
        containment=None,
        max_output=1,
        capture=Capture.MERGED,
        no_capture=no_capture,
        keep_runs=1,
        reports=tuple(reports),
        verbose=verbose,
        quiet=quiet,
        color=color,
    )


def example(path: str) -> Example:
    return Example(
        path=path,
        file=ROOT / path,
        argv=("python", path),
        settings=ExampleSettings(
            timeout=60,
            grace=5,
            ports=(),
            tags=("slow",),
            env={},
            args=(),
            stdin=None,
            cwd=ROOT,
            serve=None,
            needs=(),
            skip=None,
            expect_exit=0,
            interpreter=("python",),
        ),
    )


def started(
    results: Iterable[Result],
    *,
    deselected: dict[str, str] | None = None,
    not_examples: dict[str, str] | None = None,
    warnings: tuple[str, ...] = (),
    run: RunInfo = RUN,
    cut: ShardCut | None = None,
    shard: str = "",
    last_failed: str = "",
) -> RunStarted:
    return RunStarted(
        at=0.0,
        run=run,
        plan=Plan(
            examples=tuple(example(result.path) for result in results),
            deselected=tuple(
                Deselected(example=example(path), reason=reason)
                for path, reason in (deselected or {}).items()
            ),
            not_examples=tuple(
                NotExample(path=path, reason=reason)
                for path, reason in (not_examples or {}).items()
            ),
            warnings=warnings,
            cut=cut,
            shard=shard,
            last_failed=last_failed,
        ),
    )


def history(
    results: Sequence[Result],
    *,
    exit_code: int = 0,
    interrupted: bool = False,
    deselected: dict[str, str] | None = None,
    not_examples: dict[str, str] | None = None,
    warnings: tuple[str, ...] = (),
    before_end: Sequence[Event] = (),
    run: RunInfo = RUN,
    cut: ShardCut | None = None,
    shard: str = "",
    last_failed: str = "",
) -> list[Event]:
    """A whole run: each example starts, runs and finishes, a second each."""
    events: list[Event] = [
        started(
            results,
            deselected=deselected,
            not_examples=not_examples,
            warnings=warnings,
            run=run,
            cut=cut,
            shard=shard,
            last_failed=last_failed,
        )
    ]
    for number, result in enumerate(results):
        if result.attempts:
            events.append(ExampleStarted(at=float(number), path=result.path, limit=60.0))
            events.append(PhaseChanged(at=float(number), path=result.path, phase=Phase.RUNNING))
        events.append(ExampleFinished(at=number + 1.0, result=result))
    end = float(len(results))
    return [
        *events,
        *before_end,
        RunFinished(at=end, exit_code=exit_code, interrupted=interrupted),
    ]


def play(events: Iterable[Event], reporters: Sequence[Reporter]) -> RunState:
    """Do what the consumer does: apply each event, then call the reporters; close them at the end."""
    state = RunState()
    try:
        for event in events:
            state.apply(event)
            for reporter in reporters:
                reporter.handle(event, state)
    finally:
        for reporter in reporters:
            reporter.close()
    return state
