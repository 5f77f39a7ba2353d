"""Verdicts: from what was observed to a status, and from the statuses to an exit code. Pure.

Green is the exception that has to be earned: every rule below that ends in an ok status names what
must have been seen for it, and whatever no rule foresees is a failure.
"""

import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from e2e_runner import text
from e2e_runner.model import (
    Exit,
    Leak,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    Problem,
    Status,
    Step,
)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BLOCKED = 3
EXIT_NOTHING = 4
EXIT_INTERNAL = 70

# What may come of an attempt that ran: well, or not.
WELL = frozenset({Status.PASSED, Status.SERVED, Status.LEAKED})
ILL = frozenset({Status.FAILED, Status.TIMEOUT})

_ALWAYS_OK = frozenset({Status.PASSED, Status.SERVED})
_OK_UNLESS_STRICT = frozenset({Status.FLAKY, Status.LEAKED})
_RAN_TO_AN_END = _ALWAYS_OK | _OK_UNLESS_STRICT
_SHELL_SIGNAL_BASE = 128
_MOST_NAMED_LEAKS = 5
_LONGEST_TITLE = 60  # columns of a step's title


def is_ok(status: Status, *, strict: bool) -> bool:
    """Tell whether a status counts as ok. `skipped` is neutral: neither this nor `is_bad`."""
    return status in _ALWAYS_OK or (status in _OK_UNLESS_STRICT and not strict)


def is_bad(status: Status, *, strict: bool) -> bool:
    """Tell whether a status keeps a run from being green. `not-run` does."""
    return status is not Status.SKIPPED and not is_ok(status, strict=strict)


def all_passed(counts: Mapping[Status, int], *, strict: bool) -> bool:
    """Tell whether at least one example ran and nothing stands against a green run."""
    ran = any(counts.get(status, 0) for status in _RAN_TO_AN_END)
    return ran and not any(n and is_bad(status, strict=strict) for status, n in counts.items())


def nothing_to_remark(counts: Mapping[Status, int]) -> bool:
    """Tell whether every example that was to run passed or served: none leaked, none was flaky."""
    return all_passed(counts, strict=True)


def exit_code(
    statuses: Mapping[Status, int] | Iterable[Status],
    *,
    strict: bool,
    selected: int,
    interrupted: signal.Signals | None = None,
    setup_failed: bool = False,
    internal_error: bool = False,
    elsewhere: bool = False,
) -> int:
    """Choose the exit code of a run.

    `statuses` counts the results or lists them. `selected` is the number of examples that the plan
    meant to run; those left out on purpose do not count. `setup_failed` covers whatever could not be
    set up or written, reports included. The first rule that applies decides: interrupted, internal
    error, failed, blocked, nothing selected. Examples that were all skipped after they were selected
    (``--on-port-conflict skip``) tested nothing, so they count as nothing selected. What was selected
    may be `elsewhere`, in other shards of the suite; such a shard is empty, and nothing is wrong.
    """
    counts = statuses if isinstance(statuses, Mapping) else Counter(statuses)
    failing = {Status.FAILED, Status.TIMEOUT} | (_OK_UNLESS_STRICT if strict else set())
    if interrupted is not None:
        return _SHELL_SIGNAL_BASE + interrupted
    if internal_error:
        return EXIT_INTERNAL
    if any(counts.get(status, 0) for status in failing):
        return EXIT_FAILED
    if setup_failed or counts.get(Status.BLOCKED, 0) or counts.get(Status.NOT_RUN, 0):
        return EXIT_BLOCKED
    tested = selected > 0 and all_passed(counts, strict=strict)
    return EXIT_OK if tested or (elsewhere and not counts) else EXIT_NOTHING


def with_lost_reports(code: int) -> int:
    """Give the exit code of a run whose report could not be written: never 0, never less serious.

    >>> [with_lost_reports(code) for code in (0, 1, 3, 4, 130)]
    [3, 1, 3, 3, 130]
    """
    return EXIT_BLOCKED if code in {EXIT_OK, EXIT_NOTHING} else code


JUDGED_CAUSES = frozenset(
    {
        "bad-metadata",
        "companion-died",
        "exit",
        "exited-before-ready",
        "ignored-sigterm",
        "lost",
        "not-ready",
        "output",
        "signal",
        "start-error",
        "time-limit",
    }
)
"""The causes that `judge` gives; their reason says as much. Rules over the output find others."""


class Serving(Enum):
    """What became of an example that is a server by design."""

    NOT_A_SERVER = "not a server"
    NOT_READY = "not ready"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Why an example was never started: a cause (``port-in-use``) and the reason in words."""

    cause: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was observed of one attempt. Seconds are floats.

    The fields stand in the order in which they are weighed: an earlier one decides over a later one.
    """

    problems: tuple[Problem, ...] = ()  # what is wrong with the metadata
    skipped: str | None = None  # left out after it was selected, with the reason
    blocked: Blocked | None = None
    start_error: str | None = None  # why the script could not be started
    timed_out: bool = False  # it reached its time limit
    interrupted: bool = False  # the end of the run stopped it before anything else decided
    stopped: bool = False  # a server that was asked to stop after it was ready
    serving: Serving = Serving.NOT_A_SERVER
    missing: str = ""  # what readiness still lacked, in words
    exit: Exit | None = None  # how the script ended; None: nobody saw it end
    expect_exit: int = 0
    forbidden_output: str | None = None  # the line that matched `fail-on-output`
    companions_died: tuple[str, ...] = ()  # with a failure, before they were stopped; in words
    leaks: tuple[Leak, ...] = ()
    killed: bool = False  # it outlived its grace and needed SIGKILL
    elapsed: float = 0.0
    timeout: float = 0.0
    grace: float = 0.0
    step: Step | None = None  # in which it failed or was stopped, as it says: for the words alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on one attempt. `cause` refines failed, timeout and blocked."""

    status: Status
    cause: str | None = None
    reason: str = ""


def judge(facts: Facts) -> Judgement:
    """Judge one attempt by what was observed of it."""
    return _judge_start(facts) or _judge_stop(facts) or _judge_end(facts)


def _judge_start(facts: Facts) -> Judgement | None:
    """Judge what never ran."""
    if facts.problems:
        more = len(facts.problems) - 1
        reason = facts.problems[0].message + (f" (and {more} more)" if more else "")
        return Judgement(status=Status.FAILED, cause="bad-metadata", reason=reason)
    if facts.skipped is not None:
        return Judgement(status=Status.SKIPPED, reason=facts.skipped)
    if facts.blocked is not None:
        return Judgement(
            status=Status.BLOCKED, cause=facts.blocked.cause, reason=facts.blocked.reason
        )
    if facts.start_error is not None:
        return Judgement(
            status=Status.FAILED,
            cause="start-error",
            reason=f"could not be started: {facts.start_error}",
        )
    return None


def _judge_stop(facts: Facts) -> Judgement | None:
    """Judge what the runner had to stop."""
    if facts.timed_out:
        return _timeout(facts)
    if facts.interrupted:
        after = text.duration(facts.elapsed)
        return Judgement(
            status=Status.NOT_RUN, reason=f"interrupted after {after}{_stopped_in(facts.step)}"
        )
    return None


def _in_step(step: Step | None) -> str:
    """Name the step in which it happened."""
    if step is None:
        return ""
    return f'in step "{text.shorten(text.one_line(step.title), _LONGEST_TITLE)}"'


def _stopped_in(step: Step | None) -> str:
    """Name the step in which it was stopped, and how long that had lasted by then."""
    return f" {_in_step(step)} (for {text.duration(step.duration)})" if step else ""


def _timeout(facts: Facts) -> Judgement:
    after = f"{text.limit(facts.timeout)}{_stopped_in(facts.step)}"
    stubborn = f"ignored SIGTERM for {text.limit(facts.grace)}, killed"
    if facts.serving is Serving.NOT_READY:
        reason = f"not ready after {after}"
        reason += f": {facts.missing}" if facts.missing else ""
        reason += f"; {stubborn}" if facts.killed else ""
        return Judgement(status=Status.TIMEOUT, cause="not-ready", reason=reason)
    if facts.killed:
        return Judgement(
            status=Status.TIMEOUT,
            cause="ignored-sigterm",
            reason=f"still running after {after}; {stubborn}",
        )
    return Judgement(status=Status.TIMEOUT, cause="time-limit", reason=f"timed out after {after}")


def _judge_end(facts: Facts) -> Judgement:
    """Judge what ended by itself, or a server that was stopped."""
    if facts.exit is None:
        return Judgement(
            status=Status.FAILED, cause="lost", reason="ended, and nobody saw how: not a pass"
        )
    return _judge_exit(facts, facts.exit) or _judge_traces(facts, facts.exit)


def _judge_exit(facts: Facts, ended: Exit) -> Judgement | None:
    """Judge the way in which it ended. How a ready server goes when it is stopped is not weighed."""
    if facts.serving is Serving.NOT_READY:
        reason = f"{describe_exit(ended) or 'exit code 0'} before it was ready"
        reason += f", {_in_step(facts.step)}" if facts.step else ""
        reason += f": {facts.missing}" if facts.missing else ""
        return Judgement(status=Status.FAILED, cause="exited-before-ready", reason=reason)
    ready = facts.serving is Serving.READY
    if (ready and facts.stopped) or _as_expected(ended, facts.expect_exit):
        return None
    reason = describe_exit(ended, expect_exit=facts.expect_exit)
    reason += " after it was ready" if ready else ""
    if facts.step is not None:
        plain = not ready and facts.expect_exit == 0
        reason += f"{' ' if plain else ', '}{_in_step(facts.step)}"
    return Judgement(
        status=Status.FAILED,
        cause="exit" if ended.signal is None else "signal",
        reason=reason,
    )


def _judge_traces(facts: Facts, ended: Exit) -> Judgement:
    """Judge what it wrote and left behind; the rest is ok."""
    if facts.forbidden_output is not None:
        line = text.shorten(text.one_line(facts.forbidden_output.strip()), 80)
        return Judgement(
            status=Status.FAILED, cause="output", reason=f"output matched fail-on-output: {line}"
        )
    if facts.companions_died:
        return Judgement(
            status=Status.FAILED, cause="companion-died", reason=facts.companions_died[0]
        )
    if facts.leaks:
        return Judgement(status=Status.LEAKED, reason=describe_leaks(facts.leaks))
    if facts.serving is Serving.READY:
        stubborn = f"ignored SIGTERM for {text.limit(facts.grace)}, killed" if facts.killed else ""
        return Judgement(status=Status.SERVED, reason=stubborn)
    return Judgement(
        status=Status.PASSED, reason=describe_exit(ended, expect_exit=facts.expect_exit)
    )


def ended_well(facts: Facts) -> bool:
    """Tell whether it came to the end that was expected of it, whatever it wrote and left behind."""
    if _judge_start(facts) or _judge_stop(facts) or facts.exit is None:
        return False
    return _judge_exit(facts, facts.exit) is None


def _as_expected(ended: Exit, expect_exit: int) -> bool:
    return ended.signal is None and ended.code == expect_exit


def describe_exit(ended: Exit, *, expect_exit: int = 0) -> str:
    """Say in words how a script ended; empty for a plain exit code 0 that was expected.

    >>> describe_exit(Exit(code=None, signal=11))
    'killed by SIGSEGV (signal 11)'
    >>> describe_exit(Exit(code=137, signal=None))
    "exit code 137 (the shell's way to say SIGKILL; the script itself exited)"
    """
    if ended.signal is not None:
        return f"killed by {signal_name(ended.signal)} (signal {ended.signal})"
    if _as_expected(ended, expect_exit):
        return "" if expect_exit == 0 else f"exit code {expect_exit}, as expected"
    words = f"exit code {ended.code}"
    if ended.code is not None and ended.code > _SHELL_SIGNAL_BASE:
        name = _known_signal(ended.code - _SHELL_SIGNAL_BASE)
        if name is not None:
            words += f" (the shell's way to say {name}; the script itself exited)"
    return words + (f", expected {expect_exit}" if expect_exit != 0 else "")


def describe_leaks(leaks: Iterable[Leak]) -> str:
    """Name what was left behind, on one line.

    >>> describe_leaks([LeakedProcess(pid=7, command="sleep 60"), LeakedPort(port=8000)])
    'left behind: process 7, port 8000'
    >>> describe_leaks(LeakedPort(port=port) for port in range(8000, 8300))
    'left behind: port 8000, port 8001, port 8002, port 8003, port 8004 and 295 more'
    """
    names = [_leak_name(leak) for leak in leaks]
    more = len(names) - _MOST_NAMED_LEAKS
    said = ", ".join(names[:_MOST_NAMED_LEAKS])
    return f"left behind: {said} and {more:,} more" if more > 0 else f"left behind: {said}"


def _leak_name(leak: Leak) -> str:
    match leak:
        case LeakedProcess():
            return "a process" if leak.pid is None else f"process {leak.pid}"
        case LeakedPort():
            return f"port {leak.port}"
        case LeakedDatabase():
            return f"database {text.one_line(leak.name)}"
        case _:
            assert_never(leak)


def signal_name(number: int) -> str:
    """Name a signal, real-time signals included.

    >>> signal_name(9), signal_name(35), signal_name(99)
    ('SIGKILL', 'SIGRTMIN+1', 'signal 99')
    """
    return _known_signal(number) or f"signal {number}"


def _known_signal(number: int) -> str | None:
    try:
        return signal.Signals(number).name
    except ValueError:
        pass
    lowest = getattr(signal, "SIGRTMIN", None)  # macOS has no real-time signals
    if lowest is not None and lowest < number <= signal.SIGRTMAX:
        return f"SIGRTMIN+{number - lowest}"
    return None
