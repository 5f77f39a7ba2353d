import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_history import ROOT, RUN, history, play, settings

from e2e_runner import text
from e2e_runner.config import resolve
from e2e_runner.discovery import make_plan
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
    RunStarted,
    StepFinished,
    StepStarted,
    Warned,
)
from e2e_runner.model import (
    Color,
    Containment,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    Metric,
    NetworkMode,
    NetworkTier,
    ReportFormat,
    ReportTarget,
    Result,
    RunInfo,
    RunSettings,
    Status,
    Step,
    StepOutcome,
)
from e2e_runner.report import make_reporters
from e2e_runner.report.layout import cut, details, finished, header, passive_files, wrap
from e2e_runner.report.live import LiveRegion
from e2e_runner.report.region import region
from e2e_runner.report.sink import Sink
from e2e_runner.report.style import Line, Style, paint
from e2e_runner.report.table import MOST_ROWS, table
from e2e_runner.report.terminal import Terminal
from e2e_runner.state import RunState

PASSED = Result(path="examples/a.py", status=Status.PASSED, duration=1.93, attempts=1)
FAILED = Result(
    path="examples/b.py",
    status=Status.FAILED,
    cause="missing-module",
    reason="exit code 1",
    duration=0.42,
    attempts=1,
    output_tail="\x1b[32mstart\x1b[0m\n10%\r100%\nModuleNotFoundError: No module named '[red]x'\n",
    hints=("Install it:\npip install x",),
    log=".e2e-run/b.log",
    command="python examples/b.py",
)
LEAKED = Result(
    path="examples/c.py",
    status=Status.LEAKED,
    reason="left behind: process 7, port 8000",
    duration=2.0,
    attempts=1,
    leaks=(LeakedProcess(pid=7, command="sleep 60"), LeakedPort(port=8000)),
    output_tail="not shown",
    command="python examples/c.py",
)
BLOCKED = Result(
    path="examples/d.py", status=Status.BLOCKED, cause="port-in-use", reason="port 8000 is taken"
)
PENDING = Result(path="examples/e.py", status=Status.NOT_RUN, reason="the run ended first")


def say(
    events: list[Event], run: RunSettings | None = None, environ: dict[str, str] | None = None
) -> str:
    stream = io.StringIO()
    play(events, make_reporters(run or settings(), stream=stream, environ=environ or {}))
    return stream.getvalue()


def test_a_whole_run_in_plain_text() -> None:
    events = history(
        [PASSED, FAILED, LEAKED, BLOCKED],
        exit_code=1,
        deselected={"examples/ws.py": "tag websocket"},
        warnings=("config is odd",),
        before_end=[Warned(at=3.0, message="port 8000\nis taken", path="examples/d.py")],
    )
    assert (
        say(events)
        == """\
e2e-run 0.1.0 · 4 examples (1 skipped) · 2 jobs · python: .venv/bin/python · processes: cgroup \
· network: host
warning: config is odd
1/4  ✓ passed   1.93s  examples/a.py
2/4  ✗ failed   420ms  examples/b.py  missing-module: exit code 1
3/4  ! leaked   2.00s  examples/c.py  left behind: process 7, port 8000
4/4  ✗ blocked         examples/d.py  port 8000 is taken
warning: examples/d.py: port 8000 is taken

✗ failed  examples/b.py  (missing-module, 420ms)
  exit code 1
  Advice: Install it:
    pip install x
  Output:
  │ start
  │ 100%
  │ ModuleNotFoundError: No module named '[red]x'
  Log:     .e2e-run/b.log
  By hand: python examples/b.py

! leaked  examples/c.py  (2.00s)
  Left behind: process 7 (sleep 60): killed
  Left behind: port 8000: still taken
  By hand: python examples/c.py

✗ blocked  examples/d.py  (port-in-use)
  port 8000 is taken

Example Results Summary
Example         Status      Time  Note
──────────────  ─────────  ─────  ────────────────────
examples/a.py   ✓ passed   1.93s
examples/b.py   ✗ failed   420ms  missing-module
examples/c.py   ! leaked   2.00s  process 7, port 8000
examples/d.py   ✗ blocked         port 8000 is taken
examples/ws.py  - skipped         tag websocket

1 passed, 1 leaked, 1 failed, 1 blocked, 1 skipped in 4.00s
"""
    )


def test_all_examples_passed() -> None:
    assert say(history([PASSED])).endswith("\n1 passed in 1.00s\nAll examples passed\n")
    skipped = say(history([PASSED], deselected={"examples/ws.py": "tag websocket"}))
    assert skipped.endswith("\n1 passed, 1 skipped in 1.00s\nAll examples passed\n")


@pytest.mark.parametrize(
    ("leaked", "flaky", "said"),
    [
        (1, 0, "No failures, but 1 example leaked (--strict counts that as a failure)"),
        (2, 0, "No failures, but 2 examples leaked (--strict counts those as failures)"),
        (0, 1, "No failures, but 1 example was flaky (--strict counts that as a failure)"),
        (
            1,
            2,
            (
                "No failures, but 1 example leaked and 2 examples were flaky"
                " (--strict counts those as failures)"
            ),
        ),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_what_leaked_or_was_flaky_is_not_said_to_have_passed(
    leaked: int, flaky: int, said: str, *, quiet: bool
) -> None:
    odd = [Status.LEAKED] * leaked + [Status.FLAKY] * flaky
    results = [
        Result(path=f"examples/{n}.py", status=status, attempts=1) for n, status in enumerate(odd)
    ]
    assert say(history([PASSED, *results]), settings(quiet=quiet)).endswith(f"\n{said}\n")


@pytest.mark.parametrize(
    "events",
    [
        history([FAILED], exit_code=1),
        history([BLOCKED], exit_code=3),
        history([PASSED, PENDING], exit_code=130, interrupted=True),
        history([Result(path="a", status=Status.SKIPPED)], exit_code=4),
        history([], exit_code=4),
        history(
            [PASSED],
            exit_code=130,
            interrupted=True,
            before_end=[Interrupted(at=1.0, signal="SIGINT", count=1)],
        ),
    ],
    ids=["failed", "blocked", "not run", "skipped", "nothing", "interrupted"],
)
def test_not_all_examples_passed(events: list[Event]) -> None:
    assert "All examples passed" not in say(events)


def test_strict_leaks_are_not_passed() -> None:
    said = say(history([LEAKED], exit_code=1), settings(strict=True))
    assert "All examples passed" not in said
    assert "Output:\n  │ not shown\n" in said


def test_quiet_shows_only_what_is_not_ok_and_the_totals() -> None:
    events = history([PASSED, LEAKED, BLOCKED], exit_code=3, warnings=("config is odd",))
    assert (
        say(events, settings(quiet=True))
        == """\
3/3  ✗ blocked         examples/d.py  port 8000 is taken

✗ blocked  examples/d.py  (port-in-use)
  port 8000 is taken

1 passed, 1 leaked, 1 blocked in 3.00s
"""
    )
    assert say(history([PASSED]), settings(quiet=True)) == (
        "1 passed in 1.00s\nAll examples passed\n"
    )


def test_verbose_adds_starts_phases_and_notes() -> None:
    noted = replace(PASSED, notes=("needed SIGKILL",))
    waiting = PhaseChanged(
        at=0.5, path="examples/a.py", phase=Phase.WAITING_FOR_PORT, detail="port 8000"
    )
    events = history([noted], deselected={"examples/ws.py": "tag websocket"})
    said = say([*events[:3], waiting, *events[3:]], settings(verbose=1))
    assert (
        said.split("\n\n")[0]
        == """\
e2e-run 0.1.0 · 1 example (1 skipped) · 2 jobs · python: .venv/bin/python · processes: cgroup \
· network: host
skipped  examples/ws.py: tag websocket
    0ms  examples/a.py: started, at most 60s
    0ms  examples/a.py: running
  500ms  examples/a.py: waiting for port (port 8000)
1/1  ✓ passed   1.93s  examples/a.py
    needed SIGKILL"""
    )


def step(title: str, duration: float, outcome: StepOutcome = StepOutcome.OK, **more: Any) -> Step:
    return Step(title=title, started=0.0, duration=duration, outcome=outcome, **more)


def test_verbose_shows_steps_where_they_begin_and_where_they_fail() -> None:
    path = "examples/a.py"
    told: list[Event] = [
        StepStarted(at=0.1, path=path, step=0, title="log in\n", section="Users"),
        StepStarted(at=0.2, path=path, step=1, title="ask \x1b[31m", depth=1, section="Users"),
        StepFinished(
            at=0.5, path=path, step=1, title="ask \x1b[31m", depth=1, duration=0.3, error="401\nno"
        ),
        StepFinished(at=0.6, path=path, step=0, title="log in\n", duration=0.5),
        MetricReported(at=0.7, path=path, metric=Metric(name="users", value=1234)),
    ]
    events = history([replace(PASSED, summary="All is\nwell", notes=("needed SIGKILL",))])
    said = say([*events[:3], *told, *events[3:]], settings(verbose=1))
    assert (
        said.split("\n\n")[0].partition("running\n")[2]
        == """\
  100ms  examples/a.py: ▸ log in (Users)
  200ms  examples/a.py:   ▸ ask \\x1b[31m
  500ms  examples/a.py:   ✗ ask \\x1b[31m (300ms): 401 no
  700ms  examples/a.py: users: 1,234
1/1  ✓ passed   1.93s  examples/a.py
    All is well
    needed SIGKILL"""
    )
    assert say([*events[:3], *told, *events[3:]]) == say(events)


def test_the_details_of_a_failure_show_the_last_steps() -> None:
    steps = (
        *(step(f"prepare {n}", 0.05) for n in range(4)),
        step("place orders", 40.0, StepOutcome.FAILED, error="AssertionError: 3 != 2"),
        step("order 日本", 1.93, StepOutcome.FAILED, depth=1, error="\x1b[31m3 != 2"),
        step("clean up", 0.2, StepOutcome.UNFINISHED),
    )
    failed = replace(FAILED, steps=steps, happened_in=5, hints=(), output_tail="x")
    said = say(history([failed], exit_code=1))
    assert (
        """
  exit code 1
  Steps, the last 5 of 7:
    ✓ prepare 2      50ms
    ✓ prepare 3      50ms
    ✗ place orders  40.0s  AssertionError: 3 != 2
    ▸ clean up      200ms  unfinished
      ✗ order 日本  1.93s  \\x1b[31m3 != 2
  Output:
"""
        in said
    )
    few = replace(failed, steps=steps[4:6], happened_in=1)
    assert "\n  Steps:\n    ✗ place orders  40.0s" in say(history([few], exit_code=1))
    assert "Steps" not in say(history([replace(PASSED, steps=steps)]))
    assert "Steps" not in say(history([replace(LEAKED, steps=steps)]))


def test_steps_fit_into_a_terminal() -> None:
    long = replace(
        FAILED,
        steps=(
            step("t" * 300, 1.0, StepOutcome.FAILED, error="e" * 300),
            step("日" * 300, 1.0, StepOutcome.FAILED, depth=900, error="語" * 300),
        ),
        happened_in=1,
    )
    for width in (40, 80, 120):
        found = details(long, width=width, strict=False, with_output=True, root=ROOT)
        lines = [paint(line, color=False) for line in found]
        shown = lines[lines.index("  Steps:") + 1 :][:2]
        assert [text.cell_width(line) <= width for line in shown] == [True, True]


# --- networks, attempts, repeats ------------------------------------------------------------------

ISOLATED = replace(RUN, network=NetworkTier.NAMESPACE)


def test_an_example_on_the_network_of_others_says_so() -> None:
    apart = replace(PASSED, network=NetworkMode.ISOLATED)
    declared = replace(PASSED, path="examples/b.py", network=NetworkMode.HOST)
    learned = replace(
        PASSED,
        path="examples/c.py",
        network=NetworkMode.HOST,
        isolation_suspect="no DNS\nin its network",
    )
    failed = replace(FAILED, path="examples/d.py", network=NetworkMode.HOST)
    said = say(history([apart, declared, learned, failed], run=ISOLATED))
    assert said.splitlines()[1:5] == [
        "1/4  ✓ passed   1.93s  examples/a.py",
        "2/4  ✓ passed   1.93s  examples/b.py  on the host network",
        "3/4  ✓ passed   1.93s  examples/c.py  on the host network (no DNS in its network)",
        "4/4  ✗ failed   420ms  examples/d.py  missing-module: exit code 1; on the host network",
    ]
    rows = said.partition("Summary\n")[2].splitlines()[2:6]
    assert [row.partition("s  ")[2] for row in rows] == [
        "",
        "on the host network",
        "on the host network (no DNS in its network)",
        "missing-module; on the host network",
    ]
    # Where nobody has a network of their own, it is nothing to tell.
    assert "host network" not in say(history([declared, learned]))


def test_the_line_says_what_the_attempt_in_a_network_of_its_own_failed_of() -> None:
    first = replace(
        FAILED, network=NetworkMode.ISOLATED, isolation_suspect="no route beyond its network"
    )
    last = replace(PASSED, path=FAILED.path, network=NetworkMode.HOST, attempts=2)
    said = say(tried(first, last=last, run=ISOLATED))
    assert (
        "1/1  ✓ passed   1.93s  examples/b.py  on the host network (no route beyond its network)\n"
        in said
    )


def test_what_the_reason_says_of_the_network_is_not_said_twice() -> None:
    flaky = replace(
        PASSED,
        status=Status.FLAKY,
        reason="exit code 1; passed on attempt 2, on the host network",
        network=NetworkMode.HOST,
    )
    assert say(history([flaky], run=ISOLATED)).splitlines()[1].count("host network") == 1


def test_a_failure_in_a_network_of_its_own_says_what_may_be_its_doing() -> None:
    failed = replace(
        FAILED, network=NetworkMode.ISOLATED, isolation_suspect="no DNS in its network"
    )
    said = say(history([failed], run=ISOLATED, exit_code=1))
    note = "it ran in a network of its own, which may be why: no DNS in its network"
    assert f"  Note: {note}\n" in said


def test_repeats_say_how_many_passed() -> None:
    many = replace(PASSED, repeats=5, repeats_passed=5, metrics=(Metric(name="users", value=9),))
    some = replace(FAILED, repeats=5, repeats_passed=3)
    leaked = replace(LEAKED, repeats=2, repeats_passed=2)
    said = say(history([many, some, leaked], exit_code=1))
    assert said.splitlines()[1:4] == [
        "1/3  ✓ passed   1.93s  examples/a.py  5 of 5 passed",
        "2/3  ✗ failed   420ms  examples/b.py  3 of 5 passed; missing-module: exit code 1",
        "3/3  ! leaked   2.00s  examples/c.py  2 of 2 passed; left behind: process 7, port 8000",
    ]
    rows = said.partition("Summary\n")[2].splitlines()[2:5]
    assert [row.partition("s  ")[2] for row in rows] == [
        "5 of 5 passed; users: 9",
        "3 of 5 passed; missing-module",
        "2 of 2 passed; process 7, port 8000",
    ]


def tried(*attempts: Result, last: Result, run: RunInfo = RUN) -> list[Event]:
    """Give the history of an example that was tried more than once."""
    first, begun, running, *rest = history([last], exit_code=1, run=run)
    again = [
        AttemptFinished(at=0.1 * n, number=n, result=each, again=f"retry {n}")
        for n, each in enumerate(attempts, start=1)
    ]
    return [first, begun, running, *again, *rest]


def test_details_name_the_attempts_whose_evidence_is_elsewhere() -> None:
    slow = replace(
        FAILED,
        status=Status.TIMEOUT,
        cause="time-limit",
        reason="timed out\nafter 5s",
        duration=5.05,
        log=".e2e-run/b.log",
    )
    blocked = replace(BLOCKED, path=FAILED.path)
    last = replace(
        FAILED, attempts=4, log=".e2e-run/b.4.log", notes=("failed in 2 retries too, alone",)
    )
    said = say(tried(slow, blocked, replace(PASSED, path=FAILED.path), last=last))
    assert (
        """
  Note: failed in 2 retries too, alone
  Attempt 1: timeout (time-limit, 5.05s): timed out after 5s; its log: .e2e-run/b.log
  Attempt 2: blocked (port-in-use): port 8000 is taken
  Output:
"""
        in said
    )
    # A flaky example shows the evidence of the attempt that failed.
    flaky = replace(last, status=Status.FLAKY, log=slow.log, reason="timed out; passed, alone")
    assert "Attempt 1" not in say(tried(slow, last=flaky))


def test_an_attempt_that_failed_has_its_line_at_once() -> None:
    said = say(tried(replace(FAILED, duration=2.1), last=replace(PASSED, path=FAILED.path)))
    assert said.splitlines()[1:3] == [
        "  …  ✗ failed   2.10s  examples/b.py  missing-module: exit code 1; once more: retry 1",
        "1/1  ✓ passed   1.93s  examples/b.py",
    ]


def test_an_attempt_that_was_ok_has_no_line() -> None:
    last = replace(PASSED, repeats=2, repeats_passed=2)
    assert "once more" not in say(tried(PASSED, last=last))
    assert "once more" not in say(tried(FAILED, last=FAILED), settings(quiet=True))


def test_the_line_says_that_it_was_made_again_alone() -> None:
    note = "passed alone; beside examples/a.py: port 8000 is taken"
    said = say(history([replace(PASSED, notes=("something else", note)), FAILED]))
    words = "alone; beside examples/a.py: port 8000 is taken"
    assert f"1/2  ✓ passed   1.93s  examples/a.py  {words}\n" in said
    (row,) = [line for line in said.splitlines() if line.startswith("examples/a.py")]
    assert row.endswith(f"1.93s  {words}")


def test_what_is_blocked_by_the_same_is_told_together() -> None:
    many = [
        replace(BLOCKED, path=f"examples/{name}.py", hints=("Free it.",), command=f"run {name}.py")
        for name in "dba"
    ]
    other = replace(BLOCKED, path="examples/c.py", reason="port 9000 is taken")
    wrote = replace(many[0], path="examples/e.py", output_tail="its companion said why")
    said = say(history([*many, other, wrote], exit_code=3))
    assert (
        """
✗ blocked  3 examples  (port-in-use)
  port 8000 is taken
  Advice: Free it.
    examples/a.py
    examples/b.py
    examples/d.py
  By hand: run a.py

✗ blocked  examples/c.py  (port-in-use)
  port 9000 is taken

✗ blocked  examples/e.py  (port-in-use)
  port 8000 is taken
  Advice: Free it.
  Output:
"""
        in said
    )


def interrupted_ones(count: int) -> list[Result]:
    return [
        Result(
            path=f"examples/{'cbdaefg'[n]}{'x' * n}.py",
            status=Status.NOT_RUN,
            reason=f"interrupted after {n}s",
            duration=float(n),
            attempts=1,
            output_tail="said something",
            log=f".e2e-run/runs/r/examples/{n}.log",
        )
        for n in range(count)
    ]


def test_many_that_were_interrupted_are_told_together_in_order() -> None:
    said = say(history(interrupted_ones(4), exit_code=130, interrupted=True))
    assert (
        """
- not-run  4 examples
    examples/axxx.py  interrupted after 3s
    examples/bx.py    interrupted after 1s
    examples/c.py     interrupted after 0s
    examples/dxx.py   interrupted after 2s
  Logs:    .e2e-run/runs/r/examples
"""
        in said
    )
    assert "said something" not in said


def test_few_that_were_interrupted_show_their_output() -> None:
    said = say(history(interrupted_ones(3), exit_code=130, interrupted=True))
    assert said.count("said something") == 3
    assert "3 examples\n    " not in said


def test_verbose_says_why_there_is_another_attempt() -> None:
    said = say(tried(FAILED, last=replace(FAILED, attempts=2)), settings(verbose=1))
    assert "  100ms  examples/b.py: attempt 1: failed (exit code 1); once more: retry 1\n" in said


def test_no_capture_passes_output_through() -> None:
    start, began, running, *rest = history([PASSED], run=replace(RUN, jobs=1))
    output = OutputWritten(at=0.1, path="examples/a.py", text="\x1b[31mhalf\r a line")
    said = say([start, began, running, output, *rest], settings(no_capture=True))
    assert "\n\x1b[31mhalf\r a line\n1/1  ✓ passed" in said


def side_by_side(*written: tuple[str, str]) -> str:
    """Give what is shown of outputs that two examples write in turns."""
    first, second = PASSED, replace(PASSED, path="examples/b.py")
    start, *rest = history([first, second])
    running = [each for each in rest if not isinstance(each, ExampleFinished)]
    ends = [each for each in rest if isinstance(each, ExampleFinished)]
    outputs = [
        OutputWritten(at=0.1, path=f"examples/{name}.py", text=words) for name, words in written
    ]
    *begun, end = running
    said = say([start, *begun, *outputs, *ends, end], settings(no_capture=True))
    return said.partition("\n")[2].partition("2/2 ")[0]


def test_outputs_that_come_side_by_side_say_whose_they_are() -> None:
    said = side_by_side(("a", "one\ntw"), ("b", "\x1b[31mred\n"), ("a", "o\n\nthree"), ("b", "end"))
    assert said == (
        "a.py │ one\n"
        "b.py │ \x1b[31mred\n"
        "a.py │ two\n"
        "a.py │ \n"
        "a.py │ three\n"
        "1/2  ✓ passed   1.93s  examples/a.py\n"
        "b.py │ end\n"
    )


def test_a_line_without_an_end_is_not_waited_with_for_ever() -> None:
    said = side_by_side(*[("a", "x" * 1000)] * 100)
    assert [len(line) for line in said.splitlines()] == [66_007, 34_007, 36]


def test_interrupted_says_what_is_left() -> None:
    pending = [
        Result(path=f"examples/{n}.py", status=Status.NOT_RUN, reason="the run ended first")
        for n in range(8)
    ]
    middle = Result(
        path="examples/hung.py",
        status=Status.NOT_RUN,
        reason="interrupted after 3.20s",
        attempts=1,
        duration=3.2,
        output_tail="waiting for godot\n",
    )
    first = Interrupted(at=1.0, signal="SIGINT", count=1)
    second = Interrupted(at=2.0, signal="SIGINT", count=2)
    said = say(
        history(
            [PASSED, middle, *pending],
            exit_code=130,
            interrupted=True,
            before_end=[first, second],
        )
    )
    assert "SIGINT: stopping what runs; once more kills it\nSIGINT: killing what runs\n" in said
    assert " 2/10  - not-run  3.20s  examples/hung.py  interrupted after 3.20s\n" in said
    assert "  Output:\n  │ waiting for godot\n" in said
    assert " 3/10" not in said
    assert said.endswith(
        "\n1 passed, 9 not-run in 10.0s\n"
        "Interrupted by SIGINT: 9 examples without a verdict: examples/hung.py, examples/0.py, "
        "examples/1.py, examples/2.py, examples/3.py and 4 more\n"
    )


def test_stopped_early_without_an_interrupt() -> None:
    assert say(history([FAILED, PENDING], exit_code=1)).endswith(
        "\nStopped early: 1 example without a verdict: examples/e.py\n"
    )


def test_nothing_selected_says_why_and_what_to_do() -> None:
    events = history(
        [],
        exit_code=4,
        deselected={f"examples/{n}.py": "does not match -k orders" for n in range(9)}
        | {"examples/ws.py": "tag websocket"},
        not_examples={"examples/demo_data.py": "imported by a.py"},
    )
    _, _, rest = say(events).partition("\n")
    assert (
        rest
        == """\
No example was selected in "examples".
  10 examples skipped:
       9  does not match -k orders
       1  tag websocket
  1 file is no example:
       1  imported by a.py
To fix this: name a file, which then always runs, or another folder;
`e2e-run list` shows every file with the reason.
"""
    )


def test_nothing_found_at_all() -> None:
    unset = replace(RUN, processes=None, jobs=1)
    assert say(history([], exit_code=4, run=unset)).startswith(
        "e2e-run 0.1.0 · 0 examples · python: .venv/bin/python\n"
        'No example was selected in "examples".\n'
        "  No *.py was found there. `include` of the configuration names other scripts,\n"
        '  as in include = ["*.sh"].\n'
    )


def test_lesser_containment_is_said_with_its_reason() -> None:
    run = replace(
        RUN,
        processes=Containment.SCAN,
        containment_notes=("cgroup: read-only", "pid-namespace: unshare: Operation not permitted"),
        network=NetworkTier.NAMESPACE,
        jobs=1,
    )
    assert say(history([PASSED], run=run)).startswith(
        "e2e-run 0.1.0 · 1 example · python: .venv/bin/python · processes: scan "
        "(pid-namespace: Operation not permitted)\n  network: namespace\n1/1 "
    )


@pytest.mark.parametrize(
    ("tier", "notes", "said"),
    [
        (NetworkTier.HOST, (), "network: host"),  # nobody asked for another one
        (
            NetworkTier.HOST,
            (
                "network namespace: unshare: Operation not permitted",
                "user namespace: unshare: refused (kernel.apparmor_restrict_unprivileged_userns=1)",
            ),
            "network: host (user namespace: kernel.apparmor_restrict_unprivileged_userns=1)",
        ),
        (
            NetworkTier.USER_NAMESPACE,
            ("network namespace: unshare: Operation not permitted",),
            "network: user-namespace (namespace: Operation not permitted)",
        ),
        (
            NetworkTier.HOST,
            (f"user namespace: {'x' * 100}",),
            f"network: host (user namespace: {'x' * 15}…{'x' * 32})",
        ),
        (NetworkTier.NAMESPACE, ("of no interest",), "network: namespace"),
    ],
)
def test_the_header_says_which_network_and_why_no_better_one(
    tier: NetworkTier, notes: tuple[str, ...], said: str
) -> None:
    run = replace(RUN, network=tier, network_notes=notes)
    first, *others = say(history([PASSED], run=run)).splitlines()
    line = first if others[0].startswith("1/1") else others[0]
    assert line.endswith(f" {said}")
    assert len(line) <= 120


def test_the_header_says_which_part_of_a_suite_runs() -> None:
    shard = "shard 2/4: 6 of 24 examples, balanced by timings.json (basis 3f9a2c)"
    told = say(history([PASSED], shard=shard, last_failed="last failed: 1 of 6 examples"))
    assert told.splitlines()[1:3] == [f"  {shard}", "  last failed: 1 of 6 examples"]
    assert say(history([PASSED], last_failed="last failed: 1 of 6 examples")).splitlines()[1] == (
        "  last failed: 1 of 6 examples"
    )


def test_the_header_of_a_terminal_takes_two_lines_at_most() -> None:
    note = "cgroup: /sys/fs/cgroup/user.slice: Permission denied (not delegated to this user)"
    run = replace(RUN, processes=Containment.PID_NAMESPACE, containment_notes=(note,))
    (started, *_) = history([PASSED], run=run)
    assert isinstance(started, RunStarted)
    lines = [paint(line, color=False) for line in header(run, started.plan, width=80)]
    assert lines == [
        "e2e-run 0.1.0 · 1 example · 2 jobs · python: .venv/bin/python",
        "  processes: pid-namespace (cgroup: not delegated to this user) · network: host",
    ]
    (line,) = header(replace(run, containment_notes=()), started.plan, width=None)
    assert paint(line, color=False).endswith(" · processes: pid-namespace · network: host")
    odd = replace(run, containment_notes=("cgroup: " + "x" * 200, "scan: no"))
    wide = [paint(line, color=False) for line in header(odd, started.plan, width=80)]
    assert max(map(len, wide)) <= 80
    assert len(wide) == 2


def test_the_header_tells_of_postgresql_on_a_line_of_its_own() -> None:
    run = replace(
        RUN,
        postgres="embedded, a server for each of 3 examples",
        withheld=("DATABASE_URL", "PGHOST", "PGPORT", "PGUSER"),
    )
    (started, *_) = history([PASSED], run=run)
    assert isinstance(started, RunStarted)
    lines = [paint(line, color=False) for line in header(run, started.plan, width=80)]
    assert lines[-2:] == [
        "  PostgreSQL: embedded, a server for each of 3 examples",
        "  kept from the examples: DATABASE_URL and 3 more (--postgres env uses them)",
    ]
    two = replace(run, withheld=("DATABASE_URL", "PGHOST"))
    lines = [paint(line, color=False) for line in header(two, started.plan, width=80)]
    assert lines[-1] == "  kept from the examples: DATABASE_URL, PGHOST (--postgres env uses them)"


def test_a_leaked_database_is_named_with_what_is_in_doubt() -> None:
    sure = LeakedDatabase(name="fullon2_test_1", owner="test_e2e_1_r3")
    doubtful = LeakedDatabase(
        name="a\nb", doubt="appeared while it ran", kept="no pattern matches it"
    )
    result = replace(LEAKED, leaks=(sure, doubtful), notes=())
    said = say(history([result]))
    assert "  Left behind: database fullon2_test_1, owned by test_e2e_1_r3; dropped\n" in said
    assert (
        "  Left behind: database a\\nb; appeared while it ran; "
        "not dropped: no pattern matches it\n" in said
    )
    # Those of one that failed may be kept, which its notes say.
    failed = replace(result, status=Status.FAILED, cause="exit", reason="exit code 1")
    assert "owned by test_e2e_1_r3\n" in say(history([failed]))


def test_a_lost_report_is_told() -> None:
    run = settings(
        quiet=True,
        reports=[ReportTarget(format=ReportFormat.JUNIT, file=Path("/dev/full"))],
    )
    assert say(history([PASSED]), run) == (
        "1 passed in 1.00s\n"
        "warning: the junit report /dev/full is not complete: No space left on device\n"
        "All examples passed\n"
    )


def test_long_output_shows_its_end() -> None:
    lines = [f"line {n}" for n in range(332)]
    whole = replace(FAILED, output_tail="\n".join(lines))
    said = say(history([whole], exit_code=1))
    assert "\n  Output, its last 20 lines (… 312 earlier lines in the log):\n  │ line 312\n" in said
    tail = replace(whole, output_cut=True)
    assert "(… more than 312 earlier lines in the log)" in say(history([tail], exit_code=1))
    short = replace(whole, output_tail="end\n", output_cut=True, log=None)
    assert "its last 1 line (… earlier output not shown)" in say(history([short], exit_code=1))
    silent = replace(whole, output_tail="\n\x1b[0m\n")
    assert "\n  It wrote no output\n" in say(history([silent], exit_code=1))


def test_colors_are_only_sgr_and_change_no_text() -> None:
    events = history([PASSED, FAILED, LEAKED], exit_code=1)
    colored = say(events, settings(color=Color.ALWAYS))
    assert "\x1b[1;31m✗ failed" in colored
    bare = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", colored).splitlines()]
    assert bare == say(events).splitlines()


_WORDS = st.text(alphabet=st.characters(), max_size=60)


@hypothesis.settings(deadline=None)
@given(_WORDS, _WORDS, _WORDS, st.sampled_from(list(Status)))
def test_plain_text_never_holds_control_characters(
    path: str, reason: str, output: str, status: Status
) -> None:
    database = LeakedDatabase(name=reason, owner=reason, doubt=reason, kept=reason)
    result = Result(
        path=path,
        status=status,
        reason=reason,
        attempts=1,
        output_tail=output,
        hints=(reason,),
        notes=(reason,),
        command=path,
        leaks=(LeakedProcess(pid=1, command=reason), LeakedPort(port=1, owner=reason), database),
        steps=(step(path, 1.0, StepOutcome.FAILED, error=reason, section=path),),
        happened_in=0,
        metrics=(Metric(name=path, value=reason),),
        summary=reason,
    )
    said = say(
        history(
            [result],
            deselected={f"{path}2": reason},
            before_end=[
                Warned(at=1.0, message=reason, path=path),
                StepStarted(at=1.0, path=path, step=0, title=reason, section=path),
                StepFinished(at=1.0, path=path, step=0, title=reason, duration=1.0, error=output),
                MetricReported(at=1.0, path=path, metric=Metric(name=path, value=reason)),
            ],
        ),
        settings(verbose=1),
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", said)


@hypothesis.settings(deadline=None)
@given(
    st.lists(st.tuples(_WORDS, _WORDS, st.sampled_from(list(Status))), min_size=1, max_size=8),
    st.integers(40, 200),
)
def test_the_table_keeps_within_its_width(rows: list[tuple[str, str, Status]], width: int) -> None:
    results = [
        Result(path=path, status=status, reason=reason, attempts=1) for path, reason, status in rows
    ]
    state = play(history(results), [])
    for line in table(state, width=width, strict=False):
        assert text.cell_width(paint(line, color=False)) <= width


def many(count: int, status: Status = Status.PASSED) -> list[Result]:
    return [
        Result(path=f"examples/{n:05}.py", status=status, reason="r", attempts=1)
        for n in range(count)
    ]


def lines_of_table(state: RunState) -> list[str]:
    return [paint(line, color=False) for line in table(state, width=80, strict=False)]


def test_a_long_table_shows_what_needs_attention() -> None:
    state = play(history([*many(MOST_ROWS), FAILED]), [])
    assert lines_of_table(state)[3:] == [
        "examples/b.py  ✗ failed   420ms  missing-module",
        f"… and {MOST_ROWS} that passed, not listed",
    ]
    assert len(lines_of_table(play(history(many(MOST_ROWS)), []))) == MOST_ROWS + 3


@pytest.mark.parametrize(
    ("status", "cause", "reason", "note"),
    [
        (Status.FAILED, "dns", "exit code 1", "dns"),
        (Status.FAILED, "dns", "exit code 3", "dns: exit code 3"),
        (Status.TIMEOUT, "database", "timed out after 60s", "database: after 60s"),
        (Status.FAILED, "exit", "exit code 1", "exit code 1"),
        (Status.FAILED, "signal", "killed by SIGKILL (signal 9)", "killed by SIGKILL (signal 9)"),
        (Status.TIMEOUT, "time-limit", "timed out after 60s", "after 60s"),
        (Status.FAILED, None, "exit code 1", "exit code 1"),
        (Status.BLOCKED, "port-in-use", "port 8000 is taken", "port 8000 is taken"),
        (Status.NOT_RUN, None, "the run was ended by SIGINT", "ended by SIGINT"),
    ],
)
def test_the_note_names_a_cause_that_tells_more_than_the_reason(
    status: Status, cause: str | None, reason: str, note: str
) -> None:
    result = Result(path="a.py", status=status, cause=cause, reason=reason)
    row = lines_of_table(play(history([result]), []))[3]
    assert row.split("  ")[-1].strip() == note


@pytest.mark.parametrize(
    ("result", "note"),
    [
        (
            replace(PASSED, metrics=(Metric(name="files processed", value=3),)),
            "files processed: 3",
        ),
        (
            replace(
                PASSED,
                metrics=(
                    Metric(name="orders", value=12_345),
                    Metric(name="ratio", value=0.123456789),
                    Metric(name="ok", value=True),
                    Metric(name="id\x1b", value="a\nb"),
                ),
            ),
            "orders: 12,345, ratio: 0.123457, ok: yes, id\\x…",
        ),
        (
            replace(
                PASSED,
                exit_code=3,
                reason="exit code 3, as expected",
                metrics=(Metric(name="n", value=1),),
            ),
            "exit code 3, as expected; n: 1",
        ),
        (
            replace(
                PASSED,
                exit_code=0,
                steps=(step("a", 1, StepOutcome.FAILED, error="x"), step("b", 1)),
                metrics=(Metric(name="n", value=1),),
            ),
            "1 step failed, yet it exited 0; n: 1",
        ),
        (
            replace(
                PASSED,
                status=Status.LEAKED,
                reason="left behind: port 8000",
                metrics=(Metric(name="n", value=1),),
            ),
            "port 8000; n: 1",
        ),
        (
            replace(
                PASSED,
                status=Status.FAILED,
                cause="exit",
                reason="exit code 1",
                metrics=(Metric(name="n", value=1),),
                steps=(step("a", 1, StepOutcome.FAILED, error="x"),),
            ),
            "exit code 1",
        ),
    ],
)
def test_the_note_of_what_ended_well_goes_on_with_what_it_told(result: Result, note: str) -> None:
    row = lines_of_table(play(history([result]), []))[3]
    assert text.cell_width(row) <= 80
    assert row.partition(text.duration(1.93))[2].strip() == note


TRACEBACK = """\
Traceback (most recent call last):
  File "/project/examples/b.py", line 1, in <module>
    wait()
{error}
"""


@pytest.mark.parametrize(
    ("status", "cause", "reason", "more", "note"),
    [
        (
            Status.TIMEOUT,
            "time-limit",
            'timed out after 3s in step "wait for the news" (for 2.82s)',
            {"happened_in": 0, "steps": (step("wait for the news", 2.8, StepOutcome.UNFINISHED),)},
            'in "wait for the news"',
        ),
        (
            Status.TIMEOUT,
            "ignored-sigterm",
            'still running after 3s in step "a" (for 2.82s); ignored SIGTERM for 5s, killed',
            {"happened_in": 0, "steps": (step("a", 2.8, StepOutcome.UNFINISHED),)},
            'still running after 3s in step "a" (for 2.82s); ignor…',
        ),
        (
            Status.TIMEOUT,
            "connection-refused",
            'timed out after 3s in step "say (in step "a")" (for 2.82s)',
            {"happened_in": 0, "steps": (step("say", 2.8, StepOutcome.UNFINISHED),)},
            'connection-refused in "say (in step "a")"',
        ),
        (
            Status.FAILED,
            "unique-violation",
            'exit code 1 in step "sign up"',
            {
                "happened_in": 0,
                "steps": (step("sign up", 1, StepOutcome.FAILED, error="db.Unique: key exists"),),
            },
            'unique-violation in "sign up": key exists',
        ),
        (
            Status.FAILED,
            "exit",
            'exit code 1 in step "sign up"',
            {
                "happened_in": 0,
                "steps": (step("sign up", 1, StepOutcome.FAILED, error="KeyError: 'a'"),),
            },
            "in \"sign up\": KeyError: 'a'",
        ),
        (
            Status.FAILED,
            "exit",
            'exit code 3, expected 2, in step "a"',
            {"happened_in": 0, "steps": (step("a", 1, StepOutcome.UNFINISHED),)},
            'exit code 3, expected 2 in "a"',
        ),
        (
            Status.FAILED,
            "dns",
            "exit code 1",
            {"output_tail": TRACEBACK.format(error="socket.gaierror: [Errno -2] no such name")},
            "dns: [Errno -2] no such name",
        ),
        (
            Status.FAILED,
            "exit",
            "exit code 3",
            {"output_tail": TRACEBACK.format(error="KeyError: 'a'")},
            "exit code 3: KeyError: 'a'",
        ),
        (
            Status.FAILED,
            "exit",
            "exit code 1",
            {"output_tail": TRACEBACK.format(error="KeyError: 'a'") + "went on\n" * 30},
            "exit code 1",
        ),
    ],
)
def test_the_note_in_the_table_begins_with_what_the_status_does_not_say(
    status: Status, cause: str, reason: str, more: dict[str, Any], note: str
) -> None:
    result = Result(path="a.py", status=status, cause=cause, reason=reason, **more)
    assert lines_of_table(play(history([result]), []))[3].split("  ")[-1].strip() == note
    # The line of progress has the whole sentence.
    assert text.one_line(reason) in say(history([result])).split("\n\n")[0]


def test_long_paths_lose_their_folders_first() -> None:
    long = [
        replace(LEAKED, path=f"examples/a_folder/{name}", reason="left behind: " + "x" * 60)
        for name in ("one/a_script_of_some_length.py", "two/a_script_of_some_length.py")
    ]
    rows = lines_of_table(play(history(long), []))[3:]
    assert [row.split("  ")[0] for row in rows] == [
        "…/one/a_script_of_some_length.py",
        "…/two/a_script_of_some_length.py",
    ]
    assert {text.cell_width(row) for row in rows} == {80}
    # All alike, and not for what passed.
    short = replace(PASSED, path="examples/a_folder/one/b.py")
    rows = lines_of_table(play(history([*long, short]), []))[3:]
    assert {row[:6] for row in rows} == {"…/one/", "…/two/"}
    passed = replace(
        PASSED,
        path="examples/a_folder/one/a_script.py",
        metrics=(Metric(name="n" * 60, value=1),),
    )
    assert lines_of_table(play(history([passed]), []))[3].startswith(f"{passed.path}  ")
    alone = lines_of_table(play(history([replace(long[0], reason="")]), []))[3]
    assert alone.startswith("examples/a_folder/one/a_script_of_some_length.py  ")


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_line_of_progress_fits_and_names_the_file(width: int) -> None:
    result = replace(
        LEAKED, path="examples/a_folder/a_script.py", reason="left behind: " + "x" * 60
    )
    state = play(history(many(5))[:2], [])
    line = finished(result, state, width=width, strict=False, folder="examples/a_folder")
    words = paint(line, color=False)
    assert text.cell_width(words) <= width
    assert "a_script.py" in words or width == 40
    assert ("…/a_script.py" in words) == (width in {60, 80, 100})


def test_of_many_leaks_a_few_are_named() -> None:
    leaks = tuple(LeakedProcess(pid=n, command="sleep 60") for n in range(300))
    (block,) = [
        part
        for part in say(history([replace(LEAKED, leaks=leaks)])).split("\n\n")
        if "Left behind" in part
    ]
    assert block.count("\n  Left behind: process ") == 10
    assert "\n  Left behind: and 290 more\n" in block


def test_scripts_that_only_define_are_counted(tmp_path: Path) -> None:
    defines = "only imports, definitions and assignments"
    one = {"examples/defs.py": defines, "examples/data.py": "imported by a.py", "drafts/": defines}
    said = "1 file only imports and defines, and is no example: see `e2e-run list`\n"
    assert say(history([PASSED], not_examples=one)).endswith(
        f"\n1 passed in 1.00s\n{said}All examples passed\n"
    )
    assert "no example" not in say(history([PASSED], not_examples=one), settings(quiet=True))
    assert "no example" not in say(history([PASSED], not_examples={"_a.py": "hidden"}))
    # What discovery really says of such files, whose words the presentation knows.
    (tmp_path / "defs.py").write_text("import os\nX = 1\n")
    (tmp_path / "forgot.py").write_text("def main() -> None:\n    print(1)\n")
    (tmp_path / "_hidden.py").write_text("print(1)\n")
    (tmp_path / "runs.py").write_text("print(1)\n")
    plan = make_plan(resolve({}, [str(tmp_path)], {}, tmp_path))
    assert [paint(line, color=False) for line in passive_files(plan)] == [
        "2 files only import and define, and are no examples: see `e2e-run list`"
    ]


def test_many_skipped_ones_are_grouped() -> None:
    state = play(
        history([PASSED], deselected={f"examples/{n}.py": "does not match" for n in range(50)}), []
    )
    assert lines_of_table(state)[3:] == [
        "examples/a.py  ✓ passed   1.93s",
        "  50 examples skipped:",
        "      50  does not match",
    ]


def test_ten_thousand_examples_take_no_seconds() -> None:
    events = history([*many(9_000), *many(1_000, Status.LEAKED)])
    begun = time.process_time()
    say(events)
    assert time.process_time() - begun < 8  # PYTHONDEVMODE included


def test_prose_is_cut_at_its_end() -> None:
    assert cut("port 8000 is taken", 18) == "port 8000 is taken"
    assert cut("日本語", 4) == "日…"


@hypothesis.settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["C"])), st.integers(4, 100))
def test_wrapped_rows_fit_and_lose_nothing_short(line: str, width: int) -> None:
    rows = wrap(line, width)
    assert len(rows) <= 5
    assert all(text.cell_width(row) <= width for row in rows)
    if text.cell_width(line) <= 4 * width:
        assert "".join(rows) == line


def test_the_region_shows_what_runs_and_how_far_it_is() -> None:
    start, *_ = history([PASSED, FAILED, LEAKED])
    state = RunState()
    for event in (
        start,
        ExampleStarted(at=1.0, path="examples/a.py", limit=60.0),
        PhaseChanged(at=1.5, path="examples/a.py", phase=Phase.STARTING, detail="HTTP 503"),
    ):
        state.apply(event)
    lines = region(state, now=51.0, width=80, height=24, strict=False)
    assert [paint(line, color=False) for line in lines] == [
        "- examples/a.py   50.0s of 60s  waiting until ready: HTTP 503",
        "──────────────────────── 0/3  0 ok  51.0s",
    ]
    narrow = region(state, now=51.0, width=30, height=24, strict=False)
    assert all(text.cell_width(paint(line, color=False)) <= 30 for line in narrow)


def test_the_region_shows_the_step_in_place_of_running() -> None:
    start, *_ = history([PASSED])
    state = RunState()

    def first(now: float, width: int = 80) -> str:
        return paint(region(state, now=now, width=width, height=24, strict=False)[0], color=False)

    path = "examples/example_of_a_long_name_for_orders.py"
    for event in (
        start,
        ExampleStarted(at=1.0, path=path, limit=60.0),
        PhaseChanged(at=1.0, path=path, phase=Phase.RUNNING),
    ):
        state.apply(event)
    assert first(2.0).endswith("of 60s  running")
    state.apply(StepStarted(at=2.0, path=path, step=0, title="place orders"))
    assert first(2.9).endswith("  1.90s of 60s  ▸ place orders")
    assert first(44.5).endswith("  43.5s of 60s  ▸ place orders 42s")
    state.apply(StepStarted(at=45.0, path=path, step=1, title="\x1b[31m\n" + "日本語" * 100))
    assert "▸ \\x1b[31m\\n" in first(50.0, width=120)
    for width in (30, 60, 80, 120):
        assert text.cell_width(first(50.0, width=width)) <= width
    state.apply(PhaseChanged(at=61.0, path=path, phase=Phase.STOPPING, detail="SIGTERM"))
    assert first(61.0).endswith("of 60s  stopping: SIGTERM")


def test_the_region_counts_what_finished_and_ends_with_the_run() -> None:
    *events, last = history([PASSED, FAILED, LEAKED])
    state = RunState()
    for event in events:
        state.apply(event)
    (line,) = region(state, now=3.0, width=80, height=24, strict=False)
    assert paint(line, color=False) == "━━━━━━━━━━━━━━━━━━━━━━━━ 3/3  2 ok, 1 not ok  3.00s"
    state.apply(last)
    assert region(state, now=3.0, width=80, height=24, strict=False) == []


def running(*paths: str, attempts: int = 1) -> RunState:
    start, *_ = history([replace(PASSED, path=path) for path in paths])
    state = RunState()
    state.apply(start)
    for number, path in enumerate(paths):
        state.apply(
            ExampleStarted(at=number / 2, path=path, limit=60 + 30 * number, attempt=attempts)
        )
        state.apply(PhaseChanged(at=number / 2, path=path, phase=Phase.RUNNING))
    return state


def test_several_running_stand_in_columns_the_longest_running_first() -> None:
    state = running("examples/orm/a.py", "examples/orm/of_a_longer_name.py", attempts=2)
    state.apply(
        StepStarted(at=1.0, path="examples/orm/of_a_longer_name.py", step=0, title="log in")
    )
    # A later attempt has run for less time than its neighbour.
    first = Result(path="examples/orm/a.py", status=Status.FAILED, attempts=1)
    state.apply(AttemptFinished(at=2.0, number=1, result=first, again="retry 1"))
    state.apply(ExampleStarted(at=2.0, path="examples/orm/a.py", limit=60, attempt=2))
    shown = region(state, now=12.0, width=80, height=24, strict=False)
    assert [paint(line, color=False) for line in shown] == [
        "- examples/orm/of_a_longer_name.py   11.5s of 90s  attempt 2, ▸ log in 11s",
        "- examples/orm/a.py                  10.0s of 60s  attempt 2",
        "──────────────────────── 0/2  0 ok  12.0s",
    ]
    narrow = region(state, now=12.0, width=60, height=24, strict=False)
    assert [paint(line, color=False).split("  ")[0] for line in narrow[:2]] == [
        "- …/of_a_longer_name.py",
        "- …/a.py",
    ]


@pytest.mark.parametrize("count", [1, 2, 8, 40])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 100), (40, 10), (80, 2)])
def test_the_region_fits_whatever_runs(count: int, width: int, height: int) -> None:
    state = running(*(f"examples/{'deep/' * (n % 7)}{n:02}_日本.py" for n in range(count)))
    lines = [
        paint(line, color=False)
        for line in region(state, now=999.0, width=width, height=height, strict=False)
    ]
    assert len(lines) <= height
    assert max(map(text.cell_width, lines)) <= width
    shown = sum(line.endswith("  running") for line in lines)
    left_out = f"  … and {count - shown} more" if shown else f"  {count} running"
    assert (left_out in lines) == (shown < count)


def test_a_taller_terminal_shows_more_of_what_runs() -> None:
    state = running(*(f"examples/{n:02}.py" for n in range(40)))
    assert len(region(state, now=0.0, width=80, height=24, strict=False)) == 10
    tall = region(state, now=0.0, width=80, height=90, strict=False)
    assert paint(tall[-2], color=False) == "  … and 10 more"
    assert len(tall) == 32


def test_a_tall_region_leaves_room() -> None:
    start, *_ = history(many(20))
    state = RunState()
    state.apply(start)
    for number in range(20):
        state.apply(ExampleStarted(at=0.0, path=f"examples/{number:05}.py", limit=60.0))
    lines = region(state, now=0.0, width=80, height=24, strict=False)
    assert len(lines) == 10
    assert paint(lines[8], color=False) == "  … and 12 more"
    assert len(region(state, now=0.0, width=80, height=5, strict=False)) == 5


# --- streams -------------------------------------------------------------------------------------


def test_a_terminal_without_unicode() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    play(
        history([PASSED, FAILED], exit_code=1),
        make_reporters(settings(), stream=stream, environ={}),
    )
    stream.flush()
    written = raw.getvalue().decode("ascii")
    assert "2/2  x failed   420ms  examples/b.py  missing-module: exit code 1\n" in written
    assert "\n-------------  ---------  -----  --------------\n" in written
    assert "?" not in written


class Gone(io.StringIO):
    """A terminal that goes away after its first line."""

    def write(self, text: str) -> int:
        if self.getvalue():
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_terminal_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    run = settings(reports=[ReportTarget(format=ReportFormat.JSON, file=file)])
    play(history([PASSED]), make_reporters(run, stream=Gone(), environ={}))
    assert '"path": "examples/a.py"' in file.read_text()


def test_no_stdout_and_a_closed_one_are_silent() -> None:
    stream = io.StringIO()
    stream.close()
    for silent in (None, stream):
        play(history([PASSED]), make_reporters(settings(), stream=silent, environ={}))


def test_a_broken_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor has no path
        play(history([PASSED]), make_reporters(settings(), stream=stream, environ={}))


def test_a_paused_terminal_holds_up_nobody() -> None:
    reader, writer = os.pipe()
    with (
        open(reader, encoding="utf-8") as far,  # noqa: PTH123 - a descriptor has no path
        open(writer, "w", encoding="utf-8") as stream,  # noqa: PTH123 - same
    ):
        reporters = make_reporters(settings(), stream=stream, environ={})
        state = RunState()
        events = history(many(5_000))  # far more than the pipe holds, and nobody reads
        for event in events:
            state.apply(event)
            for reporter in reporters:
                reporter.handle(event, state)
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.extend(far))
        thread.start()
        for reporter in reporters:
            reporter.close()
        stream.close()
        thread.join()
    assert sum("✓ passed" in line for line in said) == 5_000
    assert said[-1] == "All examples passed\n"


@pytest.mark.parametrize("no_color", [False, True])
def test_a_real_terminal_has_a_region_and_then_the_plain_text(*, no_color: bool) -> None:
    controller, terminal = pty.openpty()
    environ = {"TERM": "xterm", "COLUMNS": "80"} | ({"NO_COLOR": "1"} if no_color else {})
    seen: list[bytes] = []

    def watch() -> None:
        try:
            while chunk := os.read(controller, 65536):
                seen.append(chunk)
        except OSError:  # how Linux says that the terminal's other side is closed
            pass

    thread = threading.Thread(target=watch)
    thread.start()
    painted = threading.Event()
    state = RunState()
    paints_while_running: list[float] = []

    def clock() -> float:
        now = time.monotonic()
        if any(running.phase for running in tuple(state.running.values())):
            paints_while_running.append(now)
        if len(paints_while_running) > 1:  # the second begins when the first is done
            painted.set()
        return now

    with open(terminal, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor has no path
        (console,) = make_reporters(settings(), stream=stream, environ=environ, clock=clock)
        events = history([PASSED, FAILED], exit_code=1)
        for event in events[:3]:
            state.apply(event)
            console.handle(event, state)
        assert painted.wait(30)
        for event in events[3:]:
            state.apply(event)
            console.handle(event, state)
        console.close()
    thread.join()
    os.close(controller)
    written = b"".join(seen).decode()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert re.search(r"[-\\|/] examples/a\.py +\d\S* of 60s  running", bare)
    assert "0/2  0 ok" in bare
    assert "1/2  ✓ passed   1.93s  examples/a.py\r\n" in bare
    assert bare.index("0/2  0 ok") < bare.index("Example Results Summary")
    assert bare.index("\x1b[?25l") < bare.index("\x1b[?25h"), "the cursor comes back"
    assert ("\x1b[1;31m" in written) is not no_color


class Jumps:
    """A clock that leaps ahead once, as it does for a process that was stopped for a minute."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return 60.0 if self.asked > 3 else 0.0


def test_after_a_stop_a_fresh_region_is_drawn_and_the_shell_is_left_alone() -> None:
    stream = io.StringIO()
    painted = threading.Event()
    jumps = Jumps()

    def painter(width: int, height: int) -> list[Line]:
        if jumps.asked > 4:
            painted.set()
        return [[(f"{width}x{height}", Style.PLAIN)], [("second row", Style.PLAIN)]]

    def make(sink: Sink) -> LiveRegion:
        environ = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        return LiveRegion(sink, painter, color=False, environ=environ)

    terminal = Terminal(Sink(stream), make_region=make, clock=jumps)
    terminal.write("above\n")
    assert painted.wait(30)
    terminal.close()
    begun = stream.getvalue().split("\x1b[?25l")  # the cursor is hidden where a region begins
    assert len(begun) == 3
    assert begun[1].endswith("second row")
    assert begun[2].startswith("80x24"), "nothing above is erased"


def test_a_terminal_that_is_closed_in_the_middle_is_silent() -> None:
    controller, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor has no path
        (console,) = make_reporters(settings(), stream=stream, environ={"TERM": "xterm"})
        state = RunState()
        for event in history([PASSED, FAILED], exit_code=1):
            state.apply(event)
            console.handle(event, state)
            if isinstance(event, ExampleStarted) and event.path == FAILED.path:
                os.close(controller)
        console.close()
    assert console.problems == ()


def test_without_a_terminal_rich_is_never_loaded() -> None:
    code = (
        "import sys, io; from report_history import *; from e2e_runner.model import *\n"
        "r = Result(path='a.py', status=Status.FAILED, attempts=1)\n"
        "play(history([r]), make(settings(), stream=io.StringIO(), environ={}))\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'rich', 'asyncio', 'xml', 'httpx', 'click', 'psutil'}))"
    ).replace("make(", "__import__('e2e_runner.report').report.make_reporters(")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
