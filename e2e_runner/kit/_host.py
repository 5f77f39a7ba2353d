"""Supervision for what the blocks of a script start: it dies with the script, however that ends."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

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
                shared.host = await _open(shared.stack)
        yield shared.host
    finally:
        shared.users -= 1
        if not shared.users:
            del _shared[loop]
            await shared.stack.aclose()


async def _open(stack: contextlib.AsyncExitStack) -> Host:
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
    return Host(supervisor=supervisor, run_dir=run_dir, null=null)
