"""Supervision for what the blocks of a script start: it dies with the script, however that ends."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from e2e_runner import apart
from e2e_runner.kit._shared import Shared
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


@contextlib.asynccontextmanager
async def hosted() -> AsyncIterator[Host]:
    """Have supervision for the length of the block, shared with the other blocks. Raises SetupError."""
    async with _shared.hold() as host:
        yield host


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


_shared = Shared(_open)


def _hang_up() -> None:
    """Close what a forked process has of it, or the helpers would live for as long as that."""
    for host in _shared.disown():
        host.supervisor.disinherit()


os.register_at_fork(after_in_child=_hang_up)
