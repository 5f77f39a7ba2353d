"""Supervision for what the blocks of a script start: it dies with the script, however that ends."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from e2e_runner import apart
from e2e_runner.model import Containment
from e2e_runner.rundir import RunDir
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What blocks share while any of them is open."""

    supervisor: Supervisor
    run_dir: RunDir
    null: int  # descriptor of /dev/null


class _Shared:
    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self.stack = contextlib.AsyncExitStack()
        self.host: Host | None = None


# By loop: the background loop ends with the last block, and this with it.
_shared: dict[asyncio.AbstractEventLoop, _Shared] = {}


@contextlib.asynccontextmanager
async def hosted() -> AsyncIterator[Host]:
    """Have supervision for the length of the block, shared with the other blocks. Raises SetupError."""
    loop = asyncio.get_running_loop()
    shared = _shared.setdefault(loop, _Shared())
    shared.users += 1
    try:
        async with shared.lock:
            if shared.host is None:
                await to_the_end(_open(shared))
        assert shared.host is not None  # noqa: S101 - or the above has raised
        yield shared.host
    finally:
        shared.users -= 1
        if not shared.users:
            del _shared[loop]
            await to_the_end(shared.stack.aclose())


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


async def _open(shared: _Shared) -> None:
    stack = shared.stack
    spawner = Spawner()
    stack.callback(spawner.close)
    state = stack.enter_context(apart.state_folder("kit"))
    # Within a run the script may be in a cgroup of its own, where another would be in its way.
    nested = "E2E_RUN" in os.environ and sys.platform == "linux"
    wanted = Containment.SCAN if nested else None
    supervisor, run_dir = await stack.enter_async_context(
        apart.supervised(spawner, state, wanted=wanted)
    )
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, null)
    shared.host = Host(supervisor=supervisor, run_dir=run_dir, null=null)


def _hang_up() -> None:
    """Close what a forked process has of it, or the helpers would live for as long as that."""
    for shared in _shared.values():
        if shared.host is not None:
            shared.host.supervisor.disinherit()
    _shared.clear()


os.register_at_fork(after_in_child=_hang_up)
