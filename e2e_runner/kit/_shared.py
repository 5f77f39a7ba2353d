"""What the open blocks of a process have in common."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Something that is opened for the first block that holds it, and closed after the last."""

    def __init__(self, open_: Callable[[contextlib.AsyncExitStack], Awaitable[_T]]) -> None:
        """`open_` puts on the stack what is to be undone at the end."""
        self._open = open_
        # By loop: that of the blocks ends with the last of them, and this with it.
        self._uses: dict[asyncio.AbstractEventLoop, _Use[_T]] = {}

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[_T]:
        """Have it for the length of the block. Raises what the opening raises."""
        loop = asyncio.get_running_loop()
        use = self._uses.setdefault(loop, _Use())
        use.users += 1
        try:
            async with use.lock:
                if not use.opened:
                    await to_the_end(self._open_for(use))
            yield use.opened[0]
        finally:
            use.users -= 1
            if not use.users:
                del self._uses[loop]
                await to_the_end(use.stack.aclose())

    async def _open_for(self, use: "_Use[_T]") -> None:
        async with contextlib.AsyncExitStack() as stack:
            use.opened.append(await self._open(stack))
            use.stack = stack.pop_all()

    def disown(self) -> list[_T]:
        """Forget what is open, as a forked process does whose parent holds it; gives it."""
        uses = [*self._uses.values()]
        self._uses.clear()
        return [each for use in uses for each in use.opened]


class _Use(Generic[_T]):
    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self.stack = contextlib.AsyncExitStack()
        self.opened: list[_T] = []  # one at most


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do what must not be broken off; a cancellation counts afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
