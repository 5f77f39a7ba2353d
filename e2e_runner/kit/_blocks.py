"""Blocks that work with ``with`` and with ``async with``, and whose work goes on in the background.

What a block holds lives in an event loop in a thread of its own, so that it is looked after whatever
the script is doing, and so that synchronous and asynchronous scripts share one implementation.

Signals: no handler interrupts what takes or gives back. A handler that raises while a block is entered
has the entering given up, and what was taken is given back first; one that raises while a block is left
waits for that. The next one has it hurry (kill instead of stop), one more ends the waiting.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from e2e_runner.kit._warnings import tell

if TYPE_CHECKING:  # asyncio takes longer to import than all of the kit
    import asyncio
    from collections.abc import AsyncIterator

_T = TypeVar("_T")


class BlockError(Exception):
    """An error of what a block holds whose text says all: where in the kit it arose is not shown."""


class BlockFailed(Exception):  # noqa: N818 - what a block's holder sees, not an error of its own
    """The script raised `error` inside the block; holders see this when they are left."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


class Block(Generic[_T]):
    """A block that may be entered once, by ``with`` or ``async with``.

    While it lasts, SIGTERM ends the script by SystemExit, so that what the block holds is given back;
    a script with a handler of its own keeps that. An exception that the script raises stays what it
    is: what goes wrong at the end as well is a note to it. In a forked process the block is over: it
    belongs to the one that entered it.
    """

    def __init__(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        """`hold` makes what is entered and left, in one task of the background loop.

        Left by an exception of the script it sees `BlockFailed`. It may be cancelled twice: to be left
        before it is entered, and then, or while it is left, to end at once.
        """
        self._hold = hold
        self._held: _Held[_T] | None = None

    def __enter__(self) -> _T:
        held = self._new()
        try:
            with _Deferred(held.abandon, held.hurry):
                held.begin()
                held.wait_entered()
        except BaseException:
            with _Deferred(held.hurry):
                held.abandon()
                held.wait()
            raise
        return held.value()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held = self._entered()
        if held.is_inherited:
            return
        with _Deferred(*held.reactions(error)):
            held.leave(error)
            held.wait()
        held.raise_new(error)

    async def __aenter__(self) -> _T:
        import asyncio

        asyncio.get_running_loop()  # another kind of loop is an error before anything is taken
        held = self._new()
        try:
            with _Deferred(held.abandon, held.hurry) as deferred:
                held.begin()
                await asyncio.shield(asyncio.wrap_future(held.settled))
                if not held.is_entered:
                    await held.waited(deferred)
        except BaseException:
            with _Deferred(held.hurry) as deferred:
                held.abandon()
                await held.waited(deferred)
            raise
        return held.value()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held = self._entered()
        if held.is_inherited:
            return
        with _Deferred(*held.reactions(error)) as deferred:
            held.leave(error)
            await held.waited(deferred)
        held.raise_new(error)

    def _new(self) -> "_Held[_T]":
        if self._held is not None:
            raise RuntimeError("this block was entered before: make a new one")
        self._held = _Held(self._hold)
        return self._held

    def _entered(self) -> "_Held[_T]":
        if self._held is None:
            raise RuntimeError("this block was not entered")
        if self._held.is_leaving:
            raise RuntimeError("this block was left before")
        return self._held


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Do asynchronous work in the background and wait for it; cancel it when that is interrupted."""

    @asynccontextmanager
    async def hold() -> "AsyncIterator[_T]":
        yield await work

    with Block(hold) as value:
        return value


def is_terminated() -> bool:
    """Tell whether SIGTERM has come while a block was open, so that the script ends."""
    return _termination.has_come


def _go_on() -> None:
    """React to a signal by nothing yet."""


# --- what is held --------------------------------------------------------------------------------

_BETWEEN_CANCELS = 0.05  # seconds; two at once would count as one


class _Held(Generic[_T]):
    """What one block holds: a task of the background loop, from the entry to the end."""

    def __init__(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        from concurrent.futures import Future

        self.settled: Future[None] = Future()  # it was entered or has failed to be; never fails
        self.is_entered = False
        self.is_leaving = False
        self.error: BaseException | None = None  # what it ended by
        self._values: list[_T] = []
        self._hold = hold
        self._pid = os.getpid()
        self.ended: Future[None] = Future()  # never fails
        self._home: _Home | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave: asyncio.Future[None] | None = None
        self._cancels = 0
        self._most_cancels = 2  # to leave before it is entered, and to hurry

    @property
    def is_inherited(self) -> bool:
        """Whether it is another process's, of which this one is a fork."""
        return self._pid != os.getpid()

    def begin(self) -> None:
        """Start to enter it. Raises RuntimeError where no thread can be had."""
        _termination.acquire(self)
        try:
            self._home = _homes.acquire(self)
        except BaseException:
            _termination.release(self)
            raise
        self._home.loop.call_soon_threadsafe(self._start)

    def value(self) -> _T:
        """Give what was entered; raises what went wrong."""
        if self.is_entered:
            return self._values[0]
        error = self.error or RuntimeError("what the block holds ended before it was entered")
        raise error.with_traceback(None) if isinstance(error, BlockError) else error

    def leave(self, error: BaseException | None) -> None:
        """Have the block end, for `error` or without one."""
        self.is_leaving = True
        self._most_cancels = 1

        def end() -> None:
            if self._leave is None or self._leave.done():
                return
            if error is None:
                self._leave.set_result(None)
            else:
                self._leave.set_exception(BlockFailed(error))

        self._soon(end)

    def abandon(self) -> None:
        """Have it left before it is entered; further calls do nothing."""

        def cancel() -> None:
            if not self._cancels:
                self._cancel()

        self.is_leaving = True
        self._soon(cancel)

    def hurry(self) -> None:
        """Have it end at once."""

        def cancel() -> None:
            if self._home is not None:
                self._home.loop.call_later(_BETWEEN_CANCELS * self._cancels, self._cancel)

        self._soon(cancel)

    def reactions(self, error: BaseException | None) -> tuple[Callable[[], None], ...]:
        """Give what the first signal while it is left brings about, and the second.

        Left by what ends a script, it has seen the first already.
        """
        import asyncio

        is_stop = isinstance(error, KeyboardInterrupt | SystemExit | asyncio.CancelledError)
        return (self.hurry,) if is_stop else (_go_on, self.hurry)

    def wait_entered(self) -> None:
        """Wait until it was entered, or has ended instead."""
        self.settled.result()
        if not self.is_entered:
            self.wait()

    def wait(self) -> None:
        """Wait until it has ended, however that was."""
        if self._home is not None:
            self.ended.exception()
            self._released(self._home)

    async def waited(self, deferred: "_Deferred") -> None:
        """Wait for its end in a coroutine; a cancellation counts as what a signal handler raises.

        Raises CancelledError, at the end where `deferred` has a reaction left.
        """
        import asyncio

        if self._home is None:
            return
        ended = asyncio.wrap_future(self.ended)
        first: asyncio.CancelledError | None = None
        while not self.ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError as error:
                first = first or error
                if not deferred.react():
                    raise
        self._released(self._home)
        if first is not None:
            raise first

    def raise_new(self, known: BaseException | None) -> None:
        """Raise what went wrong at the end, or add it to what the script itself raised."""
        import asyncio

        error = self.error
        if error is None or isinstance(error, BlockFailed | asyncio.CancelledError):
            return
        # One that leaves by exit(0) says that all went well, which is not so.
        if known is None or (isinstance(known, SystemExit) and known.code in (None, 0)):
            raise (error.with_traceback(None) if isinstance(error, BlockError) else error) from None
        text = str(error) if isinstance(error, BlockError) else f"{type(error).__name__}: {error}"
        # Python shows the notes of these to nobody.
        if isinstance(known, SystemExit | asyncio.CancelledError | GeneratorExit):
            tell(text)
        else:
            known.add_note(text)

    def _released(self, home: "_Home") -> None:
        if home.last is self:
            home.thread.join()
        _termination.release(self)

    def _soon(self, call: Callable[[], None]) -> None:
        if self._home is not None and not self.ended.done():
            try:
                self._home.loop.call_soon_threadsafe(call)
            except RuntimeError:  # it has just ended, and the loop was closed
                return

    def _start(self) -> None:
        self._leave = self._running_home().loop.create_future()
        self._task = self._running_home().loop.create_task(self._run())
        # Not at the end of `_run`: cancelled before its first step, it never begins.
        self._task.add_done_callback(self._finish)

    def _running_home(self) -> "_Home":
        if self._home is None:
            raise RuntimeError("this block was not begun")
        return self._home

    def _cancel(self) -> None:
        if self._task is not None and self._cancels < self._most_cancels:
            self._cancels += 1
            self._task.cancel()

    async def _run(self) -> None:
        if self._leave is None:
            raise RuntimeError("this block was not begun")
        try:
            async with self._hold() as value:
                self._values.append(value)
                self.is_entered = True
                self.settled.set_result(None)
                await self._leave
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            self.error = error

    def _finish(self, task: "asyncio.Task[None]") -> None:
        import asyncio

        if task.cancelled():
            self.error = asyncio.CancelledError()
        if not self.is_entered:
            self.settled.set_result(None)
        _homes.release(self._running_home(), self)


# --- the loop ------------------------------------------------------------------------------------


class _Home:
    """An event loop in a thread of its own, from the first entry to the last exit."""

    def __init__(self) -> None:
        import asyncio

        self.held: set[_Held[Any]] = set()
        self.loop = asyncio.new_event_loop()
        # A loop that helps is not the script's to watch, not even in development mode.
        self.loop.slow_callback_duration = 60
        # A script that cannot be ended must not be held by this: its sockets close anyway.
        self.thread = threading.Thread(target=self._serve, name="e2e_runner.kit", daemon=True)
        self.last: _Held[Any] | None = None

    def _serve(self) -> None:
        import asyncio

        # One that is delivered here would not wake the main thread, which alone runs handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _RAISING)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            self.loop.close()
            if self.last is not None:
                self.last.ended.set_result(None)


class _Homes:
    """Gives out the loop that all blocks share while any of them is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._home: _Home | None = None

    def acquire(self, held: _Held[Any]) -> _Home:
        """Give the loop to a block. Raises RuntimeError where no thread can be had."""
        with self._lock:
            if self._home is None:
                home = _Home()
                try:
                    home.thread.start()
                except BaseException:
                    home.loop.close()
                    raise
                self._home = home
            self._home.held.add(held)
            return self._home

    def release(self, home: _Home, held: _Held[Any]) -> None:
        """Take it back, in its own thread; the block has ended once that is done."""
        with self._lock:
            home.held.discard(held)
            if not home.held:
                self._home = None
                home.last = held
                home.loop.stop()
                return
        held.ended.set_result(None)

    def forget(self) -> None:
        """Begin anew in a forked process, which has the objects of the loop and not its thread."""
        home, self._home = self._home, None
        self._lock = threading.Lock()
        if home is not None:
            import ctypes

            # Collected, they would give back what is the parent's: here they must never be.
            for each in (home, *home.held):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


# --- signals -------------------------------------------------------------------------------------

_RAISING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)  # as a rule
_EXIT_TERMINATED = 143


class _Deferred:
    """Defers what signal handlers raise in the main thread to the end of the block.

    The handlers run when the signals come; what the n-th that raises is answered with is the n-th of
    `reactions`, and what raises after these is raised at once. Coroutines may wait in it, so that several
    overlap: each reacts, and the last one that began raises.
    """

    _all: ClassVar[list["_Deferred"]] = []
    _previous: ClassVar[dict[int, Any]] = {}  # signal -> its handler outside of these blocks

    def __init__(self, *reactions: Callable[[], None]) -> None:
        self._reactions = list(reversed(reactions))
        self._raised: BaseException | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._all.append(self)
        try:
            for number in _RAISING:
                handler = signal.getsignal(number)
                # What ends the process without a word is to give back first, where we can have it.
                default = number == signal.SIGTERM and handler is signal.SIG_DFL
                if handler is not _handle_deferred and (callable(handler) or default):
                    self._previous[number] = handler
                    signal.signal(number, _handle_deferred)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()
        if self._raised is not None and kind is not GeneratorExit:
            raise self._raised

    def react(self, error: BaseException | None = None) -> bool:
        """Do what comes next, and raise `error` at the end; False when there is nothing left to do."""
        if not self._reactions:
            return False
        self._reactions.pop()()
        self._raised = self._raised or error
        return True

    def _leave(self) -> None:
        if self in self._all:
            self._all.remove(self)
        if self._all or threading.current_thread() is not threading.main_thread():
            return
        for number in tuple(self._previous):
            if signal.getsignal(number) is _handle_deferred:
                signal.signal(number, _termination.wanted(number, self._previous[number]))
            del self._previous[number]  # last, for one that comes meanwhile

    @classmethod
    def handle(cls, number: int, frame: FrameType | None) -> None:
        """Run the handler that a signal has outside of these blocks, and react to what it raises."""
        handler = cls._previous.get(number, signal.SIG_DFL)
        try:
            if callable(handler):
                handler(number, frame)
            else:
                _termination.handle(number, frame)
        except BaseException as error:
            raised_later = False
            for each in reversed(cls._all):
                raised_later |= each.react(None if raised_later else error)
            if not raised_later:
                raise

    @classmethod
    def forget(cls) -> None:
        """Give the handlers back in a forked process, where none of these blocks goes on."""
        cls._all.clear()
        for number in tuple(cls._previous):
            handler = cls._previous.pop(number)
            if signal.getsignal(number) is _handle_deferred:
                signal.signal(number, handler)


def _handle_deferred(number: int, frame: FrameType | None) -> None:
    _Deferred.handle(number, frame)


class _Termination:
    """Makes SIGTERM end the script as Ctrl-C does, while the main thread has a block open."""

    def __init__(self) -> None:
        self._open: set[_Held[Any]] = set()
        self._count = 0  # of signals since the first block was entered

    def acquire(self, held: _Held[Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            if not self._open:
                self._count = 0
            self._open.add(held)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, self.handle)

    def release(self, held: _Held[Any]) -> None:
        self._open.discard(held)
        in_main = threading.current_thread() is threading.main_thread()
        if not self._open and in_main and signal.getsignal(signal.SIGTERM) == self.handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def wanted(self, number: int, handler: Any) -> Any:
        """Give the handler to restore: ours while there is a block, the default after the last."""
        if number != signal.SIGTERM or handler not in (signal.SIG_DFL, self.handle):
            return handler
        return self.handle if self._open else signal.SIG_DFL

    def handle(self, _number: int, frame: FrameType | None) -> None:
        self._count += 1
        leaving = [held for held in self._open if held.is_leaving]
        if self._count > 1 and leaving:
            for held in leaving:
                held.hurry()
            if self._count == 2:  # noqa: PLR2004 - the second is answered by that
                return
        loop = _interrupted_loop(frame)
        if loop is None:
            sys.exit(_EXIT_TERMINATED)
        loop.call_soon_threadsafe(sys.exit, _EXIT_TERMINATED)

    @property
    def has_come(self) -> bool:
        """Whether SIGTERM ends the script."""
        return self._count > 0

    def forget(self) -> None:
        """Begin anew in a forked process: what SIGTERM did before the blocks, it does again."""
        self._count = 0
        self._open.clear()
        if signal.getsignal(signal.SIGTERM) == self.handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupted_loop(frame: FrameType | None) -> "asyncio.AbstractEventLoop | None":
    """Give the event loop whose own code a signal has interrupted; None when it was other code.

    An exception there would lose what the loop was about to do; from a callback it ends it in order.
    """
    if frame is None or "asyncio" not in sys.modules:
        return None
    module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    if module not in ("asyncio", "selectors"):
        return None
    import asyncio

    return asyncio._get_running_loop()  # noqa: SLF001 - documented, for just this: it does not raise


_homes = _Homes()
_termination = _Termination()


def _forget() -> None:
    _homes.forget()
    _Deferred.forget()
    _termination.forget()


os.register_at_fork(after_in_child=_forget)
