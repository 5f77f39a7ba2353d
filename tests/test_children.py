"""Every misbehaving child, run for real in every containment tier, as root and as an ordinary user."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    NOBODY,
    Outcome,
    Project,
    delegated_cgroup,
    ordinary_python,
    overrides,
    project,
)

IS_ROOT = os.geteuid() == 0

# The grace is for those who take it; for the others it is what the test waits for.
ENDS = ('timeout = "1s"', 'grace = "20s"')
HANGS = ('timeout = "1s"', 'grace = "300ms"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The right verdict on a child; `settings` are lines of its override."""

    status: str
    cause: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    settings: tuple[str, ...] = ()


PASSED = Expected(status="passed", exit_code=0)
LEAKED = Expected(status="leaked", exit_code=0)


def timeout(cause: str = "time-limit", **kwargs: int | str) -> Expected:
    settings = HANGS if cause == "ignored-sigterm" else ENDS
    return Expected(status="timeout", cause=cause, settings=settings, **kwargs)  # type: ignore[arg-type]  # a shorthand of two fields


EXPECTED = {
    "abort.py": Expected(status="failed", cause="signal", signal="SIGABRT"),
    "block_all_signals.py": timeout("ignored-sigterm", signal="SIGKILL"),
    "cleanup_on_sigterm.py": Expected(
        status="timeout",
        cause="time-limit",
        exit_code=0,
        settings=(*ENDS, 'env = { E2E_CHILD_MARKER = "cleaned-up" }'),
    ),
    "close_stdio.py": PASSED,
    "control_chars.py": Expected(status="failed", exit_code=1),
    "cwd_deleted.py": PASSED,
    "daemon.py": LEAKED,
    "daemon_clean_env.py": LEAKED,
    "exit_137.py": Expected(status="failed", cause="exit", exit_code=137),
    "fails.py": Expected(status="failed", exit_code=1),
    "fails_with_traceback.py": Expected(status="failed", exit_code=1),
    "flood_lines.py": Expected(status="passed", exit_code=0),
    "flood_one_line.py": Expected(status="passed", exit_code=0),
    "fork_hopper.py": LEAKED,
    "hang.py": timeout(signal="SIGTERM"),
    "hold_stdout.py": LEAKED,
    "ignore_sigterm.py": timeout("ignored-sigterm", signal="SIGKILL"),
    "invalid_utf8.py": Expected(status="failed", exit_code=1),
    "kill_parent.py": PASSED,
    "kill_parent_group.py": PASSED,
    "latin1.py": PASSED,
    "many_children.py": Expected(status="timeout", settings=('timeout = "4s"', 'grace = "300ms"')),
    "nondaemon_thread.py": timeout(signal="SIGTERM"),
    "orphan_zombie.py": PASSED,
    "passes.py": PASSED,
    "prints_unicode.py": PASSED,
    "read_stdin.py": Expected(status="failed", cause="eof-on-input", exit_code=1),
    "read_stdin_ok.py": Expected(status="passed", exit_code=0, settings=('stdin = "hello"',)),
    "reopen_stdout.py": PASSED,
    "replace_log.py": Expected(status="failed", exit_code=1),
    "rich_markup.py": Expected(status="failed", exit_code=1),
    "segfault.py": Expected(status="failed", cause="segfault", signal="SIGSEGV"),
    "session_chain.py": Expected(
        status="timeout", cause="ignored-sigterm", settings=('timeout = "3s"', 'grace = "300ms"')
    ),
    "sigstop_self.py": timeout(signal="SIGTERM"),
    "slow_cleanup.py": Expected(
        status="timeout",
        cause="ignored-sigterm",
        signal="SIGKILL",
        settings=(*HANGS, 'env = { E2E_CHILD_MARKER = "cleaning-up" }'),
    ),
    "stop_parent.py": PASSED,
    "survivors_new_session_pipes.py": LEAKED,
    "syntax_error.py": Expected(status="failed", cause="syntax-error", exit_code=1),
    "trap_and_exit_zero.py": timeout(exit_code=0),
    "unbuffered_check.py": PASSED,
    "zombie_maker.py": PASSED,
}

TIERS = [
    ("cgroup", None),
    ("pid-namespace", None),
    ("scan", None),
    ("process-group", None),
    ("cgroup", NOBODY),
    ("pid-namespace", NOBODY),
    ("scan", NOBODY),
]
# Nothing of these is the business of who holds the processes: three tiers stand for all.
OF_OUTPUT = {
    *("control_chars.py", "exit_137.py", "fails.py", "fails_with_traceback.py", "flood_lines.py"),
    *("flood_one_line.py", "invalid_utf8.py", "latin1.py", "prints_unicode.py", "read_stdin.py"),
    *("read_stdin_ok.py", "replace_log.py", "rich_markup.py", "syntax_error.py"),
    "unbuffered_check.py",
}
FOR_OUTPUT = {("cgroup", NOBODY), ("pid-namespace", None), ("scan", NOBODY)}
# What macOS offers cannot see a process that detaches and clears its environment between two looks.
ESCAPES_PROCESS_GROUP = {"daemon_clean_env.py", "fork_hopper.py"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    tier: str
    project: Project
    outcome: Outcome
    survivors: list[str]


def _chosen(tier: str, user: int | None) -> list[str]:
    left_out = set[str]()
    if tier == "process-group":
        left_out |= ESCAPES_PROCESS_GROUP
    if (tier, user) not in FOR_OUTPUT:
        left_out |= OF_OUTPUT
    return [name for name in EXPECTED if name not in left_out]


def _name(param: tuple[str, int | None]) -> str:
    tier, user = param
    return tier if user is None else f"{tier}-ordinary-user"


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, "Future[Ran]"]]:
    """Run the children in every tier, a few at once: they spend their time waiting."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        if IS_ROOT:
            stack.enter_context(delegated_cgroup(NOBODY))
        lock = threading.Lock()
        yield {
            _name((tier, user)): pool.submit(_run, stack, lock, tier, user) for tier, user in TIERS
        }
        pool.shutdown(cancel_futures=True)


def _run(stack: contextlib.ExitStack, lock: threading.Lock, tier: str, user: int | None) -> Ran:
    if not IS_ROOT and (user is not None or tier == "cgroup"):
        pytest.skip("needs root: to become another user, and to own a cgroup")
    if user is not None and ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    with lock:
        made = stack.enter_context(project(user=user))
    chosen = _chosen(tier, user)
    for name in chosen:
        made.child(name)
    config = made.root / "e2e-run.toml"
    config.write_text(
        config.read_text()
        + 'max-output = "1MiB"\ntimeout = "30s"\n'
        + overrides({name: EXPECTED[name].settings for name in chosen})
    )
    outcome = made.run("--containment", tier, *chosen, env={"E2E_CHILD_MB": "50"})
    survivors = [" ".join(process.cmdline()) for process in made.survivors()]
    return Ran(tier=tier, project=made, outcome=outcome, survivors=survivors)


every_tier = pytest.mark.parametrize("ran", TIERS, ids=_name, indirect=True)


@pytest.fixture
def ran(request: pytest.FixtureRequest, runs: dict[str, "Future[Ran]"]) -> Ran:
    return runs[_name(request.param)].result()


pytestmark = [pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("ran", "name"),
    [
        pytest.param(each, name, id=f"{_name(each)}-{name}")
        for each in TIERS
        for name in _chosen(*each)
    ],
    indirect=["ran"],
)
def test_verdict(ran: Ran, name: str) -> None:
    assert ran.outcome.examples, ran.outcome.stderr
    expected = EXPECTED[name]
    seen = ran.outcome.examples[name]
    assert seen["status"] == expected.status, seen
    if expected.cause is not None:
        assert seen["cause"] == expected.cause, seen
    if expected.signal is not None or expected.exit_code is not None:
        assert (seen["signal"], seen["exit_code"]) == (expected.signal, expected.exit_code), seen


@every_tier
def test_nothing_survives(ran: Ran) -> None:
    assert ran.survivors == []


@every_tier
def test_the_tier_that_was_asked_for_was_in_force(ran: Ran) -> None:
    assert ran.outcome.report["run"]["isolation"]["processes"] == ran.tier
    assert ran.outcome.code == 1


@every_tier
def test_leaked_processes_are_named(ran: Ran) -> None:
    for name, expected in EXPECTED.items():
        example = ran.outcome.examples.get(name)
        if expected.status == "leaked" and example is not None and name != "fork_hopper.py":
            (leak,) = (leak for leak in example["leaks"] if leak["kind"] == "process")
            assert leak["pid"] > 1
            assert str(ran.project.python) in leak["command"]


@every_tier
def test_a_script_that_leaves_something_is_over_at_once(ran: Ran) -> None:
    assert ran.outcome.examples["hold_stdout.py"]["duration"] < 5


@every_tier
def test_cleanup_within_the_grace_is_done(ran: Ran) -> None:
    assert (ran.project.root / "cleaned-up").exists()
    assert (ran.project.root / "cleaning-up").exists()


@pytest.mark.parametrize("ran", sorted(FOR_OUTPUT, key=str), ids=_name, indirect=True)
@pytest.mark.parametrize("name", ["flood_lines.py", "flood_one_line.py"])
def test_floods_are_bounded(ran: Ran, name: str) -> None:
    example = ran.outcome.examples[name]
    log = ran.project.root / example["log"]
    assert log.stat().st_size < 3 * 1024 * 1024
    assert b"e2e-run dropped" in log.read_bytes()


@every_tier
def test_temporary_folders_and_cgroups_are_given_back(ran: Ran) -> None:
    from e2e_runner.supervise import linux

    run_id = ran.outcome.report["run"]["id"]
    own = linux.own_cgroup()
    assert own is None or not (own / f"e2e-run-{run_id}").exists()
    assert list((ran.project.root / ".e2e-run" / "runs" / run_id).glob(".run/record.json")) == []


def test_a_tier_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    (tmp_path / "passes.py").write_text("print('fine')")
    # Inside a user namespace without any mapping, nothing may be mounted and no cgroup is ours.
    done = subprocess.run(
        ["unshare", "--user", sys.executable, "-m", "e2e_runner", "--containment", "cgroup", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stdout
    assert "The containment that was asked for cannot be had here." in done.stderr
    assert "cgroup: " in done.stderr
