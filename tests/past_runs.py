"""Verdicts and runs of the past, for the tests of what is made of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import report_history

from e2e_runner.model import (
    NetworkMode,
    NetworkTier,
    Result,
    ResultRecord,
    RunInfo,
    RunRecord,
    Status,
)
from e2e_runner.recorder import Recorder
from e2e_runner.trends import PastRun

START = 1_700_000_000.0
HOUR = 3600.0
PATH = "examples/orders.py"
LETTERS = {
    "p": Status.PASSED,
    "s": Status.SERVED,
    "f": Status.FAILED,
    "t": Status.TIMEOUT,
    "b": Status.BLOCKED,
    "~": Status.FLAKY,
    "!": Status.LEAKED,
    "-": Status.SKIPPED,
    "n": Status.NOT_RUN,
}


def run_id(number: int) -> str:
    return f"20260131-12{number // 60:02}{number % 60:02}-0a1b2c"


def verdicts(
    letters: str, *, path: str = PATH, durations: Sequence[float] | None = None
) -> list[ResultRecord]:
    """Give a verdict a letter, an hour apart, oldest first."""
    return [
        ResultRecord(
            run=run_id(number),
            started=START + number * HOUR,
            path=path,
            status=LETTERS[letter],
            duration=durations[number] if durations else 1.0,
        )
        for number, letter in enumerate(letters)
    ]


def past_run(number: int, results: Iterable[ResultRecord], *, file: str = "") -> PastRun:
    """Make a run of what came of its examples."""
    started = START + number * HOUR
    run = RunRecord(
        id=run_id(number),
        started=started,
        duration=10.0,
        exit_code=0,
        jobs=2,
        network="namespace",
        processes="cgroup",
        python=".venv/bin/python",
        version="0.1.0",
    )
    return PastRun(
        run=run,
        results=tuple(replace(each, run=run.id, started=started) for each in results),
        file=file,
    )


def info(number: int) -> RunInfo:
    return replace(
        report_history.RUN,
        id=run_id(number),
        started=START + number * HOUR,
        network=NetworkTier.NAMESPACE,
    )


def result(letter: str, *, path: str = PATH, duration: float = 1.0) -> Result:
    """Make what a run tells of an example; what is not ok has a cause and a reason."""
    status = LETTERS[letter]
    bad = status in {Status.FAILED, Status.TIMEOUT, Status.BLOCKED}
    return Result(
        path=path,
        status=status,
        cause="assertion" if bad else None,
        reason="exit code 1" if bad else "",
        duration=duration,
        attempts=1,
        network=NetworkMode.ISOLATED,
    )


def record(state_dir: Path, number: int, results: Sequence[Result], *, exit_code: int = 0) -> None:
    """Write a whole run into the history, as a run does."""
    state_dir.mkdir(exist_ok=True)
    warned: list[str] = []
    recorder = Recorder(state_dir, warn=warned.append)
    for event in report_history.history(results, exit_code=exit_code, run=info(number)):
        recorder.handle(event)
    recorder.close()
    assert warned == []
