import itertools
import signal
from collections import Counter
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.model import (
    Exit,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    Problem,
    Status,
    Step,
    StepOutcome,
)
from e2e_runner.verdict import (
    JUDGED_CAUSES,
    Blocked,
    Facts,
    Judgement,
    Serving,
    all_passed,
    describe_exit,
    describe_leaks,
    ended_well,
    exit_code,
    is_bad,
    is_ok,
    judge,
    nothing_to_remark,
    signal_name,
    with_lost_reports,
)

OK = Exit(code=0, signal=None)
ONE = Exit(code=1, signal=None)
SEGV = Exit(code=None, signal=signal.SIGSEGV)
TERM = Exit(code=None, signal=signal.SIGTERM)

P, S, FL, L = Status.PASSED, Status.SERVED, Status.FLAKY, Status.LEAKED
F, T, B, SK, N = Status.FAILED, Status.TIMEOUT, Status.BLOCKED, Status.SKIPPED, Status.NOT_RUN


@pytest.mark.parametrize(
    ("status", "ok", "ok_strict", "bad", "bad_strict"),
    [
        (P, True, True, False, False),
        (S, True, True, False, False),
        (FL, True, False, False, True),
        (L, True, False, False, True),
        (F, False, False, True, True),
        (T, False, False, True, True),
        (B, False, False, True, True),
        (SK, False, False, False, False),
        (N, False, False, True, True),
    ],
)
def test_what_counts_as_ok(
    status: Status, *, ok: bool, ok_strict: bool, bad: bool, bad_strict: bool
) -> None:
    assert (is_ok(status, strict=False), is_ok(status, strict=True)) == (ok, ok_strict)
    assert (is_bad(status, strict=False), is_bad(status, strict=True)) == (bad, bad_strict)


@pytest.mark.parametrize(
    ("statuses", "code", "strict_code"),
    [
        ([P], 0, 0),
        ([P, S, SK], 0, 0),
        ([P, L], 0, 1),
        ([FL], 0, 1),
        ([P, F], 1, 1),
        ([P, T], 1, 1),
        ([F, B, N], 1, 1),
        ([P, B], 3, 3),
        ([B, L], 3, 1),
        ([P, N], 3, 3),
        ([N], 3, 3),
        ([SK, SK], 4, 4),
        ([], 4, 4),
    ],
)
def test_exit_codes(statuses: list[Status], code: int, strict_code: int) -> None:
    assert exit_code(statuses, strict=False, selected=len(statuses)) == code
    assert exit_code(Counter(statuses), strict=True, selected=len(statuses)) == strict_code


def test_deselected_examples_are_not_selected() -> None:
    assert exit_code([SK, SK, SK], strict=False, selected=0) == 4
    assert exit_code([P, SK, SK], strict=False, selected=1) == 0


@pytest.mark.parametrize(
    ("interrupted", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_an_interrupt_wins_over_everything(interrupted: signal.Signals, code: int) -> None:
    for statuses in ([], [P], [F], [B], [N]):
        assert (
            exit_code(
                statuses,
                strict=True,
                selected=1,
                interrupted=interrupted,
                setup_failed=True,
                internal_error=True,
            )
            == code
        )


def test_order_of_the_rest() -> None:
    assert exit_code([F], strict=False, selected=1, internal_error=True) == 70
    assert exit_code([F], strict=False, selected=1, setup_failed=True) == 1
    assert exit_code([P], strict=False, selected=1, setup_failed=True) == 3
    assert exit_code([], strict=False, selected=0, setup_failed=True) == 3


@pytest.mark.parametrize(
    ("statuses", "nothing"),
    [
        ([P, S, SK], True),
        ([P, L], False),
        ([FL], False),
        ([P, F], False),
        ([P, N], False),
        ([SK], False),
        ([], False),
    ],
)
def test_nothing_is_to_remark_where_all_passed_or_served(
    statuses: list[Status], *, nothing: bool
) -> None:
    assert nothing_to_remark(Counter(statuses)) is nothing


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (5, "left behind: process 0, process 1, process 2, process 3, process 4"),
        (6, "left behind: process 0, process 1, process 2, process 3, process 4 and 1 more"),
        (1305, "left behind: process 0, process 1, process 2, process 3, process 4 and 1,300 more"),
    ],
)
def test_few_of_many_leaks_are_named(count: int, said: str) -> None:
    assert describe_leaks(LeakedProcess(pid=pid, command="x") for pid in range(count)) == said


def test_a_lost_report_is_never_green() -> None:
    assert [with_lost_reports(code) for code in (0, 1, 2, 3, 4, 70, 130, 143)] == [
        *(3, 1, 2, 3, 3, 70, 130, 143)
    ]


@hypothesis.settings(deadline=None)
@given(
    statuses=st.lists(st.sampled_from(list(Status))),
    strict=st.booleans(),
    selected=st.integers(0, 20),
    setup_failed=st.booleans(),
)
def test_zero_means_that_something_ran_and_nothing_is_bad(
    statuses: list[Status], *, strict: bool, selected: int, setup_failed: bool
) -> None:
    code = exit_code(statuses, strict=strict, selected=selected, setup_failed=setup_failed)
    assert code in {0, 1, 3, 4}
    if code == 0:
        assert any(is_ok(status, strict=strict) for status in statuses)
        assert not any(is_bad(status, strict=strict) for status in statuses)
        assert all_passed(Counter(statuses), strict=strict)
        assert nothing_to_remark(Counter(statuses)) is not bool({FL, L} & set(statuses))
        assert selected
        assert not setup_failed
    assert code == exit_code(
        Counter(statuses), strict=strict, selected=selected, setup_failed=setup_failed
    )
    assert not strict or code != 0 or not {FL, L} & set(statuses)


@pytest.mark.parametrize(
    ("facts", "judgement"),
    [
        (Facts(exit=OK), Judgement(status=P)),
        (
            Facts(exit=Exit(code=3, signal=None), expect_exit=3),
            Judgement(status=P, reason="exit code 3, as expected"),
        ),
        (Facts(exit=ONE), Judgement(status=F, cause="exit", reason="exit code 1")),
        (
            Facts(exit=OK, expect_exit=3),
            Judgement(status=F, cause="exit", reason="exit code 0, expected 3"),
        ),
        (
            Facts(exit=Exit(code=137, signal=None)),
            Judgement(
                status=F,
                cause="exit",
                reason="exit code 137 (the shell's way to say SIGKILL; the script itself exited)",
            ),
        ),
        (
            Facts(exit=SEGV),
            Judgement(status=F, cause="signal", reason="killed by SIGSEGV (signal 11)"),
        ),
        (
            Facts(exit=SEGV, expect_exit=139),
            Judgement(status=F, cause="signal", reason="killed by SIGSEGV (signal 11)"),
        ),
        (
            Facts(exit=TERM, timed_out=True, timeout=60, grace=5),
            Judgement(status=T, cause="time-limit", reason="timed out after 60s"),
        ),
        (
            Facts(exit=OK, timed_out=True, timeout=60, grace=5),
            Judgement(status=T, cause="time-limit", reason="timed out after 60s"),
        ),
        (
            Facts(timed_out=True, timeout=60, grace=5, killed=True),
            Judgement(
                status=T,
                cause="ignored-sigterm",
                reason="still running after 60s; ignored SIGTERM for 5s, killed",
            ),
        ),
        (
            Facts(
                timed_out=True, timeout=10, serving=Serving.NOT_READY, missing="connection refused"
            ),
            Judgement(
                status=T, cause="not-ready", reason="not ready after 10s: connection refused"
            ),
        ),
        (
            Facts(timed_out=True, timeout=10, grace=1, serving=Serving.NOT_READY, killed=True),
            Judgement(
                status=T,
                cause="not-ready",
                reason="not ready after 10s; ignored SIGTERM for 1s, killed",
            ),
        ),
        (
            Facts(exit=TERM, interrupted=True, elapsed=3.2),
            Judgement(status=N, reason="interrupted after 3.20s"),
        ),
        (
            Facts(exit=TERM, interrupted=True, timed_out=True, timeout=60),
            Judgement(status=T, cause="time-limit", reason="timed out after 60s"),
        ),
        (
            Facts(start_error="[Errno 2] No such file or directory: 'bash'"),
            Judgement(
                status=F,
                cause="start-error",
                reason="could not be started: [Errno 2] No such file or directory: 'bash'",
            ),
        ),
        (
            Facts(blocked=Blocked(cause="port-in-use", reason="port 8000 is taken")),
            Judgement(status=B, cause="port-in-use", reason="port 8000 is taken"),
        ),
        (Facts(skipped="port 8000 is taken"), Judgement(status=SK, reason="port 8000 is taken")),
        (
            Facts(problems=(Problem(message="a.py:2: bad"), Problem(message="a.py:3: bad"))),
            Judgement(status=F, cause="bad-metadata", reason="a.py:2: bad (and 1 more)"),
        ),
        (
            Facts(exit=OK, forbidden_output="  Traceback (most\x1b[0m recent"),
            Judgement(
                status=F,
                cause="output",
                reason="output matched fail-on-output: Traceback (most\\x1b[0m recent",
            ),
        ),
        (
            Facts(exit=OK, companions_died=("companion a.py ended by itself: exit code 7",)),
            Judgement(
                status=F,
                cause="companion-died",
                reason="companion a.py ended by itself: exit code 7",
            ),
        ),
        (
            Facts(exit=OK, leaks=(LeakedProcess(pid=7, command="x"), LeakedPort(port=8000))),
            Judgement(status=L, reason="left behind: process 7, port 8000"),
        ),
        (Facts(exit=TERM, serving=Serving.READY, stopped=True), Judgement(status=S)),
        (
            Facts(exit=TERM, serving=Serving.READY, stopped=True, killed=True, grace=5),
            Judgement(status=S, reason="ignored SIGTERM for 5s, killed"),
        ),
        (
            Facts(exit=TERM, serving=Serving.READY, stopped=True, leaks=(LeakedPort(port=8000),)),
            Judgement(status=L, reason="left behind: port 8000"),
        ),
        (
            Facts(exit=ONE, serving=Serving.READY),
            Judgement(status=F, cause="exit", reason="exit code 1 after it was ready"),
        ),
        (
            Facts(exit=OK, serving=Serving.NOT_READY, missing="HTTP 503"),
            Judgement(
                status=F,
                cause="exited-before-ready",
                reason="exit code 0 before it was ready: HTTP 503",
            ),
        ),
        (
            Facts(exit=SEGV, serving=Serving.NOT_READY),
            Judgement(
                status=F,
                cause="exited-before-ready",
                reason="killed by SIGSEGV (signal 11) before it was ready",
            ),
        ),
        (
            Facts(),
            Judgement(status=F, cause="lost", reason="ended, and nobody saw how: not a pass"),
        ),
    ],
)
def test_verdicts(facts: Facts, judgement: Judgement) -> None:
    assert judge(facts) == judgement
    if judgement.status in {F, T}:
        assert judgement.cause in JUDGED_CAUSES


IN = Step(title="place orders", started=17.9, duration=42.1, outcome=StepOutcome.UNFINISHED)
FAILED_IN = Step(title="log in", started=0, duration=1, outcome=StepOutcome.FAILED, error="401")
NOWHERE = Step(
    title="\x1b[31m\n\u202e" + "x" * 100,
    started=0,
    duration=0,
    outcome=StepOutcome.UNFINISHED,
)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            Facts(exit=TERM, timed_out=True, timeout=60, step=IN),
            'timed out after 60s in step "place orders" (for 42.1s)',
        ),
        (
            Facts(timed_out=True, timeout=60, grace=5, killed=True, step=IN),
            (
                'still running after 60s in step "place orders" (for 42.1s); '
                "ignored SIGTERM for 5s, killed"
            ),
        ),
        (
            Facts(
                timed_out=True, timeout=60, serving=Serving.NOT_READY, missing="HTTP 503", step=IN
            ),
            'not ready after 60s in step "place orders" (for 42.1s): HTTP 503',
        ),
        (
            Facts(exit=TERM, interrupted=True, elapsed=3.2, step=IN),
            'interrupted after 3.20s in step "place orders" (for 42.1s)',
        ),
        (Facts(exit=ONE, step=FAILED_IN), 'exit code 1 in step "log in"'),
        (Facts(exit=ONE, step=IN), 'exit code 1 in step "place orders"'),
        (Facts(exit=OK, expect_exit=3, step=IN), 'exit code 0, expected 3, in step "place orders"'),
        (Facts(exit=SEGV, step=IN), 'killed by SIGSEGV (signal 11) in step "place orders"'),
        (
            Facts(exit=ONE, serving=Serving.READY, step=IN),
            'exit code 1 after it was ready, in step "place orders"',
        ),
        (
            Facts(exit=ONE, serving=Serving.NOT_READY, missing="HTTP 503", step=IN),
            'exit code 1 before it was ready, in step "place orders": HTTP 503',
        ),
        (
            Facts(exit=ONE, step=NOWHERE),
            'exit code 1 in step "\\x1b[31m\\n\\u202e' + "x" * 13 + "…" + "x" * 30 + '"',
        ),
        (Facts(exit=OK, step=FAILED_IN), ""),
        (Facts(exit=OK, step=IN, leaks=(LeakedPort(port=1),)), "left behind: port 1"),
        (
            Facts(exit=OK, step=IN, forbidden_output="Traceback"),
            "output matched fail-on-output: Traceback",
        ),
    ],
)
def test_a_failure_says_in_which_step_it_happened(facts: Facts, reason: str) -> None:
    assert judge(facts).reason == reason


_AXES: dict[str, list[Any]] = {
    "exit": [None, OK, ONE, SEGV, Exit(code=3, signal=None)],
    "expect_exit": [0, 3],
    "timed_out": [False, True],
    "interrupted": [False, True],
    "stopped": [False, True],
    "killed": [False, True],
    "serving": list(Serving),
    "leaks": [(), (LeakedPort(port=1),), (LeakedDatabase(name="x"),)],
    "forbidden_output": [None, "Traceback"],
    "companions_died": [(), ("it died",)],
    "skipped": [None, "reason"],
    "blocked": [None, Blocked(cause="c", reason="r")],
    "start_error": [None, "no such file"],
    "problems": [(), (Problem(message="bad"),)],
}


def test_green_is_earned_in_the_whole_space() -> None:
    seen = set()
    for values in itertools.product(*_AXES.values()):
        facts = Facts(**dict(zip(_AXES, values, strict=True)))
        verdict = judge(facts)
        seen.add(verdict.status)
        for step in (IN, FAILED_IN):
            told = judge(replace(facts, step=step))
            assert (told.status, told.cause) == (verdict.status, verdict.cause)
        assert ended_well(facts) == (
            is_ok(verdict.status, strict=False) or verdict.cause in {"output", "companion-died"}
        )
        if is_ok(verdict.status, strict=False):
            served = facts.serving is Serving.READY and facts.stopped
            assert facts.exit is not None
            assert served or facts.exit == Exit(code=facts.expect_exit, signal=None)
            assert facts.serving is not Serving.NOT_READY
            stopped = facts.timed_out or facts.interrupted
            unstarted = facts.skipped or facts.blocked or facts.start_error or facts.problems
            assert not any([stopped, unstarted, facts.forbidden_output, facts.companions_died])
            assert (verdict.status is L) == bool(facts.leaks)
            assert verdict.status is not S or facts.serving is Serving.READY
        assert bool(verdict.cause) == (verdict.status in {F, T, B})
        assert verdict.reason or verdict.status in {P, S}
    assert seen == {P, S, L, F, T, B, SK, N}


@hypothesis.settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, 255))
def test_another_exit_code_is_never_green(code: int, expected: int) -> None:
    ended = Exit(code=code, signal=None)
    verdict = judge(Facts(exit=ended, expect_exit=expected))
    assert (verdict.status is P) == (code == expected)
    assert describe_exit(ended, expect_exit=expected) == verdict.reason


@hypothesis.settings(deadline=None)
@given(st.integers(1, 200))
def test_a_signal_is_never_green(number: int) -> None:
    verdict = judge(Facts(exit=Exit(code=None, signal=number), expect_exit=128 + number))
    assert (verdict.status, verdict.cause) == (F, "signal")
    assert signal_name(number) in verdict.reason
