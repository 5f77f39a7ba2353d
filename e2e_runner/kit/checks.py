"""Checks that say what was expected and what came. They are no ``assert``: ``python -O`` keeps them."""

import inspect
from collections.abc import Collection
from typing import TypeVar, overload

from e2e_runner.kit import _differences, _exchange
from e2e_runner.kit._words import said, shown
from e2e_runner.text import one_line

_R = TypeVar("_R")

_LONGEST_VALUE = 300  # characters of what should have been true


class CheckFailed(AssertionError):  # noqa: N818 - it reads as what happened
    """Something is not as it should be."""


class _Truth:
    """Stands for "anything that is true"."""

    def __repr__(self) -> str:
        return "something true"


_TRUTH = _Truth()


@overload
def check(actual: object, *, why: str = "") -> None: ...


@overload
def check(actual: object, expected: object, why: str = "") -> None: ...


def check(actual: object, expected: object = _TRUTH, why: str = "") -> None:
    """Raise `CheckFailed` unless `actual` equals `expected`, or is true where nothing is expected.

    The message begins with `why`, and says what was expected, what came, and where they differ.
    ``check(x, True)`` asks for equality; ``check(x)`` for truth. What is always true, and so checks
    nothing, is a TypeError there: a coroutine that was not awaited, a generator, a function.
    """
    if expected is _TRUTH:
        if meant := _meant(actual):
            if inspect.iscoroutine(actual):
                actual.close()  # else a warning would say it once more
            raise TypeError(
                f"{_prefix(why)}check({type(actual).__name__}) is always true, whatever comes: {meant}"
            )
        try:
            true = bool(actual)
        except Exception as error:
            raise CheckFailed(
                f"{_prefix(why)}{type(actual).__name__} is neither true nor false: {said(error)}"
            ) from error
        if not true:
            came = one_line(shown(actual, _LONGEST_VALUE))
            raise CheckFailed(f"{_prefix(why)}expected something true, got {came}")
        return
    try:
        answer = actual == expected
        same = bool(answer)
    except Exception as error:
        raise CheckFailed(
            _prefix(why) + _differences.incomparable(actual, expected, error)
        ) from error
    if not same:
        raise CheckFailed(_prefix(why) + _differences.words(actual, expected))


def _meant(actual: object) -> str:
    """Say what was meant by what is always true; nothing where it may be false."""
    if inspect.isawaitable(actual):
        own = hasattr(type(actual), "__bool__")
        return "" if own else "it was not awaited; write check(await ...)"
    if inspect.isasyncgen(actual):
        return "write check(all([... async for ...])), or any"
    if inspect.isgenerator(actual) or isinstance(actual, map | filter):
        return "write check(all(...)), or any"
    if inspect.isroutine(actual):
        name = getattr(actual, "__name__", "it")
        return f"it was not called; write check({'it' if name == '<lambda>' else name}())"
    return ""


def api_response(response: _R, status: int | Collection[int]) -> _R:
    """Return `response` if its status is `status`, or one of them; else raise `CheckFailed`.

    The message says what was asked and what came. The values of passwords, tokens and the like are
    masked in it. Responses of httpx, requests and aiohttp will do, and all that look like them; the
    body of aiohttp's, which has to be awaited, is not shown. Raises TypeError for what is no response,
    and for a status that is no number.
    """
    came = _exchange.status_of(response)
    if not _is_status(status):
        raise TypeError(
            f"api_response(..., {shown(status, 50)}): a status is a number, as in 200, "
            "or several of them, as in {200, 201} or range(200, 300)"
        )
    if came == status or (isinstance(status, Collection) and came in status):
        return response
    raise CheckFailed(_exchange.unexpected(response, came, status))


def _is_status(status: object) -> bool:
    if isinstance(status, int | range):
        return True
    if isinstance(status, str | bytes) or not isinstance(status, Collection):
        return False
    return all(isinstance(each, int) for each in status)


def _prefix(why: str) -> str:
    return f"{why}: " if why else ""
