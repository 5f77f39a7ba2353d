"""Blocks that work with ``with`` and with ``async with``, and whose work goes on in the background.

What a block holds lives in an event loop in a thread of its own, so that it is looked after whatever
the script is doing, and so that synchronous and asynchronous scripts share one implementation.

Signals: no handler interrupts what takes or gives back. A handler that raises while a block is entered
has the entering given up, and what was taken is given back first; one that raises while a block is left
waits for that. The next one has it hurry (kill instead of stop), one more ends the waiting.

The end: what is still open when the interpreter ends is left then, in order. What went wrong and could
be raised to nobody is told, and the script ends with 120, Python's status for an end that failed.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TextIO, TypeVar, cast

from e2e_runner.kit._warnings import tell

if TYPE_CHECKING:  # asyncio takes longer to import than all of the kit
    import asyncio
    from collections.abc import AsyncIterator
    from concurrent.futures import Future, ThreadPoolExecutor

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
    is: what goes wrong at the end as well is a note to it. One that ends something without saying that
    it failed (`exit(0)`, a cancellation) is replaced by that, and does not replace a failure.

    In a forked process the block is over: it belongs to the one that entered it.
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
        if held is None:
            return
        if _is_background():
            held.leave_unattended(error)
            return
        later: BaseException | None = None
        try:
            with _Deferred(*held.reactions(error)):
                held.leave(error)
                held.wait()
        except BaseException as raised:  # noqa: BLE001 - it is weighed against the script's own
            later = raised
        held.raise_new(error, later)

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
        if held is None:
            return
        later: BaseException | None = None
        try:
            with _Deferred(*held.reactions(error)) as deferred:
                held.leave(error)
                await held.waited(deferred)
        except BaseException as raised:  # noqa: BLE001 - as above
            later = raised
        held.raise_new(error, later)

    def _new(self) -> "_Held[_T]":
        if self._held is not None:
            raise RuntimeError("this block was entered before: make a new one")
        if _is_background():
            raise RuntimeError(
                "a block was entered in a thread of the kit, as a finalizer may be run in any thread:"
                " enter it in the script's own code"
            )
        self._held = _Held(self._hold)
        return self._held

    def _entered(self) -> "_Held[_T] | None":
        """Give what is to be left; None where that is another process's, or was left at the end."""
        if self._held is None:
            raise RuntimeError("this block was not entered")
        if self._held.is_inherited or self._held.is_closed or sys.is_finalizing():
            return None
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

_TURN = 0.5  # seconds
_BETWEEN_CANCELS = 0.05  # seconds; two at once would count as one


class _Held(Generic[_T]):
    """What one block holds: a task of the background loop, from the entry to the end."""

    def __init__(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        from concurrent.futures import Future

        self.settled: Future[None] = Future()  # it was entered or has failed to be; never fails
        self.is_entered = False
        self.is_leaving = False
        self.is_closed = False  # by the end of the interpreter
        self.is_given_up = False  # somebody insisted on not waiting for its end
        self._is_attended = True  # whoever leaves it waits, and gets what went wrong
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

    def leave_unattended(self, error: BaseException | None) -> None:
        """Have the block end without anybody who waits: in a thread of the kit, which ends it."""
        self._is_attended = False
        self.leave(error)

    def close(self) -> None:
        """Have the block end with the interpreter, and wait for that."""
        self.is_closed = True
        if self.is_given_up:
            return
        if not self.is_leaving:
            self._is_attended = False
            if self.is_entered:
                self.leave(None)
            else:
                self.abandon()
        self.wait()

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
        _wait_for(self.settled)
        if not self.is_entered:
            self.wait()

    def wait(self) -> None:
        """Wait until it has ended, however that was."""
        if self._home is None:
            return
        try:
            _wait_for(self.ended)
        except BaseException:
            self.is_given_up = True
            raise
        self._released(self._home)

    async def waited(self, deferred: "_Deferred") -> None:
        """Wait for its end in a coroutine; a cancellation counts as what a signal handler raises.

        Raises CancelledError, at the end where `deferred` has a reaction left.
        """
        import asyncio

        if self._home is None:
            return
        if asyncio._get_running_loop() is None:  # noqa: SLF001 - as below; its loop was closed
            self.wait()
            return
        ended = asyncio.wrap_future(self.ended)
        first: asyncio.CancelledError | None = None
        while not self.ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError as error:
                first = first or error
                if not deferred.react():
                    self.is_given_up = True
                    raise
            except GeneratorExit:  # nobody goes on with this coroutine
                if not self.is_given_up:
                    self.wait()
                raise
        self._released(self._home)
        if first is not None:
            raise first

    def raise_new(self, error: BaseException | None, later: BaseException | None) -> None:
        """Raise what the script is to see, unless that is `error`, which left the block.

        `later` came while it was left. What went wrong at the end is raised where nothing says that
        something failed; else it is added.
        """
        import asyncio

        is_kept = later is None or (
            error is not None and _is_plain_end(later) > _is_plain_end(error)
        )
        known = error if is_kept else later
        wrong = self._wrong()
        if wrong is not None:
            # A task that SIGTERM cancels has nobody who would get it.
            stopped = _termination.has_come and isinstance(known, asyncio.CancelledError)
            if known is None or (_is_plain_end(known) and not stopped):
                is_told = isinstance(wrong, BlockError)
                raise (wrong.with_traceback(None) if is_told else wrong) from None
            # Python shows the notes of these to nobody.
            if isinstance(known, SystemExit | asyncio.CancelledError):
                tell(_text(wrong))
            else:
                known.add_note(_text(wrong))
        if known is not None and known is not error:
            try:
                raise known
            finally:
                del known, later  # its traceback has this frame

    def _wrong(self) -> BaseException | None:
        """Give what went wrong, other than that it was to end."""
        import asyncio

        return None if isinstance(self.error, BlockFailed | asyncio.CancelledError) else self.error

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
        wrong = self._wrong()
        if not self._is_attended:
            _termination.release(self)
            if wrong is not None:
                tell(_text(wrong))
                _homes.has_failed = True
        _homes.release(self._running_home(), self)


def _is_plain_end(error: BaseException) -> bool:
    """Tell whether an exception ends something without saying that anything failed."""
    import asyncio

    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return isinstance(error, asyncio.CancelledError | GeneratorExit)


def _wait_for(future: "Future[None]") -> None:
    """Wait for one that never fails.

    In turns: a signal that comes just before the thread sleeps is seen only when it wakes.
    """
    while not future.done():
        with contextlib.suppress(TimeoutError):
            future.result(_TURN)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, BlockError) else f"{type(error).__name__}: {error}"


# --- the loop ------------------------------------------------------------------------------------

_here = threading.local()
_BETWEEN_TRIES = 0.01  # seconds; to close a loop that somebody is just about to share


def _is_background() -> bool:
    """Tell whether this is a thread of the kit, which must not wait for itself.

    The garbage collector may finalize what holds a block in any thread.
    """
    return getattr(_here, "is_background", False)


def _new_executor() -> "ThreadPoolExecutor":
    """Make what runs functions in threads, also while the interpreter ends.

    The usual one refuses that before blocks are left, and its threads are no daemons.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    class Executor(ThreadPoolExecutor):
        def submit(self, call: Callable[..., _T], /, *args: Any, **more: Any) -> Future[_T]:
            future: Future[_T] = Future()

            def work() -> None:
                _here.is_background = True
                if future.set_running_or_notify_cancel():
                    try:
                        result = call(*args, **more)
                    except BaseException as error:  # noqa: BLE001 - for whoever waits
                        future.set_exception(error)
                    else:
                        future.set_result(result)

            threading.Thread(target=work, name="e2e_runner.kit work", daemon=True).start()
            return future

    return Executor()


class _Home:
    """An event loop in a thread of its own, from the first entry to the last exit."""

    def __init__(self) -> None:
        import asyncio

        try:
            executor = _new_executor()
        except RuntimeError as error:  # concurrent.futures is imported no more
            raise RuntimeError(
                "a block cannot be entered while the interpreter ends: enter it in the script itself,"
                " not in a function that atexit calls"
            ) from error
        self.held: dict[_Held[Any], None] = {}  # in the order in which they were entered
        # Never waited for: a signal handler or a finalizer of the thread that has it may wait for us.
        self.door = threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(executor)
        # A loop that helps is not the script's to watch, not even in development mode.
        self.loop.slow_callback_duration = 60
        # A script that cannot be ended must not be held by this: its sockets close anyway.
        self.thread = threading.Thread(target=self._serve, name="e2e_runner.kit", daemon=True)
        self.last: _Held[Any] | None = None
        self.mask: set[int] = set()  # of signals that the thread which starts it blocks

    def admit(self, held: _Held[Any]) -> bool:
        """Have it shared by one more block; False where it is ending, or somebody else is at the door."""
        if not self.door.acquire(blocking=False):
            return False
        try:
            self.held[held] = None
        finally:
            self.door.release()
        return True

    def end(self) -> bool:
        """Stop if no block is open; in its own thread. False when it goes on."""
        if self.held or self.loop.is_closed():
            return False
        if not self.door.acquire(blocking=False):
            self.loop.call_later(_BETWEEN_TRIES, self.end)
            return False
        if self.held:
            self.door.release()
            return False
        self.loop.stop()  # and the door stays shut
        return True

    def _serve(self) -> None:
        import asyncio

        _here.is_background = True
        # One that is delivered here would not wake the main thread, which alone runs handlers.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*self.mask, *_RAISING, *_OF_SCRIPTS})
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()
            _homes.all.pop(self, None)
            if self.last is not None:
                self.last.ended.set_result(None)


class _Homes:
    """Gives out the loop that all blocks share while any of them is open.

    Without a lock that anybody waits for: a signal handler or a finalizer may enter or leave a block
    at any point of this. At worst there is a further loop for a while.
    """

    def __init__(self) -> None:
        self.all: dict[_Home, None] = {}
        self.has_failed = False  # something that nobody waited for went wrong
        self._home: _Home | None = None

    def acquire(self, held: _Held[Any]) -> _Home:
        """Give the loop to a block. Raises RuntimeError where no thread can be had."""
        home = self._home
        if home is not None and home.admit(held):
            return home
        home = _Home()
        home.held[held] = None
        self.all[home] = None
        try:
            # A handler that enters a block must not find us in what `threading` holds a lock for.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            home.mask = masked
            try:
                home.thread.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        except BaseException:
            home.held.clear()
            if home.thread.is_alive():
                home.loop.call_soon_threadsafe(home.end)
            else:
                self.all.pop(home)
                home.loop.close()
            raise
        self._home = home
        return home

    def release(self, home: _Home, held: _Held[Any]) -> None:
        """Take it back, in its own thread; the block has ended once that is done."""
        home.held.pop(held, None)
        if home.end():
            if self._home is home:
                self._home = None
            home.last = held
        else:
            held.ended.set_result(None)

    def give_up(self) -> None:
        """Wait no more for what is being left."""
        for home in [*self.all]:
            for held in [*home.held]:
                held.is_given_up = held.is_given_up or held.is_leaving

    def close(self) -> None:
        """Leave all blocks that are open when the interpreter ends, the last one first."""

        def hurry() -> None:
            for home in [*self.all]:
                for held in [*home.held]:
                    held.hurry()

        try:
            with _Deferred(_go_on, hurry):
                for home in reversed([*self.all]):
                    for held in reversed([*home.held]):
                        held.close()
                    if home.last is not None:
                        home.thread.join()
        except (KeyboardInterrupt, SystemExit):
            self.has_failed = True  # nothing else can tell it any more
        if self.has_failed and sys.stderr is not None:
            sys.stderr = cast("TextIO", _FailingEnd(sys.stderr))

    def forget(self) -> None:
        """Begin anew in a forked process, which has the objects of the loop and not its thread."""
        homes, self.all = self.all, {}
        self._home = None
        self.has_failed = False
        if homes:
            import ctypes

            # Collected, they would give back what is the parent's: here they must never be.
            for home in homes:
                for each in (home, *home.held):
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


class _FailingEnd:
    """Standard error, the last flush of which fails, so that the script does not end with 0.

    Documented (`sys.exit`): an error of that flush makes the exit status 120. All else that is to be
    done at the end is done, which `os._exit` would prevent.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        """Flush it; raises OSError once the interpreter is ending."""
        self._stream.flush()
        if sys.is_finalizing():
            raise OSError("what a block held has failed")


# --- signals -------------------------------------------------------------------------------------

_RAISING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)  # as a rule
_OF_SCRIPTS = (signal.SIGUSR1, signal.SIGUSR2)
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
    def is_any(cls) -> bool:
        """Tell whether the main thread is entering or leaving a block."""
        return bool(cls._all)

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
                _homes.give_up()
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
        if not self._open and not _Deferred.is_any():
            # The last block was left in another thread, where no handler can be given back.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._count += 1
        leaving = [held for held in self._open if held.is_leaving]
        if self._count > 1 and leaving:
            for held in leaving:
                held.hurry()
            if self._count == 2:  # noqa: PLR2004 - the second is answered by that
                return
            _homes.give_up()
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

    What the loop calls of the standard library is its own code, too: the log, a socket that is accepted.
    An exception there would lose what the loop was about to do; from a callback it ends it in order.
    """
    if "asyncio" not in sys.modules:
        return None
    import asyncio

    is_called = False  # by what `frame` is now
    is_asyncio = False
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if module in ("asyncio", "selectors"):
            # What calls the callbacks, which are not the loop's own, has no public name.
            is_callback = frame.f_code is asyncio.Handle._run.__code__  # noqa: SLF001
            if is_called and is_callback and not is_asyncio:
                return None
            is_asyncio = True
        elif module not in sys.stdlib_module_names:
            break
        is_called = True
        frame = frame.f_back
    # We may be about to hold up the script's loop, and defer what is raised here ourselves.
    if not is_asyncio or (frame is not None and frame.f_globals is globals()):
        return None
    return asyncio._get_running_loop()  # noqa: SLF001 - documented, for just this: it does not raise


_homes = _Homes()
_termination = _Termination()


def _forget() -> None:
    _homes.forget()
    _Deferred.forget()
    _termination.forget()


os.register_at_fork(after_in_child=_forget)
atexit.register(_homes.close)
