"""Checks that say what was expected and what came. They are no ``assert``: ``python -O`` keeps them."""

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
    ``check(x, True)`` asks for equality; ``check(x)`` for truth.
    """
    if expected is _TRUTH:
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


def api_response(response: _R, status: int | Collection[int]) -> _R:
    """Return `response` if its status is `status`, or one of them; else raise `CheckFailed`.

    The message says what was asked and what came. The values of passwords, tokens and the like are
    masked in it. Responses of httpx, requests and aiohttp will do, and all that look like them; the
    body of aiohttp's, which has to be awaited, is not shown.
    """
    came = _exchange.status_of(response)
    if came == status or (isinstance(status, Collection) and came in status):
        return response
    raise CheckFailed(_exchange.unexpected(response, came, status))


def _prefix(why: str) -> str:
    return f"{why}: " if why else ""
