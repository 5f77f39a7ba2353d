"""What the open blocks of a process have in common."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

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
                    async with contextlib.AsyncExitStack() as stack:
                        use.opened.append(await self._open(stack))
                        use.stack = stack.pop_all()
            yield use.opened[0]
        finally:
            use.users -= 1
            if not use.users:
                del self._uses[loop]
                await use.stack.aclose()


class _Use(Generic[_T]):
    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self.stack = contextlib.AsyncExitStack()
        self.opened: list[_T] = []  # one at most
