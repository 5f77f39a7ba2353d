"""One server in the foreground, fresh or kept, until a signal ends it.

It lives as the servers of runs do, and dies with this process as they do.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from e2e_runner import apart, kept_cluster
from e2e_runner.embedded import NAME_A_SERVER, CannotStart, EmbeddedServer, EmbeddedServers
from e2e_runner.errors import SetupError
from e2e_runner.kept_cluster import Kept
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.cluster import tail
from e2e_runner.postgres.connection import Unreachable
from e2e_runner.postgres.private import databases_beyond
from e2e_runner.stop import Stop
from e2e_runner.supervise.launch import Spawner

_EVERYWHERE = ("postgres", "template0", "template1")
_OF_TEMPLATES = "e2e_template_"  # the beginning of the names of what databases are copies of


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server that answers."""

    address: ServerAddress  # of its superuser, with the password
    version: str  # "18.6"
    where: str  # "from PATH"
    databases: tuple[str, ...]  # but for those that every server has
    problem: str  # why those are not known; empty where they are


async def serve(
    spawner: Spawner,
    kept: Kept | None,
    *,
    port: int | None,
    environ: Mapping[str, str],
    tell: Callable[[Serving], None],
) -> signal.Signals | None:
    """Serve what was kept, or a fresh cluster, until SIGINT, SIGTERM or SIGHUP; then shut down.

    `port` is where it listens, None for any that is free; `tell` is called once it answers. A second signal
    ends it at once. Gives the signal that came before the server answered, None when that
    was later. Raises SetupError when it cannot be had, and when it ends by itself.
    """
    stop = Stop()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals(stop))
        if kept is not None:
            stack.enter_context(kept_cluster.hold(kept))
        state = stack.enter_context(apart.state_folder("postgres"))
        try:
            async with (
                apart.supervised(spawner, state) as (supervisor, run_dir),
                EmbeddedServers.open(supervisor, run_dir, environ=environ) as servers,
            ):
                server = await _started(servers, kept, port, stop)
                if server is None:
                    return stop.signal
                tell(await _describe(servers, server))
                await _ended(server, stop)
        except CannotStart as error:
            raise SetupError(
                f"PostgreSQL cannot be served: {error.reason}",
                # What lies in the folder of this call goes with it.
                facts=tuple(fact for fact in error.facts if str(state) not in fact),
                remedy=" ".join(each for each in error.advice if each != NAME_A_SERVER),
            ) from error
    return None


async def _started(
    servers: EmbeddedServers, kept: Kept | None, port: int | None, stop: Stop
) -> EmbeddedServer | None:
    """Start the server; None when it is asked to stop before it answers. Raises CannotStart."""
    starting = asyncio.create_task(
        servers.start(port=port) if kept is None else servers.serve(kept, port=port)
    )
    either: tuple[asyncio.Future[EmbeddedServer] | asyncio.Future[None], ...]
    either = (starting, stop.asked)
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return starting.result() if starting.done() else None
    finally:
        if starting.cancel():
            await asyncio.wait([starting])


async def _describe(servers: EmbeddedServers, server: EmbeddedServer) -> Serving:
    names: Sequence[str] = ()
    problem = ""
    try:
        names = list(await databases_beyond(server.admin, frozenset()))
    except Unreachable as error:
        problem = str(error)
    return Serving(
        address=server.address,
        version=servers.version,
        where=servers.where,
        databases=tuple(
            name for name in names if name not in _EVERYWHERE and not name.startswith(_OF_TEMPLATES)
        ),
        problem=problem,
    )


async def _ended(server: EmbeddedServer, stop: Stop) -> None:
    """Wait for the end of a server, and bring it about when that is asked for. Raises SetupError."""
    ending = asyncio.create_task(server.wait_ended())
    either: tuple[asyncio.Future[int | None] | asyncio.Future[None], ...] = (ending, stop.asked)
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if stop.signal is None:
        code = ending.result()
        if code == 0:  # somebody has shut it down
            return
        how = "it was killed" if code is None else f"exit code {code}"
        raise SetupError(
            f"The server ended by itself: {how}", facts=tuple(tail(server.last_words()))
        )
    stopping = asyncio.create_task(server.stop())
    await asyncio.wait([stopping, stop.now], return_when=asyncio.FIRST_COMPLETED)
    tasks = (stopping, ending)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    handled = [signal.SIGINT, signal.SIGTERM]
    # nohup ignores it so that the server outlives its terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    for number in handled:
        loop.add_signal_handler(number, stop.request, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
