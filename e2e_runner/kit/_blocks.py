"""Blocks that work with ``with`` and with ``async with``, and whose work goes on in the background.

What a block holds lives in an event loop in a thread of its own, so that it is looked after whatever
the script is doing, and so that synchronous and asynchronous scripts share one implementation.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:  # asyncio takes longer to import than all of the kit
    import asyncio

_T = TypeVar("_T")


class Block(Generic[_T]):
    """A block that may be entered once, by ``with`` or ``async with``.

    While it lasts, SIGTERM ends the script by SystemExit, so that what the block holds is given back;
    a script with a handler of its own keeps that.
    """

    def __init__(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        """`hold` makes what is entered and left, in one task of the background loop."""
        self._hold = hold
        self._held: _Held[_T] | None = None

    def __enter__(self) -> _T:
        held = self._begin()
        try:
            return held.entered.result()
        except BaseException:
            with _term.held_back():
                held.cancel()
                held.join()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held = self._end(error)
        with _term.held_back():
            try:
                held.join()
            except BaseException:  # it takes too long for somebody
                held.cancel()
                raise
        held.raise_new(error)

    async def __aenter__(self) -> _T:
        import asyncio

        held = self._begin()
        try:
            return await asyncio.shield(asyncio.wrap_future(held.entered))
        except BaseException:
            with _term.held_back():
                held.cancel()
                await held.joined()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held = self._end(error)
        with _term.held_back():
            try:
                await held.joined()
            except BaseException:
                held.cancel()
                raise
        held.raise_new(error)

    def _begin(self) -> "_Held[_T]":
        if self._held is not None:
            raise RuntimeError("this block was entered before: make a new one")
        _term.acquire()
        self._held = held = _Held(self._hold)
        return held

    def _end(self, error: BaseException | None) -> "_Held[_T]":
        if self._held is None:
            raise RuntimeError("this block was not entered")
        self._held.leave(error)
        return self._held


class _Held(Generic[_T]):
    """What one block holds: a task of the background loop, from the entry to the end."""

    def __init__(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        from concurrent.futures import Future

        self.entered: Future[_T] = Future()
        self._ended: Future[None] = Future()
        self._loop = _background.acquire()
        self._leave: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._loop.call_soon_threadsafe(self._start, hold)

    def _start(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        self._task = self._loop.create_task(self._run(hold))
        self._task.add_done_callback(self._tell)

    async def _run(self, hold: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        async with hold() as value:
            self.entered.set_result(value)
            await self._leave

    def _tell(self, task: "asyncio.Task[None]") -> None:
        import asyncio

        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if not self.entered.done():
            self.entered.set_exception(error or asyncio.CancelledError())
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def leave(self, error: BaseException | None) -> None:
        """Have the block end, for `error` or without one."""

        def end() -> None:
            if self._leave.done():
                return
            if error is None:
                self._leave.set_result(None)
            else:
                # StopIteration and its like cannot be set on a future; that there is one is enough.
                self._leave.set_exception(BlockFailed(repr(error)))

        self._loop.call_soon_threadsafe(end)

    def cancel(self) -> None:
        """Break off what it does."""
        self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def join(self) -> None:
        """Wait until it has ended, however that was."""
        self._ended.exception()
        self._release()

    async def joined(self) -> None:
        """Wait until it has ended, from a coroutine; one that is cancelled meanwhile still waits."""
        import asyncio

        ended = asyncio.ensure_future(asyncio.wrap_future(self._ended))
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.done():
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    raise
                cancelled = error
        await asyncio.gather(ended, return_exceptions=True)
        self._release()
        if cancelled is not None:
            raise cancelled

    def raise_new(self, known: BaseException | None) -> None:
        """Raise what went wrong at the end, unless that is what the script itself raised."""
        error = self._ended.exception()
        if error is not None and not isinstance(error, BlockFailed):
            raise error from known

    def _release(self) -> None:
        _term.release()
        _background.release()


class BlockFailed(Exception):  # noqa: N818 - what a block's holder sees, not an error of its own
    """The script raised inside the block; holders see this when they are left."""


# --- the loop ------------------------------------------------------------------------------------


class _Background:
    """The loop of all blocks; it lives from the first entry to the last exit."""

    def __init__(self) -> None:
        self._users = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> "asyncio.AbstractEventLoop":
        import asyncio

        with self._lock:
            self._users += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A script that cannot be ended must not be held by this: its sockets close anyway.
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="e2e_runner.kit", daemon=True
                )
                self._thread.start()
            return self._loop

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = self._thread = None


def _serve(loop: "asyncio.AbstractEventLoop") -> None:
    import asyncio

    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


# --- SIGTERM -------------------------------------------------------------------------------------

_EXIT_TERMINATED = 143


class _Term:
    """Makes SIGTERM end the script as Ctrl-C does, while there is a block."""

    def __init__(self) -> None:
        self._users = 0
        self._holding = 0
        self._pending = False
        self._installed = False

    def acquire(self) -> None:
        self._users += 1
        in_main = threading.current_thread() is threading.main_thread()
        if not self._installed and in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    def release(self) -> None:
        self._users -= 1
        in_main = threading.current_thread() is threading.main_thread()
        if not self._users and self._installed and in_main:
            if signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._installed = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Let what gives things back finish; the first SIGTERM counts afterwards."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self._pending and not self._holding:
            self._pending = False
            sys.exit(_EXIT_TERMINATED)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._holding and not self._pending:
            self._pending = True
        else:
            sys.exit(_EXIT_TERMINATED)


_background = _Background()
_term = _Term()


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Do asynchronous work in the background and wait for it; a block is open meanwhile."""
    import asyncio

    loop = _background.acquire()
    try:
        return asyncio.run_coroutine_threadsafe(work, loop).result()
    finally:
        _background.release()
