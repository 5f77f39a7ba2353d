import asyncio
import contextlib
import contextvars
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_layers import loaded_by

from e2e_runner import records
from e2e_runner.kit import _channel, metric, narration, section, step, success
from e2e_runner.records import MetricTold, SectionBegan, StepBegan, StepEnded, SummaryTold


class Clock:
    """Seconds, which a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def restart(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Have a story of its own, as if the program had just begun."""
    monkeypatch.setattr(narration, "_root", narration._Level())
    monkeypatch.setattr(narration, "_here", contextvars.ContextVar("here", default=narration._root))
    monkeypatch.setattr(narration, "_story", narration._Story(clock))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    for name in ("E2E_VERBOSE", "E2E_RUN_RECORDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    clock = Clock()
    restart(monkeypatch, clock)
    return clock


@pytest.fixture
def verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2E_VERBOSE", "true")


Records = Callable[[], list[records.Record]]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Records:
    file = tmp_path / "records"
    file.touch()
    monkeypatch.setenv("E2E_RUN_RECORDS", str(file))
    restart(monkeypatch, clock)
    return lambda: read_records(file)


def read_records(file: Path) -> list[records.Record]:
    found = [records.decode(line) for line in file.read_bytes().splitlines(keepends=True)]
    assert None not in found
    return [record for record in found if record is not None]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def script(
    text: str, *, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program that imports the kit."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("E2E_", "NO_COLOR"))}
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\nfrom e2e_runner.kit import *\n{text}"],
        env={**kept, **(env or {})},
        check=False,
        text=True,
        encoding="utf-8",
        timeout=60,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def timeless(text: str) -> list[str]:
    return re.sub(r"\b[0-9.]+(ms|s)\b", "TIME", text).splitlines()


# --- what is printed -----------------------------------------------------------------------------


def tell_a_story(clock: Clock) -> None:
    section("Login")
    step("prepare")
    clock.now += 0.1
    with step("log in"):
        clock.now += 0.5
    metric("files processed", 2)
    section("Orders")
    with contextlib.suppress(ZeroDivisionError), step("place orders"):
        step("read the catalog")
        clock.now += 1
        with step("send"):
            clock.now += 0.25
            raise ZeroDivisionError("division by zero\nand more")
    metric("files processed", 3)
    metric("mean price", 0.1 + 0.2)
    success("All orders placed")
    with step("once more"):
        clock.now += 2
    success("Again")


def test_people_see_sections_failed_steps_and_the_summary(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_a_story(clock)
    assert printed(capsys) == [
        "── Login",
        "── Orders",
        "✗ place orders > send (250ms): ZeroDivisionError: division by zero",
        "! All orders placed: 5 steps, 1 failed, in 1.85s",
        "  files processed: 3",
        "  mean price: 0.3",
        "✓ Again: 1 step in 2.00s",
    ]


@pytest.mark.usefixtures("verbose")
def test_people_may_see_everything(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    tell_a_story(clock)
    assert printed(capsys) == [
        "── Login",
        "  → prepare",
        "  ✓ prepare (100ms)",
        "  → log in",
        "  ✓ log in (500ms)",
        "files processed: 2",
        "── Orders",
        "  → place orders",
        "    → read the catalog",
        "    ✓ read the catalog (1.00s)",
        "    → send",
        "    ✗ send (250ms): ZeroDivisionError: division by zero",
        "  ✗ place orders (1.25s)",
        "files processed: 3",
        "mean price: 0.3",
        "! All orders placed: 5 steps, 1 failed, in 1.85s",
        "  files processed: 3",
        "  mean price: 0.3",
        "  → once more",
        "  ✓ once more (2.00s)",
        "✓ Again: 1 step in 2.00s",
    ]


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "on"])
def test_verbose_has_several_names(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("E2E_VERBOSE", value)
    step("log in")
    assert printed(capsys) == ["  → log in"]


@pytest.mark.parametrize("value", ["", "0", "false", "no", "off", "2"])
def test_anything_else_is_quiet(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("E2E_VERBOSE", value)
    step("log in")
    metric("orders", 1)
    assert printed(capsys) == []


def test_a_summary_says_what_there_is_to_say(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.now += 3
    success()
    success("It works")
    step("a")
    success()
    step("a")
    step("b")
    clock.now += 1
    success("It still works")
    assert printed(capsys) == [
        "✓ done in 3.00s",
        "✓ It works in 0ms",
        "✓ 1 step in 0ms",
        "✓ It still works: 2 steps in 1.00s",
    ]


@pytest.mark.usefixtures("verbose")
def test_foreign_text_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    section("a\nb\x1b[31m")
    step("c\rd" + "x" * 300)
    metric("e\n", "f\n")
    assert printed(capsys) == [
        "── a\\nb\\x1b[31m",
        "  → c\\rd" + "x" * 195 + "…",
        "    e\\n: f\\n",
    ]


def test_a_repeated_failure_is_printed_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with contextlib.suppress(ValueError), step("try"):
            raise ValueError("no")
    assert printed(capsys) == ["✗ try (0ms): ValueError: no"] * 2


def test_another_failure_than_that_within_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(KeyError), step("outer"):
        with contextlib.suppress(ValueError), step("inner"):
            raise ValueError("no")
        raise KeyError("why")
    assert printed(capsys) == [
        "✗ outer > inner (0ms): ValueError: no",
        "✗ outer (0ms): KeyError: 'why'",
    ]


# --- when a step has failed ----------------------------------------------------------------------


class Unspeakable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AssertionError("3 of 5"), "AssertionError: 3 of 5"),
        (AssertionError(), "AssertionError"),
        (ValueError("\n\n  third line\nfourth"), "ValueError: third line"),
        (ValueError("x" * 500), f"ValueError: {'x' * 299}…"),
        (ValueError("a\x1b[2Jb"), "ValueError: a\\x1b[2Jb"),
        (Unspeakable(), "Unspeakable"),
        (KeyboardInterrupt(), "stopped by Ctrl-C"),
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit("no server"), "SystemExit: no server"),
        (ExceptionGroup("two", [ExceptionGroup("one", [OSError("x")])]), "OSError: x"),
        (ExceptionGroup("two", [OSError(), OSError()]), "ExceptionGroup: two (2 sub-exceptions)"),
        (SystemExit(0), ""),
        (SystemExit(), ""),
        (GeneratorExit(), ""),
    ],
)
def test_an_exception_fails_a_step_and_goes_on(
    error: BaseException, expected: str, told: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught, step("log in"):
        raise error
    assert caught.value is error
    ended = told()[-1]
    assert isinstance(ended, StepEnded)
    assert ended.error == expected
    assert ended.cancelled == isinstance(error, KeyboardInterrupt)
    mark = "-" if ended.cancelled else "✗"
    assert printed(capsys) == ([f"{mark} log in (0ms): {expected}"] if expected else [])


CANCELS = """
import asyncio

async def listen():
    with step("listen"):
        with step("wait"):
            await asyncio.Event().wait()

async def bare():
    step("bare")
    await asyncio.Event().wait()

async def main():
    tasks = [asyncio.create_task(listen()), asyncio.create_task(bare())]
    with step("work"):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    success("done")

asyncio.run(main())
"""


def test_what_the_script_cancels_itself_did_not_fail(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(CANCELS, env={"E2E_RUN_RECORDS": str(file)})
    assert timeless(done.stdout) == ["✓ done: 4 steps, 2 cancelled, in TIME"]
    ends = [each for each in read_records(file) if isinstance(each, StepEnded)]
    assert sorted((each.error, each.cancelled) for each in ends) == [
        ("", False),
        *[("cancelled", True)] * 3,
    ]
    verbose = timeless(script(CANCELS, env={"E2E_VERBOSE": "true"}).stdout)
    assert "    - wait (TIME): cancelled" in verbose
    assert "  - listen (TIME)" in verbose
    assert "  - bare (TIME): cancelled" in verbose


STOPPED = """
import asyncio
from contextlib import asynccontextmanager
from e2e_runner.kit._blocks import Block

@asynccontextmanager
async def hold():
    yield

async def wait():
    async with Block(hold):
        with step("wait for the news"):
            print("ready", flush=True)
            await asyncio.Event().wait()

def wait_without_a_loop():
    import signal
    with Block(hold):
        with step("wait for the news"):
            print("ready", flush=True)
            signal.pause()
"""


@pytest.mark.parametrize("how", ["asyncio.run(wait())", "wait_without_a_loop()"])
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]
)
def test_a_step_says_what_has_stopped_it(how: str, number: signal.Signals, name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"from e2e_runner.kit import *\n{STOPPED}\n{how}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert timeless(stdout) == [f"- wait for the news (TIME): stopped by {name}"], stderr
    assert process.returncode in {143, -signal.SIGINT}


def test_a_bare_step_fails_with_the_program(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(
        "sys.excepthook = lambda *args: print('the hook before', flush=True)\n"
        "step('log in'); step('place orders')\nraise KeyError('x')",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert timeless(done.stdout) == ["✗ place orders (TIME): KeyError: 'x'", "the hook before"]
    assert (done.returncode, done.stderr) == (1, "")
    ends = [each.error for each in read_records(file) if isinstance(each, StepEnded)]
    assert ends == ["", "KeyError: 'x'"]


def test_a_bare_step_fails_with_the_main_task() -> None:
    done = script(
        "import asyncio\nstep('prepare')\n"
        "async def main():\n  step('log in')\n  await asyncio.sleep(0)\n  raise OSError('gone')\n"
        "asyncio.run(main())"
    )
    assert timeless(done.stdout) == ["✗ log in (TIME): OSError: gone"]
    assert done.stderr.endswith("OSError: gone\n")


def test_a_bare_step_fails_with_its_thread() -> None:
    done = script(
        "import threading\ndef work():\n  step('load')\n  raise OSError('gone')\n"
        "step('wait')\nworker = threading.Thread(target=work); worker.start(); worker.join()\n"
        "success('Done')"
    )
    assert timeless(done.stdout) == [
        "✗ load (TIME): OSError: gone",
        "! Done: 2 steps, 1 failed, in TIME",
    ]
    assert "Exception in thread" in done.stderr


def test_the_failure_of_a_task_that_nobody_awaits_is_still_logged() -> None:
    done = script(
        "import asyncio\n"
        "async def work():\n  step('load')\n  raise OSError('gone')\n"
        "async def main():\n  task = asyncio.create_task(work())\n  await asyncio.wait([task])\n"
        "asyncio.run(main())"
    )
    assert timeless(done.stdout) == ["✗ load (TIME): OSError: gone"]
    assert "Task exception was never retrieved" in done.stderr
    assert done.returncode == 0


def test_an_exit_leaves_the_step_open(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script("step('log in')\nsys.exit(3)", env={"E2E_RUN_RECORDS": str(file)})
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert [type(each) for each in read_records(file)] == [StepBegan]


# --- blocks and bare steps -----------------------------------------------------------------------


def outline(found: list[records.Record]) -> list[str]:
    """Lay records out: what begins with the way to it, what ends with its title."""
    titles: dict[int, str] = {}
    lines = []
    for record in found:
        match record:
            case StepBegan(step=number, title=title, within=within):
                assert number not in titles
                titles[number] = title
                lines.append(title if within is None else f"{titles[within]}/{title}")
            case StepEnded(step=number, error=error):
                lines.append(f"{titles[number]} ends{' badly' if error else ''}")
            case SectionBegan(title=title):
                lines.append(f"# {title}")
            case SummaryTold(text=text):
                lines.append(f"= {text}")
            case MetricTold(name=name, value=value):
                lines.append(f"{name}: {value}")
    return lines


def test_a_bare_step_ends_with_the_next_one_beside_it(told: Records) -> None:
    step("a")
    with step("b"):
        step("c")
        metric("m", 1)
        step("d")
    step("e")
    section("S")
    step("f")
    success("all")
    assert outline(told()) == [
        *("a", "a ends", "b", "b/c", "m: 1", "c ends", "b/d", "d ends", "b ends"),
        *("e", "e ends", "# S", "f", "f ends", "= all"),
    ]


def test_a_section_within_a_block_does_not_end_it(told: Records) -> None:
    with step("a"):
        step("b")
        section("S")
        step("c")
    assert outline(told()) == ["a", "a/b", "b ends", "# S", "a/c", "c ends", "a ends"]


def test_a_step_has_one_block() -> None:
    once = step("a")
    with once, pytest.raises(RuntimeError, match="the step 'a' is over, or its block has begun"):
        once.__enter__()
    with pytest.raises(RuntimeError, match="a new step for each block"):
        once.__enter__()
    over = step("b")
    step("c")
    with pytest.raises(RuntimeError, match="'b' is over"):
        over.__enter__()


def test_a_step_is_no_decorator() -> None:
    with pytest.raises(TypeError, match="not callable"):
        step("a")(print)  # type: ignore[operator]


def test_a_generator_with_a_step_does_not_disturb_the_others(told: Records) -> None:
    def rows() -> Generator[int]:
        with step("read"):
            yield 1
            yield 2

    reading = rows()
    next(reading)
    with step("write"):
        reading.close()
        step("row")
    step("after")
    assert outline(told()) == [
        *("read", "read/write", "read ends", "write/row", "row ends", "write ends", "after"),
    ]


def test_tasks_have_courses_of_their_own(told: Records) -> None:
    async def work(name: str, mine: asyncio.Event, other: asyncio.Event) -> None:
        step(f"{name}1")
        mine.set()
        await other.wait()
        with step(f"{name}2"):
            mine.clear()
            other.set()
            await asyncio.sleep(0)
            step(f"{name}3")

    async def main() -> None:
        step("log in")
        step("work")
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(work("a", a, b), work("b", b, a))
        step("log out")

    step("prepare")
    asyncio.run(main())
    step("after")
    lines = outline(told())
    assert lines[:5] == ["prepare", "prepare ends", "log in", "log in ends", "work"]
    assert lines[-4:] == ["work ends", "log out", "log out ends", "after"]
    for name in "ab":
        own = [line for line in lines if re.search(rf"(^|/){name}\d", line)]
        assert own == [
            *(f"work/{name}1", f"{name}1 ends", f"work/{name}2", f"{name}2/{name}3"),
            *(f"{name}3 ends", f"{name}2 ends"),
        ]
    # They did overlap.
    assert lines.index("work/b1") < lines.index("a1 ends")


def test_a_task_that_is_over_ends_its_bare_step(told: Records) -> None:
    async def work(*, fail: bool) -> None:
        step("fail" if fail else "work")
        await asyncio.sleep(0)
        if fail:
            raise ValueError("no")

    async def main() -> None:
        with step("both"), contextlib.suppress(ValueError):
            await asyncio.create_task(work(fail=False))
            await asyncio.create_task(work(fail=True))

    asyncio.run(main())
    assert outline(told()) == [
        *("both", "both/work", "work ends", "both/fail", "fail ends badly", "both ends"),
    ]


def test_threads_have_courses_of_their_own(told: Records) -> None:
    turns = [threading.Event() for _ in range(3)]

    def work() -> None:
        step("in thread 1")
        turns[0].set()
        assert turns[1].wait(timeout=60)
        step("in thread 2")

    step("a")
    worker = threading.Thread(target=work)
    worker.start()
    assert turns[0].wait(timeout=60)
    step("b")
    turns[1].set()
    worker.join(timeout=60)
    success("all")
    assert outline(told()) == [
        *("a", "in thread 1", "a ends", "b", "in thread 1 ends", "in thread 2"),
        *("b ends", "in thread 2 ends", "= all"),
    ]


def test_a_function_in_a_thread_of_asyncio_lies_within_the_step(told: Records) -> None:
    async def main() -> None:
        with step("load"):
            await asyncio.to_thread(step, "read")

    asyncio.run(main())
    assert outline(told()) == ["load", "load/read", "read ends", "load ends"]


def test_a_signal_may_tell_something_in_the_midst_of_it(told: Records) -> None:
    story = narration._story
    with story._lock:
        step("stopping")
    assert outline(told()) == ["stopping"]


OPERATIONS = st.lists(
    st.sampled_from(["bare", "open", "close", "fail", "section", "success", "metric"]), max_size=40
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(operations=OPERATIONS)
def test_whatever_a_script_does_its_steps_are_nested_and_end_once(
    operations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "records"
    file.write_bytes(b"")
    monkeypatch.setenv("E2E_RUN_RECORDS", str(file))
    restart(monkeypatch, Clock())
    blocks: list[narration.Step] = []

    def enter() -> None:
        blocks.append(step("block"))
        blocks[-1].__enter__()

    def leave(error: ValueError | None = None) -> None:
        if blocks:
            blocks.pop().__exit__(None if error is None else ValueError, error, None)

    does: dict[str, Callable[[], object]] = {
        "bare": lambda: step("bare"),
        "open": enter,
        "close": leave,
        "fail": lambda: leave(ValueError("no")),
        "section": lambda: section("S"),
        "success": lambda: success("all"),
        "metric": lambda: metric("m", 1),
    }
    for operation in operations:
        does[operation]()
    while blocks:
        leave()
    success("the end")
    under_way: list[int] = []
    for record in read_records(file):
        if isinstance(record, StepBegan):
            assert record.within == (under_way[-1] if under_way else None)
            under_way.append(record.step)
        elif isinstance(record, StepEnded):
            assert under_way.pop() == record.step
    assert under_way == []


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_are_numbers_texts_and_bools(
    told: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    values: list[int | float | str | bool] = [3, -2.5, "BTC", True, 10**30, 1e300, 10**5000]
    for index, value in enumerate(values):
        metric(f"m{index}", value)
    success("all")
    assert printed(capsys) == [
        "✓ all in 0ms",
        *("  m0: 3", "  m1: -2.5", "  m2: BTC", "  m3: yes"),
        *(f"  m4: {10**30}", "  m5: 1e+300", "  m6: a number of very many digits"),
    ]
    kept = [each.value for each in told() if isinstance(each, MetricTold)]
    assert kept[:4] == [3, -2.5, "BTC", True]
    assert len(kept) == len(values)


@pytest.mark.parametrize("value", [None, [], 1j, b"x", object])
def test_another_value_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"metric\('m', \.\.\.\): the value is an int.*convert it"):
        metric("m", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        metric("m", value)


def test_a_metric_needs_a_name() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        metric("", 1)
    with pytest.raises(TypeError, match="the name is a str, not int"):
        metric(1, 1)  # type: ignore[arg-type]


# --- standard output -----------------------------------------------------------------------------

BUFFERED = {"PYTHONUNBUFFERED": ""}
TALE = "section('S'); step('a')\nwith step('b'): pass\nsuccess('all')\n"


@pytest.mark.parametrize("before", ["sys.stdout.close()", "sys.stdout = None", "os.close(1)"])
def test_a_closed_standard_output_breaks_nothing(before: str) -> None:
    done = script(f"{before}\n{TALE}os._exit(7)")
    assert (done.returncode, done.stderr) == (7, "")


@contextlib.contextmanager
def broken_output(kind: str) -> Generator[int, None, None]:
    """Give the descriptor of a file to which nothing can be written."""
    if kind == "full":
        if not os.path.exists("/dev/full"):  # noqa: PTH110
            pytest.skip("Linux has it")
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@pytest.mark.parametrize("kind", ["full", "pipe"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_breaks_nothing(kind: str, unbuffered: str) -> None:
    same = "before = os.fstat(1)\n{}assert os.path.samestat(before, os.fstat(1))"
    with broken_output(kind) as output:
        done = script(same.format(TALE), stdout=output, env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["full", "pipe"])
@pytest.mark.parametrize("order", ["{tale}{own}", "{own}{tale}", "{own}{tale}{own}"])
def test_what_the_script_cannot_print_itself_is_told_as_ever(kind: str, order: str) -> None:
    with broken_output(kind) as output:
        alone = script("print('own')\n", stdout=output, env=BUFFERED)
        told = script(order.format(tale=TALE, own="print('own')\n"), stdout=output, env=BUFFERED)
    assert (told.returncode, told.stderr) == (alone.returncode, alone.stderr)
    assert alone.returncode == 120  # what Python gives where it cannot flush at its end


def test_a_full_pipe_that_does_not_block_gets_the_rest_later() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 4096)
    try:
        done = script(
            f"section('S')\nos.read({reading}, 2**20)\nprint('own')",
            stdout=writing,
            pass_fds=[reading],
            env=BUFFERED,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert os.read(reading, 2**20).decode().split("\n") == ["── S", "own", ""]
    finally:
        os.close(reading)
        os.close(writing)


def test_an_output_without_these_characters_gets_others() -> None:
    done = script(
        "section('Größe')\nwith step('a'): pass\n"
        "try:\n  with step('b'): 1/0\nexcept ZeroDivisionError: pass\nsuccess('x' * 300)",
        env={"PYTHONIOENCODING": "ascii", "E2E_VERBOSE": "1"},
    )
    assert timeless(done.stdout) == [
        *("-- Gr\\xf6\\xdfe", "  > a", "  ok: a (TIME)", "  > b"),
        "  FAILED: b (TIME): ZeroDivisionError: division by zero",
        f"! {'x' * 199}...: 2 steps, 1 failed, in TIME",
    ]
    assert done.returncode == 0


def test_it_keeps_its_place_among_what_goes_to_standard_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        script(
            "section('1'); print('2', file=sys.stderr); section('3'); os.write(2, b'4\\n')",
            stdout=file,
            stderr=file,
        )
    assert log.read_text("utf-8").splitlines() == ["── 1", "2", "── 3", "4"]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals(no_color: str) -> None:
    master, slave = pty.openpty()
    try:
        script("section('S'); success('all')", stdout=slave, env={"NO_COLOR": no_color})
        seen = os.read(master, 4096).decode()
    finally:
        os.close(slave)
        os.close(master)
    plain = re.sub(r"\x1b\[\d+m", "", seen)
    assert timeless(plain) == ["── S", "✓ all in TIME"]
    assert (plain == seen) is bool(no_color)


# --- records -------------------------------------------------------------------------------------


def test_records_say_when_and_what(told: Records, clock: Clock) -> None:
    section("S")
    clock.now = 101.5
    step("a\nb")
    metric("m", 2.5)
    clock.now = 103.0
    success()
    number = next(each.step for each in told() if isinstance(each, StepBegan))
    assert told() == [
        SectionBegan(at=100.0, title="S"),
        StepBegan(at=101.5, step=number, title="a\nb"),
        MetricTold(at=101.5, name="m", value=2.5),
        StepEnded(at=103.0, step=number),
        SummaryTold(at=103.0, text=""),
    ]


def test_the_variable_is_that_of_the_records() -> None:
    assert records.VARIABLE == _channel._VARIABLE


def test_processes_write_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(
        "import subprocess, multiprocessing\n"
        "def work(name):\n"
        "  for _ in range(200):\n"
        "    with step(name): step('within')\n"
        "if __name__ == '__main__':\n"
        "  with step('all'):\n"
        "    step('fork')\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    workers = [context.Process(target=work, args=(f'forked {n}',)) for n in range(4)]\n"
        "    for worker in workers: worker.start()\n"
        "    for worker in workers: worker.join()\n"
        "    code = 'from e2e_runner.kit import step\\nwith step(\"run\"): pass'\n"
        "    subprocess.run([sys.executable, '-c', code], check=True)\n"
        "  success('all')\n",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert (done.stderr, done.returncode) == ("", 0)
    lines = outline(read_records(file))  # which asserts that no number was given twice
    assert lines[:2] == ["all", "all/fork"]
    assert lines[-3:] == ["fork ends", "all ends", "= all"]
    for number in range(4):
        assert lines.count(f"fork/forked {number}") == 200
        assert lines.count(f"forked {number} ends") == 200
        assert lines.count(f"forked {number}/within") == 200
    assert lines.count("within ends") == 800
    assert lines.count("run") == 1
    assert timeless(done.stdout) == ["✓ all: 2 steps in TIME"]


def test_a_child_ends_no_step_of_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(
        "step('bare')\n"
        "with step('block'):\n"
        "  step('inner')\n"
        "  pid = os.fork()\n"
        "  if pid == 0:\n"
        "    step('of the child'); section('S'); step('too')\n"
        "    raise OSError('the child dies')\n"
        "  os.waitpid(pid, 0)\n",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert outline(read_records(file)) == [
        *("bare", "bare ends", "block", "block/inner"),
        *("inner/of the child", "of the child ends", "# S", "inner/too", "too ends badly"),
        *("inner ends", "block ends"),
    ]
    assert timeless(done.stdout) == [
        "── S",
        "✗ block > inner > too (TIME): OSError: the child dies",
    ]


def test_records_never_go_into_a_file_of_the_script(tmp_path: Path) -> None:
    file, other = tmp_path / "records", tmp_path / "other"
    file.touch()
    done = script(
        "step('a')\nos.closerange(3, 100)\n"
        f"for _ in range(20): os.open({str(other)!r}, os.O_WRONLY | os.O_CREAT)\n"
        "step('b')\nsuccess('all')",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert other.read_bytes() == b""
    assert outline(read_records(file)) == ["a", "a ends", "b", "b ends", "= all"]


def test_records_are_no_standard_stream(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(
        "os.closerange(0, 3)\nsection('S')\nos.system('echo stray; echo stray >&2')\n"
        "import subprocess\nos._exit(7)",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert done.returncode == 7
    assert outline(read_records(file)) == ["# S"]


def test_a_program_that_is_run_does_not_inherit_the_file(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(
        "section('S')\nos.execv('/bin/ls', ['ls', '-l', '/proc/self/fd'])",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert file.stat().st_size
    assert str(file) not in done.stdout


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "link", "device", "empty"])
def test_what_is_no_file_for_records_is_ignored(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "records", tmp_path / "target"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            target.touch()
            path.symlink_to(target)
        case "device":
            path = Path("/dev/tty")
        case "empty":
            path = Path()
    done = script(TALE, env={"E2E_RUN_RECORDS": "" if kind == "empty" else str(path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert timeless(done.stdout) == ["── S", "✓ all: 2 steps in TIME"]
    assert not target.exists() or target.stat().st_size == 0
    assert (kind == "missing") is (not path.exists() and kind != "device")


def test_a_file_that_may_not_grow_ends_the_records_only(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.touch()
    done = script(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for n in range(100): step(f's{n}')\nsuccess('all')",
        env={"E2E_RUN_RECORDS": str(file)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert timeless(done.stdout) == ["✓ all: 100 steps in TIME"]
    assert 0 < file.stat().st_size <= 1000


def test_a_file_that_is_removed_is_written_on(told: Records, tmp_path: Path) -> None:
    section("S")
    assert told()
    (tmp_path / "records").unlink()
    section("T")
    assert not (tmp_path / "records").exists()


# --- what it costs to import ---------------------------------------------------------------------


@pytest.mark.parametrize("code", ["", f"{TALE}metric('m', 1); unique_name(); check(1, 1)"])
def test_importing_the_kit_and_narrating_is_cheap(code: str) -> None:
    loaded = loaded_by(f"from e2e_runner.kit import *\n{code}")
    heavy = {"asyncio", "asyncpg", "click", "httpx", "psutil", "rich", "subprocess", "tomllib"}
    assert loaded & heavy == set()
