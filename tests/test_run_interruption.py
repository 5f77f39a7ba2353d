"""Runs that are ended early: by signals to e2e-run, to its helpers, and by a terminal that goes away."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from harness import (
    IS_ROOT,
    TIERS,
    Project,
    in_tier,
    project,
    wait_gone,
    wait_lines,
    wait_until,
)

from e2e_runner.report.screen import render

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A project whose runs keep their temporary folders where a test can see them."""

    project: Project
    tier: str

    @property
    def ready(self) -> Path:
        return self.project.root / "ready"

    @property
    def marker(self) -> Path:
        return self.project.root / "marker"

    @property
    def scratch(self) -> Path:
        return self.project.root / "scratch"

    @property
    def how(self) -> dict[str, Any]:
        return {
            "env": {
                "E2E_CHILD_READY": str(self.ready),
                "E2E_CHILD_MARKER": str(self.marker),
                "TMPDIR": str(self.scratch),
            }
        }

    def records(self) -> list[Path]:
        return list(self.project.root.glob(".e2e-run/runs/*/.run/record.json"))

    def assert_nothing_is_left(self) -> None:
        assert self.project.survivors() == []
        assert list(self.scratch.iterdir()) == []
        assert self.project.cgroups() == []
        assert self.records() == []


def make_place(made: Project, tier: str) -> Place:
    place = Place(project=made, tier=tier)
    place.scratch.mkdir()
    if made.user is not None:
        os.chown(place.scratch, made.user, made.user)
    return place


@pytest.fixture
def place() -> Iterator[Place]:
    with project() as made:
        yield make_place(made, "auto")


@pytest.fixture(params=TIERS, ids=lambda p: p[0] + ("-user" if p[1] else ""))
def tiered(request: pytest.FixtureRequest) -> Iterator[Place]:
    tier, user = request.param
    with in_tier(tier, user) as made:
        yield make_place(made, tier)


def children(made: Project, *names: str) -> list[str]:
    """Number the misbehaving children, so that they run in this order."""
    numbered = []
    for number, name in enumerate(names):
        file = made.child(name)
        numbered.append(file.rename(file.with_name(f"{number}_{name}")).name)
    return numbered


# --- signals to the runner -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_one_signal_stops_with_grace(place: Place, number: signal.Signals, code: int) -> None:
    names = children(place.project, "passes.py", "cleanup_on_sigterm.py", "hang.py")
    with place.project.running("--grace", "30s", *names, **place.how) as running:
        wait_lines(place.ready)
        running.process.send_signal(number)
        outcome = running.outcome()
    assert outcome.code == code
    assert place.marker.read_text() == "cleaned up\n"
    assert outcome.statuses == dict(zip(names, ["passed", "not-run", "not-run"], strict=True))
    stopped, never = (outcome.examples[name] for name in names[1:])
    assert stopped["reason"].startswith("interrupted after ")
    assert stopped["attempts"] == 1
    assert "cleaned up" in stopped["output_tail"]
    assert never["reason"] == f"the run was ended by {number.name}"
    assert (outcome.report["run"]["interrupted"], outcome.report["run"]["exit_code"]) == (
        True,
        code,
    )
    assert f"{number.name}: stopping what runs; once more kills it" in outcome.stdout
    assert "Example Results Summary" in outcome.stdout
    assert (
        f"Interrupted by {number.name}: 2 examples without a verdict: {names[1]}, {names[2]}"
        in outcome.stdout
    )
    assert "All examples passed" not in outcome.stdout
    assert outcome.stderr == ""
    place.assert_nothing_is_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_kills_now(place: Place, number: signal.Signals, code: int) -> None:
    names = children(place.project, "slow_cleanup.py", "passes.py")
    # The grace is longer than the test may take: only the second signal can end it.
    with place.project.running("--grace", "1h", *names, **place.how) as running:
        wait_lines(place.ready)
        running.process.send_signal(number)
        wait_lines(place.marker)
        running.process.send_signal(number)
        outcome = running.outcome(timeout=20)
    assert outcome.code == code
    assert outcome.statuses == {names[0]: "not-run", names[1]: "not-run"}
    assert outcome.examples[names[0]]["signal"] == "SIGKILL"
    assert f"{number.name}: killing what runs" in outcome.stdout
    place.assert_nothing_is_left()


def test_signals_after_the_end_change_nothing(place: Place) -> None:
    (name,) = children(place.project, "hang.py")
    with place.project.running("--grace", "1h", name, **place.how) as running:
        wait_lines(place.ready)
        # As from one who is impatient: until it has ended, whatever it is doing by then.
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(timeout=0.005)
        outcome = running.outcome()
    assert outcome.code == 130
    assert outcome.stdout.count("Interrupted by SIGINT: 1 example without a verdict") == 1
    assert outcome.stderr == ""
    wait_until(lambda: not place.project.survivors(), "the end of all processes")


_INTERRUPTED_IN = """
import builtins, os, signal, sys
original, module = builtins.__import__, sys.argv.pop(1)
def interrupting(name, *rest, **named):
    if name == module:
        os.kill(os.getpid(), signal.SIGINT)
    return original(name, *rest, **named)
builtins.__import__ = interrupting
from e2e_runner.cli import main
main()
"""


@pytest.mark.parametrize("module", ["click", "e2e_runner.errors", "e2e_runner.engine"])
def test_an_interruption_while_the_program_is_loaded_has_no_traceback(
    module: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IN, module, "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    # Click ends the line that a terminal has written ^C to.
    said = "e2e-run: interrupted before anything was started\n"
    assert done.stderr.removeprefix("\n") == said


def test_signals_of_both_kinds_count_together(place: Place) -> None:
    (name,) = children(place.project, "slow_cleanup.py")
    with place.project.running("--grace", "1h", name, **place.how) as running:
        wait_lines(place.ready)
        running.process.send_signal(signal.SIGTERM)
        wait_lines(place.marker)
        running.process.send_signal(signal.SIGINT)
        outcome = running.outcome(timeout=20)
    assert outcome.code == 143  # the first one says what the run was asked to do
    place.assert_nothing_is_left()


def test_nohup_keeps_a_run_alive(place: Place) -> None:
    names = children(place.project, "server_slow_ready.py", "passes.py")
    go = place.project.root / "go"
    place.project.write(
        "e2e-run.toml",
        f'python = "{place.project.python}"\n'
        f"[[overrides]]\nmatch = '{names[0]}'\nserve = 'log:go on'\n",
    )
    place.project.write(
        names[0],
        "import pathlib, sys, signal\n"
        "from _ready import ready\n"
        "signal.signal(signal.SIGHUP, lambda *_: None)\n"
        "ready()\n"
        f"fifo = open({str(go)!r}).read()\n"
        "print('go on', flush=True)\n"
        "signal.pause()\n",
    )
    os.mkfifo(go)
    with place.project.running(*names, prefix=["nohup"], **place.how) as running:
        wait_lines(place.ready)
        running.process.send_signal(signal.SIGHUP)
        go.write_text("go")
        outcome = running.outcome()
    assert outcome.code == 0
    assert list(outcome.statuses.values()) == ["served", "passed"]
    assert outcome.report["run"]["interrupted"] is False
    place.assert_nothing_is_left()


def test_a_signal_while_companions_start(place: Place) -> None:
    (name,) = children(place.project, "passes.py")
    companion = place.project.child("hang.py").name
    place.project.write(
        "e2e-run.toml",
        f'python = "{place.project.python}"\n'
        f"[[overrides]]\nmatch = '{name}'\nneeds = ['{companion}']\n"
        f"[[overrides]]\nmatch = '{companion}'\nserve = 'log:never'\ngrace = '1s'\n",
    )
    with place.project.running(name, **place.how) as running:
        wait_lines(place.ready)
        running.process.send_signal(signal.SIGINT)
        outcome = running.outcome()
    assert outcome.code == 130
    assert outcome.statuses == {name: "not-run"}
    place.assert_nothing_is_left()


# --- sudden deaths -------------------------------------------------------------------------------


def test_what_ran_dies_with_a_killed_runner(tiered: Place) -> None:
    (name,) = children(tiered.project, "session_chain.py")
    args = ("--containment", tiered.tier, name)
    with tiered.project.running(*args, **tiered.how) as running:
        wait_lines(tiered.ready, 30)
        offspring = running.offspring()
        assert len(offspring) > 30
        running.process.kill()
        running.process.wait()
        wait_gone(offspring)
    assert tiered.project.survivors() == []
    # The spawner was the last to go, and took what it knew of with it.
    assert list(tiered.scratch.iterdir()) == []
    assert tiered.project.cgroups() == []
    assert len(tiered.records()) == 1
    next_run(tiered)


def test_the_next_run_reclaims_what_everybody_left(tiered: Place) -> None:
    (name,) = children(tiered.project, "session_chain.py")
    args = ("--containment", tiered.tier, name)
    with tiered.project.running(*args, **tiered.how) as running:
        wait_lines(tiered.ready, 30)
        offspring = running.offspring()
        kill_at_once([psutil.Process(running.process.pid), offspring[0]])
        running.process.wait()
        wait_gone(offspring)  # the keepers kill what they hold
    assert tiered.project.survivors() == []
    assert len(list(tiered.scratch.iterdir())) == 1
    assert len(tiered.project.cgroups()) == (tiered.tier == "cgroup")
    next_run(tiered)


@pytest.mark.skipif(not IS_ROOT, reason="needs a cgroup")
def test_scripts_that_outlive_every_supervisor_are_killed_by_the_next_run(place: Place) -> None:
    (name,) = children(place.project, "hang.py")
    with place.project.running("--containment", "cgroup", name, **place.how) as running:
        (script,) = map(int, wait_lines(place.ready))
        offspring = running.offspring()
        supervisors = [process for process in offspring if process.pid != script]
        kill_at_once([psutil.Process(running.process.pid), *supervisors])
        running.process.wait()
        wait_gone(supervisors)
    assert [process.pid for process in place.project.survivors()] == [script]
    next_run(place, "--containment", "cgroup")


def next_run(place: Place, *args: str) -> None:
    """Run again after a sudden death: it passes, and nothing of the dead run is left after it."""
    (name,) = children(place.project, "passes.py")
    outcome = place.project.run(*args, name, **place.how)
    assert outcome.code == 0, outcome
    place.assert_nothing_is_left()


def kill_at_once(processes: list[psutil.Process]) -> None:
    """Kill several processes so that none sees another die."""
    for process in processes:
        process.suspend()
    for process in processes:
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "it stopped")  # noqa: B023 - called at once
    for process in processes:
        process.kill()


def test_a_script_that_kills_its_keeper_is_lost_and_the_run_goes_on(tiered: Place) -> None:
    if tiered.tier == "pid-namespace":
        pytest.skip("the keeper is the init of its namespace: what it holds cannot kill it")
    tiered.project.child("hang.py")  # its helpers
    tiered.project.write(
        "0_kills_its_keeper.py",
        "import os, signal\n"
        "from _detach import leave_behind, wait_for_ever\n"
        "leave_behind(session=True)\n"
        "leave_behind(daemon=True)\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n"
        "wait_for_ever()\n",
    )
    (passes,) = children(tiered.project, "passes.py")
    names = ["0_kills_its_keeper.py", tiered.project.write("1_passes.py", "print('fine')\n").name]
    names.append((tiered.project.root / passes).rename(tiered.project.root / "2_passes.py").name)
    outcome = tiered.project.run("--containment", tiered.tier, *names, **tiered.how)
    assert outcome.statuses == dict(zip(names, ["failed", "passed", "passed"], strict=True))
    lost = outcome.examples[names[0]]
    assert (lost["cause"], lost["exit_code"], lost["signal"]) == ("lost", None, None)
    assert outcome.code == 1
    assert len(wait_lines(tiered.ready, 2)) == 2
    tiered.assert_nothing_is_left()


def test_a_killed_spawner_costs_only_what_needs_it(place: Place) -> None:
    names = children(place.project, "passes.py", "hang.py", "daemon.py", "passes.py")
    with place.project.running("-t", "3s", "--grace", "1s", *names, **place.how) as running:
        wait_lines(place.ready)
        running.offspring()[0].kill()
        outcome = running.outcome(timeout=30)
    # The keeper at hand serves until it has had to kill; then there is nobody to make another.
    statuses = ["passed", "timeout", "leaked", "failed"]
    assert outcome.statuses == dict(zip(names, statuses, strict=True))
    unstarted = outcome.examples[names[3]]
    assert (unstarted["cause"], unstarted["attempts"]) == ("start-error", 0)
    assert unstarted["reason"] == "could not be started: the spawner process was killed"
    assert outcome.code == 1
    assert outcome.stderr == ""
    place.assert_nothing_is_left()
    next_run(place)


# --- the terminal --------------------------------------------------------------------------------


def on_terminal(slave: int) -> dict[str, Any]:
    """Start e2e-run on a terminal that is its controlling one, which ^C and hang-ups come from."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    return {**streams, "prefix": ["setsid", "--ctty"], "start_new_session": False}


class Screen:
    """A pseudo-terminal that is read all the while, so that nobody waits for us."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (24, 80))
        self.shown = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.slave)
        self._thread.join()
        os.close(self.master)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody holds the other side any more
            while data := os.read(self.master, 65536):
                self.shown += data.decode("utf-8", "replace")


def test_ctrl_c_on_a_terminal_leaves_it_sane(place: Place) -> None:
    names = children(place.project, "passes.py", "cleanup_on_sigterm.py", "hang.py")
    env = place.how["env"] | {"TERM": "xterm"}
    with Screen() as screen:
        before = termios.tcgetattr(screen.slave)
        how = on_terminal(screen.slave)
        with place.project.running("--grace", "30s", *names, env=env, **how) as running:
            wait_lines(place.ready)
            wait_until(lambda: "━" in screen.shown, "the live region was drawn")
            os.write(screen.master, b"\x03")
            assert running.process.wait(30) == 130
        assert termios.tcgetattr(screen.slave) == before
    shown = screen.shown
    assert HIDE_CURSOR in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    left = render(shown)
    assert "SIGINT: stopping what runs; once more kills it" in left
    assert "Example Results Summary" in left
    assert left[-1].startswith("Interrupted by SIGINT: 2 examples without a verdict: ")
    assert not any("━" in line for line in left)
    assert json.loads(running.report.read_text())["run"]["interrupted"] is True
    place.assert_nothing_is_left()


def test_a_terminal_that_goes_away_loses_no_result(place: Place) -> None:
    names = children(place.project, "passes.py", "cleanup_on_sigterm.py", "hang.py")
    env = place.how["env"] | {"TERM": "xterm"}
    master, slave = pty.openpty()
    with place.project.running("--grace", "30s", *names, env=env, **on_terminal(slave)) as running:
        os.close(slave)
        wait_lines(place.ready)
        os.close(master)
        assert running.process.wait(30) == 129
        report = json.loads(running.report.read_text())
    assert report["run"]["interrupted"] is True
    assert [example["status"] for example in report["examples"]] == ["passed", "not-run", "not-run"]
    assert place.marker.exists()
    place.assert_nothing_is_left()


def test_a_signal_before_anything_was_started_is_told(place: Place) -> None:
    # Interrupts itself at the moment at which it opens its configuration.
    place.project.write(
        "early/sitecustomize.py",
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('e2e-run.toml'):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "sys.addaudithook(hook)\n",
    )
    path = os.pathsep.join(
        [str(place.project.root / "early"), place.project.environment()["PYTHONPATH"]]
    )
    outcome = place.project.run(".", env={"PYTHONPATH": path})
    assert outcome.code == 130
    # The empty line is click's: it ends the one on which a terminal shows ^C.
    assert outcome.stderr == "\ne2e-run: interrupted before anything was started\n"
