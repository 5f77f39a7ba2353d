"""Polling that says what was still missing."""

import inspect
import linecache
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from types import CodeType
from typing import Any, NoReturn, TypeVar, overload

from e2e_runner.kit._words import cut, first_line, innermost, said, shown
from e2e_runner.text import duration, limit, one_line, plural

_T = TypeVar("_T")

_LEAST_PATIENCE = 1.0  # seconds that an asynchronous try has, even when it begins at the deadline
_LONGEST_VALUE = 200  # characters of what the last try gave
_LONGEST_WHAT = 120  # characters of source that names what was waited for


class NotInTime(TimeoutError):  # noqa: N818 - it reads as what happened
    """What was waited for did not come true; the message says what the last try saw.

    The exception that the last try raised, if it did, is its ``__cause__``.
    """


@overload
def wait_until(  # a function of which no types are known: it may be of either kind
    check: Callable[[], NoReturn], *, timeout: float = 10.0, every: float = 0.1, what: str = ""
) -> Any: ...


@overload
def wait_until(
    check: Callable[[], Awaitable[_T | None]],
    *,
    timeout: float = 10.0,
    every: float = 0.1,
    what: str = "",
) -> Coroutine[Any, Any, _T]: ...


@overload
def wait_until(
    check: Callable[[], _T | None], *, timeout: float = 10.0, every: float = 0.1, what: str = ""
) -> _T: ...


def wait_until(
    check: Callable[[], Any], *, timeout: float = 10.0, every: float = 0.1, what: str = ""
) -> Any:
    """Call `check` until what it gives is true, and return that.

    A plain function is called at once, and blocks; for one that is ``async``, or gives an awaitable,
    the result is to be awaited. An exception means "not yet": ``raise AssertionError("3 of 5 rows")``,
    an ``assert`` or `check` says what is missing, with a ``return True`` behind it.

    It tries for `timeout` seconds, with pauses of `every` seconds, once more at the end of that, and
    with a `timeout` of 0 only once. An asynchronous try that does not answer is broken off at the
    deadline, but has a second at least. Then `NotInTime` is raised; `what` says for people what was
    waited for.
    """
    wait = _Wait(check, timeout=timeout, every=every, what=what)
    while True:
        try:
            answer = check()
        except Exception as error:
            pause = wait.failed(error)
            if pause is None:
                raise wait.over() from error
        else:
            if inspect.isawaitable(answer):
                return _wait_async(wait, answer)
            if answer:
                return answer
            pause = wait.was_false(answer)
            if pause is None:
                raise wait.over()
        _sleep(pause)


async def _wait_async(wait: "_Wait", first: Awaitable[Any]) -> Any:
    import asyncio

    wait.begin()
    answers: list[Any] = [first]
    while True:
        patience = wait.patience()
        cut_off = asyncio.timeout(patience)
        try:
            async with cut_off:
                answer = answers.pop() if answers else wait.check()
                value = await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            if cut_off.expired():
                raise wait.unanswered(patience) from None
            pause = wait.failed(error)
            if pause is None:
                raise wait.over() from error
        else:
            if value:
                return value
            pause = wait.was_false(value)
            if pause is None:
                raise wait.over()
        await asyncio.sleep(pause)


# The name that Python warns of when the result is never awaited.
_wait_async.__qualname__ = wait_until.__qualname__


class _Wait:
    """Decides when to try again and when it is enough, and says what was missing. No I/O but the clock."""

    def __init__(self, check: Any, *, timeout: float, every: float, what: str) -> None:
        if not callable(check):
            if inspect.iscoroutine(check):
                check.close()
            raise TypeError(
                f"wait_until({type(check).__name__}, ...): it takes a function that it can call again "
                "and again, not the result of a call: wait_until(lambda: ...)"
            )
        if math.isnan(timeout) or timeout < 0:
            raise ValueError(f"wait_until(timeout={timeout}): seconds, 0 or more")
        if not 0 < every < math.inf:
            raise ValueError(f"wait_until(every={every}): seconds, more than 0")
        self.check = check
        self._timeout = timeout
        self._every = every
        self._what = what
        self._tries = 0
        self._seen = ""  # what the last try gave
        self.begin()

    def begin(self) -> None:
        """Start the clock."""
        self._began = _now()

    def patience(self) -> float | None:
        """Give the seconds that a try which can be broken off has; None for no end."""
        left = self._began + self._timeout - _now()
        return None if left == math.inf else max(left, _LEAST_PATIENCE)

    def was_false(self, value: object) -> float | None:
        """Take note of a try that gave nothing; give the seconds to pause, or None for the end."""
        self._seen = f"the last try gave {one_line(shown(value, _LONGEST_VALUE))}"
        if value is None:  # of a function that checks, and has nothing to return
            self._seen += " (return something true once it is so)"
        return self._pause()

    def failed(self, error: Exception) -> float | None:
        """Take note of a try that raised; give the seconds to pause, or None for the end."""
        # In words: the exception would keep alive all that its frames hold.
        self._seen = _missing(error)
        return self._pause()

    def _pause(self) -> float | None:
        self._tries += 1
        left = self._began + self._timeout - _now()
        return min(self._every, left) if left > 0 else None

    def over(self) -> NotInTime:
        """Make the error for the end of all tries."""
        return self._not_in_time(self._seen)

    def unanswered(self, patience: float | None) -> NotInTime:
        """Make the error for a try that was broken off after `patience` seconds."""
        self._tries += 1
        silent = f"no answer for {duration(patience or 0.0)}"
        before = f"; before that, {self._seen}" if self._seen else ""
        return self._not_in_time(silent + before)

    def _not_in_time(self, seen: str) -> NotInTime:
        what = self._what or _named(self.check)
        took = _now() - self._began
        tries = plural(self._tries, "try", "tries")
        if not self._timeout:
            return NotInTime(f"{what}: not so at the only try: {seen}")
        return NotInTime(
            f"{what}: not within {limit(self._timeout)} ({tries} in {duration(took)}): {seen}"
        )


def _missing(error: Exception) -> str:
    """Say what an exception tells of what is missing."""
    inner = innermost(error)
    if not isinstance(inner, AssertionError):
        return said(error)
    if line := first_line(inner):
        return line
    # A bare assertion says nothing, but its line does.
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line:
            return f"{cut(one_line(frame.line), _LONGEST_VALUE)} (line {frame.lineno})"
    return type(inner).__name__


def _named(check: Callable[[], Any]) -> str:
    """Name a function for people: a lambda by its source."""
    function = inspect.unwrap(getattr(check, "func", check))
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    if isinstance(code, CodeType) and name == "<lambda>":
        name = _source(code) or "lambda"
    return f"`{cut(one_line(name), _LONGEST_WHAT)}`"


def _source(code: CodeType) -> str:
    """Give the source of a lambda's body; empty where there is none."""
    starts, ends = [], []
    for first, last, start, end in code.co_positions():
        if first is None or last is None or start is None or end is None:
            continue
        if (first, start) != (last, end):  # else it stands for no source
            starts.append((first, start))
            ends.append((last, end))
    if not starts:
        return ""
    (first, start), (last, end) = min(starts), max(ends)
    lines = [
        linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)
    ]
    lines[-1] = lines[-1][:end]  # before the start is cut off, which may be of the same line
    lines[0] = lines[0][start:]
    return " ".join(b" ".join(lines).decode(errors="replace").split())


_now = time.monotonic
_sleep = time.sleep
