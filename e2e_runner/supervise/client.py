"""The runner's side of supervision: the spawner, and the keepers that it forks."""

import asyncio
import collections
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from e2e_runner.errors import SetupError
from e2e_runner.model import Containment, NetworkTier
from e2e_runner.supervise.child import (
    KILL_TIMEOUT,
    WAKE_EVERY,
    Channel,
    Child,
    Command,
    Keeper,
    StartError,
    SupervisionLost,
    fail,
)
from e2e_runner.supervise.containment import reclaim_cgroup
from e2e_runner.supervise.launch import Spawner
from e2e_runner.supervise.networks import PATIENCE, Networks, raise_descriptor_limit
from e2e_runner.supervise.wire import Message, send

# Requests under way: more would fill the socket, and block this process until they are served.
_FORKS_AT_ONCE = 32
_WAKE_SPAWNER_EVERY = 1.0  # seconds; scripts may stop it, which few do


class Supervisor(Channel):
    """The spawner of this run, and the keepers that wait for a script."""

    def __init__(self, spawner: Spawner, run_id: str, patience: float) -> None:
        super().__init__(spawner.sock)
        self._spawner = spawner
        self._run_id = run_id
        loop = asyncio.get_running_loop()
        self._tier: asyncio.Future[tuple[str, str, list[str]]] = loop.create_future()
        self._forks: collections.deque[asyncio.Future[int]] = collections.deque()
        self._abandoned: dict[int, asyncio.Future[None]] = {}
        # Of keepers in the user namespace of the run (True) and outside of it (False).
        self._idle: dict[bool, list[Keeper]] = {True: [], False: []}
        self._forking = asyncio.Semaphore(_FORKS_AT_ONCE)
        self._coming: dict[bool, asyncio.Task[Keeper]] = {}  # being forked ahead of their use
        self._keepers: set[Keeper] = set()  # all that have not been hung up on
        self._count = 0
        self._gone = False
        self.cgroups: Path | None = None  # the cgroup that holds those of the scripts
        self.tier = Containment.SCAN
        self.notes: tuple[str, ...] = ()
        self.networks = Networks(patience=patience)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        spawner: Spawner,
        *,
        wanted: Containment | None,
        run_id: str,
        scratch: Path,
        log: Path,
        networks: bool = False,
        patience: float = PATIENCE,
    ) -> AsyncIterator[Self]:
        """Have a launched spawner set up supervision for the length of the block.

        With `networks`, scripts may be started in networks of their own where the system allows it;
        `patience` is for one answer of the process that makes them, in seconds.
        `scratch` is removed by the spawner when the run is over, however it ends; `log` takes what
        the spawner and the keepers have to complain about. Raises SetupError when the tier `wanted`
        cannot be had, naming why.
        """
        supervisor = cls(spawner, run_id, patience)
        supervisor._set_up(
            ("setup", wanted.value if wanted else "auto", run_id, str(scratch), str(log), networks)
        )
        try:
            await supervisor._probed(log)
            await supervisor.networks.found()
            if supervisor.networks.tier is NetworkTier.USER_NAMESPACE:
                await supervisor._try_way_in()
            else:
                supervisor._fork_ahead(joined=False)
            yield supervisor
        finally:
            await supervisor._shut_down()

    async def start(
        self, command: Command, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[Child, float]:
        """Start a script; gives its `Child` and the monotonic time of the start.

        `meanwhile` is called as soon as the script is on its way.
        Raises StartError when the program or folder cannot be used, SupervisionLost when the keeper
        or the spawner has died.
        """
        joined = command.network is not None and self.networks.tier is NetworkTier.USER_NAMESPACE
        keeper = await self._next_keeper(joined=joined)
        child = Child(keeper, self.tier, self._take_back)
        try:
            at = await child.start(command, meanwhile)
        except BaseException:
            child.release()
            raise
        return child, at

    async def abandon(self, child: Child) -> None:
        """Have the spawner kill a keeper that is dead or does not answer, and what it held."""
        if self._gone:
            return
        done = self._abandoned[child.keeper] = asyncio.get_running_loop().create_future()
        deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT
        with contextlib.suppress(OSError, SupervisionLost):
            send(self.sock, ("abandon", child.keeper))
            while not done.done() and asyncio.get_running_loop().time() < deadline:
                # An orphan of the keeper's has the spawner for a parent, and may stop that too.
                self._spawner.wake()
                await asyncio.wait([done], timeout=WAKE_EVERY)

    def remove_at_end(self, folder: Path) -> None:
        """Have the spawner remove a folder when the run is over, however it ends; call this first, then make it.

        Raises SupervisionLost.
        """
        try:
            send(self.sock, ("remove", str(folder)))
        except OSError as error:
            raise SupervisionLost("the spawner process was killed") from error

    def disinherit(self) -> None:
        """Close the sockets in a forked process, so that it does not stand in for this one."""
        for channel in (self, *self._keepers):
            channel.sock.close()
        self.networks.disinherit()

    def received(self, message: Message) -> None:
        """Take what the spawner says; see `spawner` for the messages."""
        match message:
            case ("tier", str(name), str(parent), list(notes)):
                self._tier.set_result((name, parent, notes))
            case ("forked", int(pid)):
                forked = self._forks.popleft()
                if not forked.done():  # else nobody waits any more
                    forked.set_result(pid)
            case ("not-forked", int(number), str(text)):
                fail(self._forks.popleft(), OSError(number, text))
            case ("abandoned", int(pid)):
                if pid in self._abandoned:
                    self._abandoned.pop(pid).set_result(None)
            case _:
                raise AssertionError(message)

    def ended(self) -> None:
        """Give up on all that waits for the spawner, which died."""
        self._gone = True
        error = SupervisionLost("the spawner process was killed")
        waiting: list[asyncio.Future[Any]] = [self._tier, *self._forks, *self._abandoned.values()]
        for future in waiting:
            fail(future, error)
        self._forks.clear()
        self._abandoned.clear()

    def _set_up(self, setup: Message) -> None:
        with contextlib.suppress(OSError):  # the spawner's end is seen by whoever waits for it
            raise_descriptor_limit()
            if not setup[-1]:
                send(self.sock, setup)
                return
            ours, theirs = socket.socketpair()
            self.networks.attach(ours)
            with theirs:
                send(self.sock, setup, (theirs.fileno(),))

    async def _probed(self, log: Path) -> None:
        try:
            name, parent, notes = await self._tier
        except SupervisionLost as error:
            raise SetupError(
                "The process that starts the scripts ended before it was ready.",
                facts=_last_lines(log),
                remedy=f"report this, with {log}.",
            ) from error
        if name == "none":
            raise SetupError(
                "The containment that was asked for cannot be had here.",
                facts=tuple(notes),
                remedy="use --containment auto, or make the above possible.",
            )
        self.tier = Containment(name)
        self.notes = tuple(notes)
        self.cgroups = Path(parent) if parent else None

    async def _try_way_in(self) -> None:
        """Have a keeper go into the user namespace of the run: without that there are no networks."""
        try:
            keeper = await self._fork(joined=True)
            try:
                await keeper.ready
            except BaseException:
                self._drop(keeper)
                raise
        except (StartError, SupervisionLost) as error:
            await self.networks.give_up(f"user namespace: nothing can be started there: {error}")
            self._fork_ahead(joined=False)
        else:
            self._idle[True].append(keeper)

    def _take_back(self, keeper: Keeper) -> None:
        if keeper.gone or keeper.sock.fileno() < 0:
            self._keepers.discard(keeper)
            self._fork_ahead(joined=keeper.joined)
        else:
            self._idle[keeper.joined].append(keeper)

    def _fork_ahead(self, *, joined: bool) -> None:
        if joined not in self._coming and not self._gone:
            self._coming[joined] = asyncio.create_task(self._fork(joined=joined))
            self._coming[joined].add_done_callback(_seen)

    async def _next_keeper(self, *, joined: bool) -> Keeper:
        idle = self._idle[joined]
        while idle:
            keeper = idle.pop()
            if not keeper.gone:
                return keeper
            self._keepers.discard(keeper)
        coming = self._coming.pop(joined, None)
        if coming is None:
            coming = asyncio.create_task(self._fork(joined=joined))
        try:
            return await coming
        except asyncio.CancelledError:
            coming.add_done_callback(self._put_by)  # it may have come at the same moment
            raise

    def _put_by(self, coming: asyncio.Task[Keeper]) -> None:
        if not coming.cancelled() and coming.exception() is None:
            self._take_back(coming.result())

    async def _fork(self, *, joined: bool) -> Keeper:
        async with self._forking:
            return await self._fork_now(joined=joined)

    async def _fork_now(self, *, joined: bool) -> Keeper:
        if self._gone:
            raise SupervisionLost("the spawner process was killed")
        ours, theirs = socket.socketpair()
        self._count += 1
        cgroup = None if self.cgroups is None else str(self.cgroups / str(self._count))
        keeper = Keeper(ours, joined=joined)
        self._keepers.add(keeper)
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks.append(forked)
        try:
            with theirs:
                namespace = self.networks.user_namespace if joined else ()
                send(self.sock, ("keeper", cgroup, joined), (theirs.fileno(), *namespace))
            while not (await asyncio.wait([forked], timeout=_WAKE_SPAWNER_EVERY))[0]:
                self._spawner.wake()
            keeper.pin(forked.result())
        except OSError as error:
            self._drop(keeper)
            raise StartError(f"no process could be forked: {error.strerror or error}") from error
        except BaseException:
            self._drop(keeper)
            raise
        return keeper

    def _drop(self, keeper: Keeper) -> None:
        keeper.close()
        self._keepers.discard(keeper)

    async def _shut_down(self) -> None:
        for coming in list(self._coming.values()):
            with contextlib.suppress(StartError, SupervisionLost):
                await coming
        await self.networks.close()
        for keeper in self._keepers:
            keeper.close()
        self.close()
        if self._gone and self.cgroups is not None:
            # The spawner was killed, and what it would have removed is left to us.
            await asyncio.to_thread(reclaim_cgroup, self.cgroups, self._run_id)


def _last_lines(log: Path) -> tuple[str, ...]:
    if not log.exists():
        return ()
    return tuple(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])


def _seen(task: asyncio.Task[Keeper]) -> None:
    if not task.cancelled():
        task.exception()  # whoever takes the keeper gets it again
