import asyncio
import functools
import gc
import re
import selectors
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.kit import CheckFailed, NotInTime, check, wait_until, waiting


class Clock:
    """Seconds, which pass only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 50.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "_now", clock)
    monkeypatch.setattr(waiting, "_sleep", clock.sleep)
    return clock


class _Selector(selectors.DefaultSelector):
    """Where the loop would wait, the clock is put forward."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing would ever happen"
        ready = super().select(0)
        if not ready:
            self._clock.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))
        self._now = clock

    def time(self) -> float:
        return self._now()


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def run(clock: Clock) -> Iterator[Run]:
    loop = _Loop(clock)
    yield loop.run_until_complete
    loop.close()


class Answers:
    """A check that gives one thing after another, and the last one ever after; exceptions are raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = answers
        self.calls = 0

    def __call__(self) -> Any:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def later(self) -> Any:
        return self()


# --- both kinds ----------------------------------------------------------------------------------

# A check, and what waits for it: a plain function, a coroutine function, a lambda that gives one.
Wait = Callable[..., Any]


@pytest.fixture(params=["plain", "async", "lambda", "future"])
def wait(request: pytest.FixtureRequest, run: Run) -> Wait:
    def future(check: Callable[[], object]) -> Awaitable[object]:
        made = asyncio.get_running_loop().create_future()
        try:
            made.set_result(check())
        except Exception as error:  # noqa: BLE001 - any
            made.set_exception(error)
        return made

    def begin(check: Answers, **options: Any) -> Any:
        async def inside() -> Any:
            match request.param:
                case "async":
                    return await wait_until(check.later, **options)
                case "future":
                    return await wait_until(lambda: future(check), **options)
            return await wait_until(lambda: check.later(), **options)  # noqa: PLW0108

        return wait_until(check, **options) if request.param == "plain" else run(inside())

    return begin


def test_it_gives_what_is_true_at_once(wait: Wait, clock: Clock) -> None:
    assert wait(Answers(["row"])) == ["row"]
    assert clock.now == 50.0


def test_it_tries_until_it_is_true(wait: Wait, clock: Clock) -> None:
    answers = Answers(None, 0, [], ValueError("no"), AssertionError("3 of 5"), "done")
    assert wait(answers, timeout=3, every=0.5) == "done"
    assert answers.calls == 6
    assert clock.now == pytest.approx(52.5)


def test_the_last_try_is_at_the_deadline(wait: Wait, clock: Clock) -> None:
    answers = Answers(False)
    with pytest.raises(NotInTime) as caught:
        wait(answers, timeout=1, every=0.3, what="the order is filled")
    assert clock.now == pytest.approx(51.0)
    assert answers.calls == 5
    assert str(caught.value) == (
        "the order is filled: not within 1s (5 tries in 1.00s): the last try gave False"
    )
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, TimeoutError)


def test_an_exception_says_what_was_missing(wait: Wait) -> None:
    error = ConnectionRefusedError("port 8000\nclosed")
    with pytest.raises(NotInTime) as caught:
        wait(Answers(error), timeout=2, every=1, what="it answers")
    assert str(caught.value) == (
        "it answers: not within 2s (3 tries in 2.00s): ConnectionRefusedError: port 8000"
    )
    assert caught.value.__cause__ is error


def test_an_assertion_says_it_in_its_own_words(wait: Wait) -> None:
    with pytest.raises(NotInTime, match=re.escape("in 1.00s): 3 of 5 rows") + "$"):
        wait(Answers(AssertionError("3 of 5 rows")), timeout=1)


def test_only_the_last_try_counts(wait: Wait) -> None:
    with pytest.raises(NotInTime, match=r"the last try gave 0$") as caught:
        wait(Answers(ValueError("no"), 0), timeout=1)
    assert caught.value.__cause__ is None


def test_a_function_that_only_checks_is_told_to_return_something(wait: Wait) -> None:
    with pytest.raises(NotInTime, match=r"gave None \(return something true once it is so\)$"):
        wait(Answers(AssertionError("3 of 5 rows"), None), timeout=1)


def test_no_time_is_one_try(wait: Wait) -> None:
    assert wait(Answers(7), timeout=0) == 7
    answers = Answers([])
    with pytest.raises(NotInTime) as caught:
        wait(answers, timeout=0, what="a row is there")
    assert str(caught.value) == "a row is there: not so at the only try: the last try gave []"
    assert answers.calls == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_ends_the_script_ends_the_waiting(error: type[BaseException]) -> None:
    with pytest.raises(error):
        wait_until(Answers(error()))


# --- one kind ------------------------------------------------------------------------------------


def test_it_may_wait_for_ever(clock: Clock, run: Run) -> None:
    answers = [None] * 1000
    assert wait_until(Answers(*answers, 1), timeout=float("inf"), every=60) == 1
    assert run(wait_until(Answers(*answers, 1).later, timeout=float("inf"), every=60)) == 1
    assert clock.now == pytest.approx(50 + 2 * 60_000)


def test_an_answer_that_does_not_come_is_not_waited_for(run: Run, clock: Clock) -> None:
    cancelled = []

    async def silent() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(clock.now)
            raise

    with pytest.raises(NotInTime) as caught:
        run(wait_until(silent, timeout=5, what="it answers"))
    assert cancelled == [55.0]
    assert str(caught.value) == "it answers: not within 5s (1 try in 5.00s): no answer for 5.00s"


def test_what_came_before_the_silence_is_told(run: Run, clock: Clock) -> None:
    first = Answers(AssertionError("3 of 5 rows"), None)

    async def check() -> None:
        first()
        await asyncio.get_running_loop().create_future()

    with pytest.raises(NotInTime) as caught:
        run(wait_until(check, timeout=5, every=1, what="it answers"))
    assert clock.now == 55.0
    assert str(caught.value) == (
        "it answers: not within 5s (2 tries in 5.00s): "
        "no answer for 4.00s; before that, 3 of 5 rows"
    )


def test_a_try_at_the_deadline_has_a_second(run: Run, clock: Clock) -> None:
    async def slow() -> str:
        await asyncio.sleep(0.9)
        return "done"

    async def too_slow() -> str:
        await asyncio.sleep(1.1)
        return "done"

    assert run(wait_until(slow, timeout=0)) == "done"
    with pytest.raises(NotInTime, match=r"no answer for 1.00s"):
        run(wait_until(too_slow, timeout=0))
    assert clock.now == pytest.approx(51.9)


def test_a_timeout_of_its_own_is_an_exception_like_others(run: Run) -> None:
    async def check() -> None:
        async with asyncio.timeout(0.5):
            await asyncio.get_running_loop().create_future()

    with pytest.raises(NotInTime, match=r"\(3 tries in 3.50s\): TimeoutError$"):
        run(wait_until(check, timeout=3, every=1))


def test_the_time_begins_when_it_is_awaited(run: Run, clock: Clock) -> None:
    async def main() -> None:
        waits = wait_until(Answers(None, None, "done").later, timeout=2, every=1)
        clock.now += 100
        assert await waits == "done"

    run(main())


def test_cancelling_it_cancels_the_check(run: Run) -> None:
    async def main() -> None:
        asked = asyncio.get_running_loop().create_future()
        waits = asyncio.ensure_future(wait_until(lambda: asked))
        await asyncio.sleep(0.5)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert asked.cancelled()

    run(main())


def test_a_function_may_become_asynchronous(run: Run) -> None:
    answers = Answers("done")
    calls: list[None] = []

    def check() -> Any:
        calls.append(None)
        return None if len(calls) < 3 else answers.later()

    async def main() -> Any:
        return await wait_until(check)

    assert run(main()) == "done"


def test_what_was_raised_is_freed_at_once(clock: Clock) -> None:
    class Held:
        pass

    freed: list[weakref.ref[Held]] = []

    def check() -> bool:
        held = Held()
        freed.append(weakref.ref(held))
        if len(freed) < 3:
            raise ValueError(held)
        return True

    gc.disable()
    try:
        assert wait_until(check)
        assert [each() for each in freed] == [None] * 3
    finally:
        gc.enable()
    assert len(clock.pauses) == 2


@given(
    timeout=st.floats(min_value=0, max_value=1000),
    every=st.floats(min_value=0.01, max_value=100),
    costs=st.lists(st.floats(min_value=0, max_value=50), min_size=1, max_size=5),
)
def test_tries_keep_to_the_deadline(timeout: float, every: float, costs: Sequence[float]) -> None:
    clock = Clock()
    begun: list[float] = []

    def check() -> None:
        cost = costs[len(begun) % len(costs)]
        begun.append(clock.now - 50)
        clock.now += cost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "_now", clock)
        patch.setattr(waiting, "_sleep", clock.sleep)
        with pytest.raises(NotInTime):
            wait_until(check, timeout=timeout, every=every)
    assert begun[0] == 0
    assert begun[-1] <= timeout + 1e-6
    # It never gave up before its time, and paused between tries, never longer than told.
    assert clock.now - 50 >= timeout - 1e-6
    assert all(0 < pause <= every for pause in clock.pauses)
    assert len(clock.pauses) == len(begun) - 1


# --- words ---------------------------------------------------------------------------------------


def rows() -> list[int]:
    return []


class Server:
    def ready(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (rows, "`rows`"),
        (Server().ready, "`ready`"),
        (functools.partial(rows), "`rows`"),
        (lambda: rows(), "`rows()`"),  # noqa: PLW0108
        (lambda: len(rows()) == 3 and rows(), "`len(rows()) == 3 and rows()`"),
        (
            lambda: (
                rows() and rows()  # twice
            ),
            "`rows() and rows()`",
        ),
        (Answers(None), "`Answers`"),
        (eval("lambda: None"), "`lambda`"),  # noqa: S307 - a function without a source
    ],
)
def test_a_function_is_named(function: Callable[[], object], named: str) -> None:
    with pytest.raises(NotInTime, match=f"^{re.escape(named)}: not so"):
        wait_until(function, timeout=0)


def test_a_bare_assertion_is_told_by_its_line(tmp_path: Path) -> None:
    # pytest writes the assertions of tests anew, and gives them a text.
    file = tmp_path / "story.py"
    file.write_text("def bare():\n    found = []\n    assert len(found) == 3\n")
    namespace: dict[str, Any] = {}
    exec(compile(file.read_text(), file, "exec"), namespace)  # noqa: S102 - written above
    with pytest.raises(NotInTime) as caught:
        wait_until(namespace["bare"], timeout=0)
    assert str(caught.value) == "`bare`: not so at the only try: assert len(found) == 3 (line 3)"


def test_a_check_is_told_by_its_first_line() -> None:
    def checked() -> None:
        check(list(range(100)), [], why="nothing is left")

    with pytest.raises(NotInTime, match=r"nothing is left: expected 0 items, got 100$") as caught:
        wait_until(checked, timeout=0)
    assert isinstance(caught.value.__cause__, CheckFailed)


def test_a_huge_value_is_cut() -> None:
    class Huge(list[int]):
        def __bool__(self) -> bool:
            return False

    with pytest.raises(NotInTime) as caught:
        wait_until(lambda: Huge(range(10_000)), timeout=0)
    assert len(str(caught.value)) < 400
    assert "… (58,890 characters)" in str(caught.value)


# --- misuse --------------------------------------------------------------------------------------


def test_a_result_is_no_function() -> None:
    with pytest.raises(TypeError, match=r"wait_until\(list, \.\.\.\): it takes a function"):
        wait_until(rows())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"not the result of a call: wait_until\(lambda: \.\.\.\)"):
        wait_until(Answers(1).later())  # type: ignore[call-overload]


class Later:
    """An awaitable that, unlike a coroutine, says nothing of its own when it is forgotten."""

    def __await__(self) -> Generator[Any, Any, bool]:
        raise NotImplementedError


def test_a_forgotten_await_is_warned_of_by_name() -> None:
    with pytest.warns(RuntimeWarning, match=r"^coroutine 'wait_until' was never awaited"):
        wait_until(Later)  # type: ignore[unused-coroutine]


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_time_that_cannot_be(timeout: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"wait_until(timeout={timeout}): seconds, 0")):
        wait_until(rows, timeout=timeout)


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf")])
def test_a_pause_that_cannot_be(every: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"wait_until(every={every}): seconds, more")):
        wait_until(rows, every=every)
