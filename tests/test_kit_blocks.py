"""Blocks under signals, exceptions, threads and forks, mostly in scripts of their own."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from harness import REPOSITORY, wait_until

from e2e_runner.kit import _blocks
from e2e_runner.kit._blocks import Block, BlockError, BlockFailed, run

DEADLINE = 30.0  # seconds for anything; all of it takes milliseconds

# `block` tells what it does on stdout; "stay" has it hang there until a file "go" is there, "hang" until
# it is cancelled.
PRELUDE = """
import asyncio, contextlib, os, pathlib, signal, sys, threading
from e2e_runner.kit import _blocks
from e2e_runner.kit._blocks import Block

def note(what):
    os.write(1, f"{what}\\n".encode())

async def stay():
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.005)

async def hang(name):
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note(f"{name} hurried")
        raise

def block(name="b", *, entering="", leaving=""):
    @contextlib.asynccontextmanager
    async def hold():
        note(f"{name} entering")
        try:
            if entering:
                await asyncio.Event().wait()
            note(f"{name} entered")
            yield name
        finally:
            note(f"{name} leaving")
            try:
                if leaving == "stay":
                    await stay()
                if leaving == "hang":
                    await hang(name)
                if leaving == "deaf":
                    while True:
                        with contextlib.suppress(asyncio.CancelledError):
                            await asyncio.Event().wait()
            finally:
                note(f"{name} left")
    return Block(hold)
"""

SYNC = """
with block({arguments}) as value:
    note("inside")
    {inside}
note("after")
"""
SYNC_WAIT = "threading.Event().wait()"
ASYNC = """
async def main():
    # The loop tells in development mode what was slow, as everything is on a busy machine. For that it
    # reads source files, and what the second Ctrl-C raises there is told as a file that nobody closed.
    asyncio.get_running_loop().slow_callback_duration = 60
    async with block({arguments}) as value:
        note("inside")
        {inside}
    note("after")
asyncio.run(main())
"""
ASYNC_WAIT = "await asyncio.Event().wait()"
KINDS = {"sync": (SYNC, SYNC_WAIT), "async": (ASYNC, ASYNC_WAIT)}
CODES = {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143}  # Python ends by the signal for Ctrl-C
COMPLAINTS = (
    "never retrieved",
    "was destroyed",
    "Warning",
    "Exception ignored",
    "never awaited",
    "Fatal",
    "unhandled",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script under way, whose lines on stdout tell where it is."""

    process: subprocess.Popen[bytes]
    folder: Path
    lines: list[str] = field(default_factory=list)
    rest: bytearray = field(default_factory=bytearray)

    def wait_for(self, line: str) -> None:
        """Read until it has said `line`."""
        deadline = time.monotonic() + DEADLINE
        while line not in self.lines:
            assert time.monotonic() < deadline, f"{line!r} did not come: {self.lines}"
            if not self._read(0.1):
                pytest.fail(f"it ended before {line!r}: {self.lines} {self.end()}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal and wait until its main thread has taken notice and sleeps again."""
        before = self._switches()
        self.process.send_signal(number)
        wait_until(
            lambda: self.process.poll() is not None or self._switches() > before,
            "the signal was handled",
        )

    def go(self) -> None:
        """Let go what stays."""
        (self.folder / "go").touch()

    def end(self) -> tuple[int, str]:
        """Wait for its end; gives the exit code and what it said on stderr."""
        deadline = time.monotonic() + DEADLINE
        while self._read(0.1):
            assert time.monotonic() < deadline, f"it does not end: {self.lines}"
        code = self.process.wait(DEADLINE)
        assert self.process.stderr is not None
        return code, self.process.stderr.read().decode()

    def _read(self, seconds: float) -> bool:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if not select.select([fd], [], [], seconds)[0]:
            return True
        data = os.read(fd, 65536)
        self.rest.extend(data)
        *whole, last = self.rest.split(b"\n")
        self.lines.extend(line.decode() for line in whole)
        self.rest[:] = last
        return bool(data)

    def _switches(self) -> int:
        """Count how often its main thread went to sleep by itself; -1 while it is awake."""
        with contextlib.suppress(OSError):
            pid = self.process.pid
            status = Path(f"/proc/{pid}/task/{pid}/status").read_text(encoding="ascii")
            facts = dict(line.split(":", 1) for line in status.splitlines())
            if facts["State"].split()[0] == "S":
                return int(facts["voluntary_ctxt_switches"])
        return -1


@contextlib.contextmanager
def started(folder: Path, source: str) -> Iterator[Script]:
    """Run a script, with every warning an error and development mode on, for the length of the block."""
    file = folder / "script.py"
    file.write_text(PRELUDE + source, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if "E2E_RUN" not in name}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", str(file)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield Script(process=process, folder=folder)
        finally:
            process.kill()


def of_kind(kind: str, arguments: str = "", inside: str = "") -> str:
    template, wait = KINDS[kind]
    return template.format(arguments=arguments, inside=inside or wait)


def is_quiet(stderr: str) -> bool:
    return not any(complaint in stderr for complaint in COMPLAINTS)


both_kinds = pytest.mark.parametrize("kind", KINDS)
both_signals = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)


# --- one signal ----------------------------------------------------------------------------------


@both_kinds
@both_signals
def test_signal_while_entering_leaves_what_was_taken(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, "entering='hang'")) as script:
        script.wait_for("b entering")
        script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines) == (CODES[number], ["b entering", "b leaving", "b left"])
    assert is_quiet(stderr), stderr


@both_kinds
@both_signals
def test_signal_inside_leaves_the_block(kind: str, number: signal.Signals, tmp_path: Path) -> None:
    with started(tmp_path, of_kind(kind)) as script:
        script.wait_for("inside")
        script.process.send_signal(number)
        code, stderr = script.end()
    assert code == CODES[number]
    assert script.lines == ["b entering", "b entered", "inside", "b leaving", "b left"]
    assert is_quiet(stderr), stderr
    assert ("KeyboardInterrupt" in stderr) == (number is signal.SIGINT)


@both_kinds
@both_signals
def test_signal_while_leaving_waits_for_that(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, "leaving='stay'", "pass")) as script:
        script.wait_for("b leaving")
        script.send(number)
        script.go()
        code, stderr = script.end()
    assert code == CODES[number]
    assert script.lines[-2:] == ["b leaving", "b left"]  # and not "after"
    assert is_quiet(stderr), stderr


@both_signals
def test_signal_ends_a_blocking_call_in_a_coroutine(number: signal.Signals, tmp_path: Path) -> None:
    # For Ctrl-C asyncio itself has the first one wait for the loop; the second is what ends the call.
    source = ASYNC.format(arguments="", inside=SYNC_WAIT)
    with started(tmp_path, source) as script:
        script.wait_for("inside")
        script.send(number)
        if number is signal.SIGINT:
            script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines[-1]) == (CODES[number], "b left")
    assert is_quiet(stderr), stderr


@both_signals
def test_synchronous_block_in_a_coroutine(number: signal.Signals, tmp_path: Path) -> None:
    source = """
async def main():
    with block(entering="hang"):
        note("inside")
asyncio.run(main())
"""
    with started(tmp_path, source) as script:
        script.wait_for("b entering")
        script.send(number)
        if number is signal.SIGINT:  # as above
            script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines[-1]) == (CODES[number], "b left")
    assert is_quiet(stderr), stderr


@both_kinds
def test_termination_before_and_after_a_block_is_the_default(kind: str, tmp_path: Path) -> None:
    source = of_kind(kind, inside="pass") + "note('end')\nthreading.Event().wait()\n"
    with started(tmp_path, source) as script:
        script.wait_for("end")
        script.process.send_signal(signal.SIGTERM)
        assert script.end() == (-signal.SIGTERM, "")


# --- more signals --------------------------------------------------------------------------------


@both_kinds
@both_signals
def test_second_signal_has_the_leaving_hurry(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, "leaving='hang'")) as script:
        script.wait_for("inside")
        script.process.send_signal(number)
        script.wait_for("b leaving")
        script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines[-3:]) == (CODES[number], ["b leaving", "b hurried", "b left"])
    assert is_quiet(stderr), stderr


@both_kinds
@both_signals
def test_two_signals_while_leaving_have_it_hurry(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, "leaving='hang'", "pass")) as script:
        script.wait_for("b leaving")
        script.send(number)
        script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines[-3:]) == (CODES[number], ["b leaving", "b hurried", "b left"])
    assert is_quiet(stderr), stderr


@both_kinds
@both_signals
def test_second_signal_has_the_giving_up_hurry(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, "entering='hang', leaving='hang'")) as script:
        script.wait_for("b entering")
        script.process.send_signal(number)
        script.wait_for("b leaving")
        script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines[-3:]) == (CODES[number], ["b leaving", "b hurried", "b left"])
    assert is_quiet(stderr), stderr


@both_kinds
@both_signals
def test_what_does_not_end_holds_nobody_who_insists(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, "leaving='deaf'")) as script:
        script.wait_for("inside")
        script.process.send_signal(number)
        script.wait_for("b leaving")
        deadline = time.monotonic() + DEADLINE
        while script.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {script.lines}"
            script.send(number)
            # As fast as somebody presses keys: a flood would interrupt the end of the interpreter too.
            with contextlib.suppress(subprocess.TimeoutExpired):
                script.process.wait(0.2)
        code, _ = script.end()
    assert code in {CODES[number], -signal.SIGINT if number is signal.SIGINT else -signal.SIGTERM}


def test_storm_of_signals_leaves_nothing_behind(tmp_path: Path) -> None:
    source = """
for number in range(1000):
    with block(f"b{number}"):
        pass
"""
    for number, every in ((signal.SIGTERM, 7), (signal.SIGINT, 7), (signal.SIGTERM, 3)):
        (tmp_path / "go").unlink(missing_ok=True)
        with started(tmp_path, source) as script:
            script.wait_for(f"b{every} entering")  # somewhere in the middle of it all
            script.process.send_signal(number)
            code, stderr = script.end()
        assert code == CODES[number]
        names = {line.split()[0] for line in script.lines}
        unfinished = {name for name in names if f"{name} left" not in script.lines}
        # What the signal found between two bytecodes of the `with` statement itself, at most.
        assert len(unfinished) <= 1, (number, unfinished, stderr)
        assert is_quiet(stderr), stderr


# --- handlers of the script ----------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("moment", ["entering", "inside", "leaving"])
def test_handler_of_the_script_is_kept(kind: str, moment: str, tmp_path: Path) -> None:
    arguments = "leaving='stay'" if moment == "leaving" else ""
    inside = {"sync": "threading.Event().wait(0.01)", "async": "await asyncio.sleep(0.01)"}[kind]
    source = (
        """
def own(number, frame):
    note("own handler")
    pathlib.Path("go").touch()
signal.signal(signal.SIGTERM, own)
"""
        + of_kind(kind, arguments, "await stay()" if kind == "async" else "run_stay()")
        + "note(signal.getsignal(signal.SIGTERM) is own)\n"
    )
    source = source.replace("def own", "def run_stay():\n    asyncio.run(stay())\n\ndef own")
    if moment == "entering":
        source = source.replace("if entering:", "if True:").replace(inside, "pass")
        source = PRELUDE_STAYS + source
    with started(tmp_path, source) as script:
        script.wait_for({"entering": "b entering", "inside": "inside", "leaving": "inside"}[moment])
        script.process.send_signal(signal.SIGTERM)
        code, stderr = script.end()
    assert (code, script.lines[-1]) == (0, "True")
    assert "own handler" in script.lines
    assert is_quiet(stderr), stderr


# Entering waits for the file as well.
PRELUDE_STAYS = """
def block(*_args, **_more):
    @contextlib.asynccontextmanager
    async def hold():
        note("b entering")
        await stay()
        yield "b"
    return Block(hold)
"""


@both_kinds
def test_handler_of_the_script_that_raises_while_entering(kind: str, tmp_path: Path) -> None:
    source = """
def own(number, frame):
    note("own handler")
    sys.exit(7)
signal.signal(signal.SIGTERM, own)
""" + of_kind(kind, "entering='hang'")
    with started(tmp_path, source) as script:
        script.wait_for("b entering")
        script.process.send_signal(signal.SIGTERM)
        code, stderr = script.end()
    assert (code, script.lines[-3:]) == (7, ["own handler", "b leaving", "b left"])
    assert is_quiet(stderr), stderr


def test_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    source = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + of_kind(
        "sync", "leaving='stay'", "pass"
    )
    with started(tmp_path, source) as script:
        script.wait_for("b leaving")
        script.process.send_signal(signal.SIGTERM)
        script.go()
        assert script.end() == (0, "")
    assert script.lines[-1] == "after"


# --- ends of a script ----------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize(
    ("inside", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("raise StopIteration", 1, "StopIteration"),
        ("os._exit(5)", 5, ""),
    ],
)
def test_end_of_the_script_inside(
    kind: str, inside: str, code: int, said: str, tmp_path: Path
) -> None:
    with started(tmp_path, of_kind(kind, inside=inside)) as script:
        ended, stderr = script.end()
    assert ended == code
    assert said in stderr
    assert is_quiet(stderr), stderr
    if code != 5:
        assert script.lines[-2:] == ["b leaving", "b left"]


def test_blocks_that_are_never_left_end_with_the_interpreter(tmp_path: Path) -> None:
    source = """
import atexit
kept = [block("x"), block("y")]
atexit.register(note, "atexit")
for each in kept:
    each.__enter__()
note('end')
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    assert script.lines[-6:] == ["end", "atexit", "y leaving", "y left", "x leaving", "x left"]
    assert (code, stderr) == (0, "")


# A generator in a cycle with what it belongs to: nobody closes it but the collector.
FIXTURE = """
import gc
class Fixture:
    def open(self, *arguments):
        with block(*arguments) as value:
            yield self, value

def use(*arguments):
    fixture = Fixture()
    fixture.opened = fixture.open(*arguments)
    next(fixture.opened)
"""

DYING = """
def dying(name="d"):
    @contextlib.asynccontextmanager
    async def hold():
        try:
            yield name
        finally:
            raise _blocks.BlockError(f"{name} has died")
    return Block(hold)
"""


def test_generator_that_the_last_collection_finds_is_over(tmp_path: Path) -> None:
    with started(tmp_path, FIXTURE + "gc.disable()\nuse()\nnote('end')\n") as script:
        code, stderr = script.end()
    assert script.lines[-3:] == ["end", "b leaving", "b left"]
    assert (code, stderr) == (0, "")


def test_what_works_in_threads_is_left_at_the_end(tmp_path: Path) -> None:
    source = """
@contextlib.asynccontextmanager
async def hold():
    try:
        yield
    finally:
        await asyncio.to_thread(note, "in a thread")
kept = Block(hold)
kept.__enter__()
"""
    with started(tmp_path, source) as script:
        assert script.end() == (0, "")
    assert script.lines == ["in a thread"]


def test_what_had_died_and_nobody_hears_of_fails_the_script(tmp_path: Path) -> None:
    source = """
import atexit
kept = dying()
kept.__enter__()
atexit.register(note, "atexit")
print("buffered")
"""
    with started(tmp_path, DYING + source) as script:
        code, stderr = script.end()
    assert (code, stderr) == (120, "d has died\n")
    assert sorted(script.lines) == ["atexit", "buffered"]


@both_signals
def test_signals_while_the_interpreter_leaves_blocks_have_it_hurry(
    number: signal.Signals, tmp_path: Path
) -> None:
    source = "kept = block(leaving='hang')\nkept.__enter__()\n"
    with started(tmp_path, source) as script:
        script.wait_for("b leaving")
        script.send(number)
        script.process.send_signal(number)
        code, stderr = script.end()
    assert (code, script.lines[-2:]) == (120, ["b hurried", "b left"])
    assert is_quiet(stderr), stderr


@pytest.mark.parametrize("before", ["import concurrent.futures.thread", "pass"])
def test_block_in_a_function_that_atexit_calls(before: str, tmp_path: Path) -> None:
    source = f"""
import atexit
{before}
def late():
    try:
        with block():
            note("inside")
    except RuntimeError as error:
        note(error)
atexit.register(late)
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    assert (code, stderr) == (0, "")
    if before == "pass":
        words = (
            "a block cannot be entered while the interpreter ends: enter it in the script itself"
        )
        assert script.lines == [f"{words}, not in a function that atexit calls"]
    else:
        assert script.lines[-3:] == ["inside", "b leaving", "b left"]


IN_KIT_THREAD = """
@contextlib.asynccontextmanager
async def collect_here():
    gc.collect()
    yield
gc.disable()
"""


def test_collector_in_the_thread_of_the_kit_leaves_a_block(tmp_path: Path) -> None:
    source = """
use()
with Block(collect_here):
    note("inside")
note("end")
"""
    with started(tmp_path, FIXTURE + IN_KIT_THREAD + source) as script:
        code, stderr = script.end()
    assert (code, stderr) == (0, "")
    assert "b left" in script.lines
    assert script.lines.index("b leaving") < script.lines.index("end")


def test_what_had_died_when_the_collector_left_it_fails_the_script(tmp_path: Path) -> None:
    source = """
block = dying
use()
with Block(collect_here):
    pass
note("end")
"""
    with started(tmp_path, FIXTURE + DYING + IN_KIT_THREAD + source) as script:
        code, stderr = script.end()
    assert (code, stderr, script.lines) == (120, "d has died\n", ["end"])


def test_block_entered_in_the_thread_of_the_kit_is_refused(tmp_path: Path) -> None:
    source = """
async def enter():
    with block("inner"):
        pass
try:
    _blocks.run(enter())
except RuntimeError as error:
    note(error)
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    assert (code, stderr) == (0, "")
    assert script.lines[0].startswith("a block was entered in a thread of the kit")


# --- what is raised meanwhile --------------------------------------------------------------------


FAILING = 'raise ValueError("wrong")'


@both_kinds
@pytest.mark.parametrize(("exit_code", "code"), [("0", 1), ("None", 1), ("7", 7)])
def test_exit_while_leaving_for_a_failure_hides_it_only_by_another(
    kind: str, exit_code: str, code: int, tmp_path: Path
) -> None:
    own = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({exit_code}))\n"
    with started(tmp_path, own + of_kind(kind, "leaving='stay'", FAILING)) as script:
        script.wait_for("b leaving")
        script.send(signal.SIGTERM)
        script.go()
        ended, stderr = script.end()
    assert (ended, script.lines[-1]) == (code, "b left")
    assert ("ValueError: wrong" in stderr) == (code == 1)
    assert is_quiet(stderr), stderr


@both_kinds
def test_exit_while_leaving_does_not_hide_what_has_died(kind: str, tmp_path: Path) -> None:
    source = DYING.replace(
        "            raise",
        "            note('b leaving')\n            await stay()\n            raise",
    )
    own = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    with started(tmp_path, source + own + "block = dying\n" + of_kind(kind, "", "pass")) as script:
        script.wait_for("b leaving")
        script.send(signal.SIGTERM)
        script.go()
        code, stderr = script.end()
    assert code == 1
    assert "BlockError: d has died" in stderr


def test_timeout_while_leaving_for_a_failure_does_not_hide_it(tmp_path: Path) -> None:
    source = """
async def main():
    try:
        async with asyncio.timeout(None) as limit:
            async with block(leaving="stay"):
                limit.reschedule(0)  # it is over when the loop has its next turn
                raise ValueError("wrong")
    except TimeoutError:
        note("hidden")
    finally:
        note(asyncio.current_task().cancelling())
async def go():
    task = asyncio.create_task(main())
    while not task.cancelling():
        await asyncio.sleep(0.005)
    pathlib.Path("go").touch()
    await task
asyncio.run(go())
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    assert code == 1
    assert "ValueError: wrong" in stderr
    assert script.lines[-1] == "0"
    assert "hidden" not in script.lines


@pytest.mark.parametrize("end", ["task.cancel()", "asyncio.timeout"])
def test_cancelled_task_does_not_hide_what_has_died(end: str, tmp_path: Path) -> None:
    source = f"""
async def work(end):
    async with dying():
        end()
        await asyncio.Event().wait()
async def main():
    if {end!r} == "asyncio.timeout":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await work(lambda: limit.reschedule(0))
    else:
        task = asyncio.create_task(work(lambda: task.cancel()))
        with contextlib.suppress(asyncio.CancelledError):
            await task
asyncio.run(main())
"""
    with started(tmp_path, DYING + source) as script:
        code, stderr = script.end()
    assert code == 1
    assert "BlockError: d has died" in stderr


def test_timeout_of_a_block_is_a_timeout(tmp_path: Path) -> None:
    source = """
async def main():
    try:
        async with asyncio.timeout(0.05), block():
            await asyncio.Event().wait()
    except TimeoutError:
        note("timeout")
    note(asyncio.current_task().cancelling())
asyncio.run(main())
"""
    with started(tmp_path, source) as script:
        assert script.end() == (0, "")
    assert script.lines[-2:] == ["timeout", "0"]


# --- anywhere ------------------------------------------------------------------------------------


def test_signal_handler_that_enters_and_leaves_blocks(tmp_path: Path) -> None:
    # At every line of what gives out loops, one after another, in place of chance.
    source = """
first = None
def nested(frame, event, argument):
    if frame.f_code.co_name in ("acquire", "admit", "start") and event == "line":
        at = (frame.f_code.co_name, frame.f_lineno)
        if at not in seen:
            seen.add(at)
            os.kill(os.getpid(), signal.SIGUSR1)
    return nested
seen = set()
@contextlib.asynccontextmanager
async def nothing():
    yield
def own(number, frame):
    global first
    trace = sys.gettrace()
    sys.settrace(None)
    if first is not None:
        first.__exit__(None, None, None)
    with Block(nothing):
        pass
    first = Block(nothing)
    first.__enter__()
    sys.settrace(trace)
signal.signal(signal.SIGUSR1, own)
sys.settrace(nested)
for _ in range(60):
    with Block(nothing), Block(nothing):
        pass
sys.settrace(None)
first.__exit__(None, None, None)
note(len(seen) > 10)
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    assert (code, script.lines, stderr) == (0, ["True"], "")


def test_block_left_in_another_thread_leaves_termination_as_it_was(tmp_path: Path) -> None:
    source = """
left = block()
left.__enter__()
thread = threading.Thread(target=left.__exit__, args=(None, None, None))
thread.start()
thread.join()
note("end")
threading.Event().wait()
"""
    with started(tmp_path, source) as script:
        script.wait_for("end")
        script.process.send_signal(signal.SIGTERM)
        assert script.end() == (-signal.SIGTERM, "")


def test_block_left_after_its_loop_was_closed_ends(tmp_path: Path) -> None:
    source = """
loop = asyncio.new_event_loop()
async def enter():
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(block(leaving="stay"))
        return stack.pop_all()
stack = loop.run_until_complete(enter())
loop.close()
threading.Timer(0.2, pathlib.Path("go").touch).start()  # while it is waited for
try:
    stack.aclose().send(None)
except StopIteration:
    note("ended")
note(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    assert (code, stderr) == (0, "")
    assert script.lines[-3:] == ["b left", "ended", "True"]


# --- threads and processes -----------------------------------------------------------------------


def test_termination_with_blocks_in_threads_only(tmp_path: Path) -> None:
    source = """
def work(name):
    with block(name):
        threading.Event().wait()
threads = [threading.Thread(target=work, args=(name,)) for name in ("x", "y")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    with started(tmp_path, source) as script:
        script.wait_for("x entered")
        script.wait_for("y entered")
        script.process.send_signal(signal.SIGTERM)
        assert script.end() == (-signal.SIGTERM, "")


def test_forked_process_leaves_the_block_of_its_parent_alone(tmp_path: Path) -> None:
    source = """
with block():
    if not (pid := os.fork()):
        with block("child"):
            note("child inside")
    else:
        note(f"waited {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
note("after")
"""
    with started(tmp_path, source) as script:
        code, stderr = script.end()
    child = ["child entering", "child entered", "child inside", "child leaving", "child left"]
    assert script.lines == [
        *("b entering", "b entered", *child),
        *("after", "waited 0", "b leaving", "b left", "after"),
    ]
    assert (code, stderr) == (0, "")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing(method: str, tmp_path: Path) -> None:
    source = f"""
import multiprocessing
def work():
    with block("child"):
        note("child inside")
        threading.Event().wait()
def plain():
    note("plain")
    threading.Event().wait()
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    with block():
        processes = [context.Process(target=target) for target in (work, plain)]
        for process in processes:
            process.start()
        note("started")
        for process in processes:
            process.join()
            note(f"exit code {{process.exitcode}}")
"""
    with started(tmp_path, source) as script:
        for line in ("started", "child inside", "plain"):
            script.wait_for(line)
        children = psutil.Process(script.process.pid).children()
        # The tracker of resources is a child too, and ignores it.
        for child in children:
            child.terminate()
        code, stderr = script.end()
    assert script.lines[-4:] == [
        *("exit code 143", f"exit code {-signal.SIGTERM}"),  # the child's own block, and none
        *("b leaving", "b left"),
    ]
    assert script.lines.count("child left") == 1
    assert code == 0
    assert is_quiet(stderr), stderr


# --- in this process -----------------------------------------------------------------------------


def simple(name: str = "b", log: list[str] | None = None) -> Block[str]:
    noted = [] if log is None else log

    @contextlib.asynccontextmanager
    async def hold() -> AsyncIterator[str]:
        noted.append(f"{name} in")
        try:
            yield name
        finally:
            noted.append(f"{name} out")

    return Block(hold)


def failing(*, at: str, error: Exception) -> Block[None]:
    @contextlib.asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        if at == "entry":
            raise error
        try:
            yield
        except BlockFailed:
            raise error from None
        raise error

    return Block(hold)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """See that no thread, descriptor or handler is left by a test."""
    fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count is all
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert not [each for each in threading.enumerate() if each.name == "e2e_runner.kit"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert len(os.listdir("/proc/self/fd")) == fds  # noqa: PTH208 - same


def test_with_gives_the_value() -> None:
    with simple() as value:
        assert value == "b"


def test_async_with_gives_the_value() -> None:
    async def main() -> str:
        async with simple() as value:
            return value

    assert asyncio.run(main()) == "b"


def test_nested_blocks_left_out_of_order() -> None:
    log: list[str] = []
    first, second = simple("first", log), simple("second", log)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with simple("third", log):
        second.__exit__(None, None, None)
    assert log == ["first in", "second in", "first out", "third in", "second out", "third out"]


def test_block_is_entered_once() -> None:
    block = simple()
    with block:
        pass
    with pytest.raises(RuntimeError, match="this block was entered before: make a new one"), block:
        pass
    with pytest.raises(RuntimeError, match="this block was left before"):
        block.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="this block was not entered"):
        simple().__exit__(None, None, None)


def test_blocks_in_many_threads() -> None:
    log: list[str] = []

    def work(number: int) -> None:
        for turn in range(20):
            with simple(f"{number}.{turn}", log):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(log) == 8 * 20 * 2


def test_block_entered_in_one_thread_and_left_in_another() -> None:
    block = simple()
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    with simple():  # gives back the handler, which only the main thread can
        pass


@pytest.mark.parametrize("at", ["entry", "end"])
def test_error_of_the_holder_is_raised(at: str) -> None:
    with pytest.raises(ValueError, match="wrong"), failing(at=at, error=ValueError("wrong")):
        assert at == "end"

    async def main() -> None:
        async with failing(at=at, error=ValueError("wrong")):
            assert at == "end"

    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(main())


@pytest.mark.parametrize("at", ["entry", "end"])
def test_error_that_says_all_shows_nothing_of_the_kit(at: str) -> None:
    with pytest.raises(BlockError) as caught, failing(at=at, error=BlockError("wrong")):
        pass
    names = [entry.name for entry in caught.traceback]
    assert "_run" not in names
    assert "hold" not in names


def test_exception_of_the_script_stays_and_gets_a_note() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, failing(at="end", error=ValueError("wrong")):
        raise error
    assert caught.value is error
    assert error.__notes__ == ["ValueError: wrong"]


def test_exit_of_the_script_stays_and_the_error_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught, failing(at="end", error=BlockError("wrong")):
        sys.exit(3)
    assert caught.value.code == 3
    assert capsys.readouterr().err == "wrong\n"


@pytest.mark.parametrize("code", [None, 0])
def test_an_exit_as_if_all_were_well_is_none(code: int | None) -> None:
    with pytest.raises(BlockError, match="wrong"), failing(at="end", error=BlockError("wrong")):
        sys.exit(code)


def test_holder_sees_what_the_script_raised() -> None:
    seen: list[BaseException] = []

    @contextlib.asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        try:
            yield
        except BlockFailed as failure:
            seen.append(failure.error)
            raise

    error = KeyError("mine")
    with contextlib.suppress(KeyError), Block(hold):
        raise error
    assert seen == [error]


def test_cancelled_task_leaves_its_block() -> None:
    log: list[str] = []

    async def work(entered: asyncio.Event) -> None:
        async with simple("b", log):
            entered.set()
            await asyncio.Event().wait()

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(work(entered))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["b in", "b out"]


def test_timeout_while_entering_gives_back_what_was_taken() -> None:
    log: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        @contextlib.asynccontextmanager
        async def hold() -> AsyncIterator[None]:
            log.append("in")
            try:
                loop.call_soon_threadsafe(limit.reschedule, 0)
                await asyncio.Event().wait()
                yield
            finally:
                log.append("out")

        async with asyncio.timeout(None) as limit, Block(hold):
            pytest.fail("it never is")

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert log == ["in", "out"]


def test_block_that_is_given_up_before_its_loop_gets_to_it_ends() -> None:
    gate = threading.Event()
    log: list[str] = []

    async def main() -> None:
        home = _blocks._homes._home
        assert home is not None
        home.loop.call_soon_threadsafe(gate.wait)
        entering = asyncio.create_task(simple("b", log).__aenter__())
        await asyncio.sleep(0)  # one turn: it has begun, and waits
        entering.cancel()
        await asyncio.sleep(0)  # and has heard that it is given up
        gate.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait([entering])
        assert entering.cancelled()

    with simple():
        asyncio.run(main())
    assert log == []


def test_tasks_of_a_group_leave_their_blocks_when_one_fails() -> None:
    log: list[str] = []

    async def work(name: str) -> None:
        async with simple(name, log):
            await asyncio.Event().wait()

    async def fail() -> None:
        async with simple("f", log):
            raise ValueError("wrong")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "xyz":
                group.create_task(work(name))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup):
        asyncio.run(main())
    assert {line for line in log if line.endswith("in")} == {
        line.replace("out", "in") for line in log if line.endswith("out")
    }


def test_another_kind_of_loop_is_refused_before_anything_is_taken() -> None:
    log: list[str] = []
    entering = simple("b", log).__aenter__()
    with pytest.raises(RuntimeError, match="no running event loop"):
        entering.send(None)
    assert log == []


def test_holder_that_exits_does_not_hang_anybody() -> None:
    @contextlib.asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        if threading.current_thread() is not threading.main_thread():
            sys.exit(9)
        yield

    with pytest.raises(SystemExit), Block(hold):
        pass


def test_run_gives_the_result_or_the_error() -> None:
    async def work(value: int) -> int:
        await asyncio.sleep(0)
        if not value:
            raise ValueError("nothing")
        return value

    assert run(work(3)) == 3
    with pytest.raises(ValueError, match="nothing"):
        run(work(0))


def test_forked_process_has_blocks_of_its_own() -> None:
    context = multiprocessing.get_context("fork")
    with simple():
        process = context.Process(target=_enter_in_child)
        process.start()
        process.join(DEADLINE)
    assert process.exitcode == 0


def _enter_in_child() -> None:
    with simple() as value:
        assert value == "b"


LOG = logging.getLogger("asyncio")


def the_loop_tells_of_an_error(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(lambda: 1 / 0)


def the_script_calls_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_exception_handler({"message": "wrong"})


def the_kit_calls_a_loop(loop: asyncio.AbstractEventLoop) -> None:
    # As `Block.__enter__` does, which may hold up the loop of the script right after.
    types.FunctionType(the_script_calls_the_loop.__code__, vars(_blocks))(loop)


def a_callback_from_the_library(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(LOG.error, "wrong")


def a_callback_of_the_script(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(lambda: LOG.error("wrong"))


def a_coroutine_of_the_script(_: asyncio.AbstractEventLoop) -> None:
    LOG.error("wrong")


@pytest.mark.parametrize(
    "log",
    [
        the_loop_tells_of_an_error,
        the_script_calls_the_loop,
        the_kit_calls_a_loop,
        a_callback_from_the_library,
        a_callback_of_the_script,
        a_coroutine_of_the_script,
    ],
)
def test_what_the_loop_calls_of_the_library_is_its_own_code(
    log: Callable[[asyncio.AbstractEventLoop], None],
) -> None:
    interrupted = []

    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            interrupted.append(_blocks._interrupted_loop(sys._getframe(1)))

    async def main() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        log(loop)
        await asyncio.sleep(0)
        return loop

    handler = Handler()
    LOG.addHandler(handler)
    try:
        loop = asyncio.run(main())
    finally:
        LOG.removeHandler(handler)
    is_its_own = log in (the_loop_tells_of_an_error, the_script_calls_the_loop)
    assert interrupted == [loop if is_its_own else None]
