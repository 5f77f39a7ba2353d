"""The engine in this process: events, descriptors, and what happens when e2e-run itself fails."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e_runner.config import resolve
from e2e_runner.discovery import make_plan
from e2e_runner.engine import run_plan
from e2e_runner.events import (
    Event,
    ExampleFinished,
    ExampleStarted,
    PhaseChanged,
    RunFinished,
    RunStarted,
    Warned,
)
from e2e_runner.hints import load_rules
from e2e_runner.model import Status
from e2e_runner.rundir import dead_runs, open_run
from e2e_runner.supervise.launch import Spawner

SHELL = 'include = ["*.sh"]\ninterpreters = { ".sh" = "sh" }\ngrace = "200ms"\n'


def run(
    root: Path,
    *,
    emit: Callable[[Event], None] = lambda _: None,
    environ: Mapping[str, str] | None = None,
    **flags: Any,
) -> tuple[int, list[Event]]:
    """Run the examples of a folder with the engine of this process."""
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        emit(event)

    resolved = resolve({"jobs": "1", "network": "host"} | flags, [str(root)], {}, root)
    plan = make_plan(resolved)
    given = {"PATH": os.environ["PATH"]} if environ is None else environ
    with contextlib.closing(Spawner()) as spawner:
        going = run_plan(
            plan, resolved.run, spawner=spawner, load_rules=load_rules, environ=given, emit=note
        )
        return asyncio.run(going), events


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "e2e-run.toml").write_text(SHELL)
    return tmp_path


def results(events: list[Event]) -> dict[str, Status]:
    return {e.result.path: e.result.status for e in events if isinstance(e, ExampleFinished)}


def test_every_example_gets_one_result_between_the_first_and_the_last_event(root: Path) -> None:
    for number in range(5):
        (root / f"{number}.sh").write_text(f"exit {int(number == 2)}\n")
    code, events = run(root, max_fail="1")
    assert code == 1
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert (events[-1].exit_code, events[-1].interrupted) == (1, False)
    finished = [event.result.path for event in events if isinstance(event, ExampleFinished)]
    assert finished == [f"{number}.sh" for number in range(5)]
    assert list(results(events).values()) == ["passed", "passed", "failed", "not-run", "not-run"]
    started = [event.path for event in events if isinstance(event, ExampleStarted)]
    assert started == finished[:3]
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_the_phases_of_a_stubborn_script(root: Path) -> None:
    (root / "stubborn.sh").write_text("trap '' TERM; while :; do sleep 1; done\n")
    code, events = run(root, timeout="200ms")
    phases = [event.phase.value for event in events if isinstance(event, PhaseChanged)]
    assert phases == ["running", "stopping", "killing"]
    assert (code, results(events)) == (1, {"stubborn.sh": Status.TIMEOUT})


def test_nothing_selected_leaves_no_trace(root: Path) -> None:
    code, events = run(root)
    assert code == 4
    assert [type(event) for event in events] == [RunStarted, RunFinished]
    assert not (root / ".e2e-run").exists()


def test_an_error_of_our_own_loses_no_result(root: Path) -> None:
    for name in ("one.sh", "two.sh"):
        (root / name).write_text("exit 0\n")
    seen: list[Event] = []
    children = psutil.Process().children()
    # No environment can hold half a surrogate: encoding it for the script is what fails.
    wrong = {"PATH": os.environ["PATH"], "HALF": "\ud800"}
    with pytest.raises(ExceptionGroup, match="unhandled errors") as caught:
        run(root, environ=wrong, emit=seen.append)
    assert caught.group_contains(UnicodeEncodeError)
    assert results(seen) == {"one.sh": Status.NOT_RUN, "two.sh": Status.NOT_RUN}
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].exit_code == 70
    assert psutil.Process().children() == children


def helpers() -> list[psutil.Process]:
    """List the spawner and its keepers; the next script may be running by now and does not count."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("e2e_runner.supervise.spawner" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_descriptors_and_processes_do_not_pile_up(root: Path) -> None:
    for number in range(200):
        (root / f"{number:03}.sh").write_text("echo fine\n")
    # Each of these costs a keeper: killed, killed with what it left, and lost.
    (root / "100.sh").write_text("trap '' TERM; while :; do sleep 1; done\n")
    (root / "101.sh").write_text("sleep 60 > /dev/null &\n")
    (root / "102.sh").write_text("kill -9 $PPID; sleep 60\n")
    (root / "103.sh").write_text("echo 1 > /dev/tcp/nothing\n")
    (root / "104.sh").write_text('exec "$0.nowhere"\n')
    (root / "105.py").write_text("# /// script\n# [tool.e2e-run]\n# stdin = 'text'\n# ///\n1/0\n")
    before, children = descriptors(), psutil.Process().children(recursive=True)
    counts: list[tuple[int, int]] = []

    def count(event: Event) -> None:
        if isinstance(event, ExampleFinished):
            counts.append((descriptors(), len(helpers())))

    code, events = run(root, emit=count, timeout="500ms", containment="scan")
    assert code == 1
    statuses = results(events)
    assert len(statuses) == len(counts) == 201
    assert [statuses[f"{n}.sh"].value for n in (100, 101, 102, 103)] == [
        *("timeout", "leaked", "failed", "failed"),
    ]
    assert counts[9][0] == counts[190][0]
    # A keeper may just be on its way, or on its way out.
    assert abs(counts[9][1] - counts[190][1]) <= 1
    assert descriptors() == before
    assert psutil.Process().children(recursive=True) == children


def test_a_run_sees_to_the_remains_of_a_dead_one(root: Path) -> None:
    state = root / ".e2e-run"
    with open_run(state, "20200101-000000-dead00") as dead:
        record = (dead.folder / ".run" / "record.json").read_text()
    dead.scratch.mkdir()
    dead.mark_folder(dead.scratch)
    (dead.folder / ".run" / "record.json").write_text(record)
    assert [found.id for found in dead_runs(state)] == [dead.id]
    (root / "one.sh").write_text("exit 0\n")
    code, events = run(root)
    assert code == 0
    assert not any(isinstance(event, Warned) for event in events)
    assert dead_runs(state) == ()
    assert not dead.scratch.exists()
