"""The runner's side of supervision: starts the spawner, and gives each script a `Child` to hold it by."""

import asyncio
import collections
import contextlib
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from e2e_runner.errors import SetupError
from e2e_runner.model import Containment, Exit
from e2e_runner.supervise.containment import reclaim_cgroup
from e2e_runner.supervise.launch import Spawner
from e2e_runner.supervise.wire import Message, Reader, send

_KILL_TIMEOUT = 12.0  # seconds; a little more than the keeper itself gives a kill
_WAKE_EVERY = 0.01  # seconds; a script may stop its keeper, or the spawner, again and again
_LIST_TIMEOUT = 3.0  # seconds; a table of thousands of processes takes a tenth of one


class StartError(Exception):
    """The script could not be started; the text says what failed and why."""


class SupervisionLost(Exception):  # noqa: N818 - named after what happened
    """The keeper died under its script, so nobody saw how the script ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start: the program and its surroundings. The descriptors stay the caller's."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    stdin: int
    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """How and when a script ended; `left` says whether something that it started lived on then."""

    exit: Exit
    at: float  # monotonic
    left: bool


class _Channel:
    """A socket to the spawner or a keeper, read by the event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = Reader()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    def received(self, message: Message) -> None:
        """Act on a message from the other end."""
        raise NotImplementedError

    def ended(self) -> None:
        """Act on the end of the stream."""
        raise NotImplementedError

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()

    def _readable(self) -> None:
        self._reader.fill(self.sock)
        for message in self._reader.messages():
            self.received(message)
        if self._reader.ended:
            self.close()
            self.ended()


class _Keeper(_Channel):
    """A keeper process; holds one script at a time."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.pid = 0
        self.pidfd = -1  # where there are pidfds
        self.child: Child | None = None
        self.gone = False

    def pin(self, pid: int) -> None:
        """Note which process this is."""
        self.pid = pid
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # it is dead already, which its socket will tell
                self.pidfd = os.pidfd_open(pid)

    def wake(self) -> None:
        """Continue it: a script may have stopped "its parent"."""
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGCONT)

    def close(self) -> None:
        """Hang up."""
        super().close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def received(self, message: Message) -> None:
        """Hand on what the keeper says."""
        if self.child is not None:
            self.child.received(message)

    def ended(self) -> None:
        """Give up on the script: the keeper died, or was killed by it."""
        self.gone = True
        if self.child is not None:
            self.child.lost(SupervisionLost("its keeper was killed"))


class Child:
    """One script and everything that it starts, until `release` or the end of the supervisor."""

    def __init__(
        self, keeper: _Keeper, tier: Containment, release: Callable[[_Keeper], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self._keeper = keeper
        self._tier = tier
        self._release = release
        self.exited: asyncio.Future[Exited] = loop.create_future()
        self.empty: asyncio.Future[None] = loop.create_future()  # done: nothing it started lives
        self._started: asyncio.Future[float] = loop.create_future()
        self._answers: collections.deque[asyncio.Future[object]] = collections.deque()
        self._spent = False  # the keeper had to kill, or does not answer
        self._argv0 = ""
        keeper.child = self

    @property
    def keeper(self) -> int:
        """The pid of the keeper; every process of the script descends from it."""
        return self._keeper.pid

    async def start(self, command: Command, meanwhile: Callable[[], None]) -> float:
        """Start the script; gives the monotonic time. Raises StartError or SupervisionLost.

        `meanwhile` is called while the keeper is at it, whose answer may come late: the script runs
        on its processor by then.
        """
        encoded = (
            "start",
            [os.fsencode(arg) for arg in command.argv],
            {os.fsencode(name): os.fsencode(value) for name, value in command.env.items()},
            os.fsencode(command.cwd),
        )
        self._argv0 = command.argv[0]
        self._send(encoded, (command.stdin, command.stdout, command.stderr))
        meanwhile()
        return await self._started

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until nothing that the script started lives; False after `seconds`."""
        await asyncio.wait([self.empty], timeout=seconds)
        return self.empty.done()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the script and everything that it started; nothing when all is over."""
        with contextlib.suppress(SupervisionLost):
            self._send(("signal", int(number)))

    async def kill(self) -> bool:
        """Kill the script and everything that it started; False when something withstood it."""
        self._spent = True
        try:
            left = await self._ask("kill", _KILL_TIMEOUT)
        except SupervisionLost:
            return False
        return not left

    async def pids(self) -> list[int]:
        """List what lives of the script and everything that it started, by the host's pids."""
        if self._tier is Containment.PID_NAMESPACE:
            from e2e_runner.supervise.linux import descendants

            return descendants(self.keeper)
        try:
            answer = await self._ask("list", _LIST_TIMEOUT)
        except SupervisionLost:
            return []
        return answer if isinstance(answer, list) else []

    def release(self) -> None:
        """Let go: whatever is left is killed; a keeper that nothing was left to is used again."""
        clean = self.empty.done() and self.empty.exception() is None and not self._spent
        self._keeper.child = None
        if not clean:
            self._keeper.close()
        self.lost(SupervisionLost("released"))
        self._release(self._keeper)

    def received(self, message: Message) -> None:
        """Take what the keeper says; see `keeper` for the messages."""
        match message:
            case ("started", int(), float(at)):
                self._started.set_result(at)
            case ("not-started", int(number), str(what)):
                self._started.set_exception(StartError(_start_failure(number, what, self._argv0)))
            case ("exited", int(status), float(at), float(cpu), int(max_rss), bool(left)):
                if not left:
                    self.empty.set_result(None)
                self.exited.set_result(
                    Exited(exit=_exit(status, cpu=cpu, max_rss=max_rss), at=at, left=left)
                )
            case ("empty",):
                self.empty.set_result(None)
            case ("killed" | "listed", answer):
                waiting = self._answers.popleft()
                if not waiting.done():
                    waiting.set_result(answer)
            case _:
                raise AssertionError(message)

    def lost(self, error: SupervisionLost) -> None:
        """Give up on whatever is still expected of the keeper."""
        waiting: list[asyncio.Future[Any]] = [
            self._started,
            self.exited,
            self.empty,
            *self._answers,
        ]
        for future in waiting:
            _fail(future, error)
        self._answers.clear()

    def wake(self) -> None:
        """Continue the keeper, in case that the script has stopped it; cheap."""
        self._keeper.wake()

    async def _ask(self, question: str, patience: float) -> object:
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._send((question,))
        self._answers.append(answer)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while not answer.done() and loop.time() < deadline:
            await asyncio.wait([answer], timeout=_WAKE_EVERY)
            self.wake()
        if not answer.done():
            self._spent = True
            raise SupervisionLost(f"its keeper does not answer ({question})")
        return answer.result()

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        self.wake()
        try:
            send(self._keeper.sock, message, fds)
        except OSError as error:
            raise SupervisionLost(f"its keeper is gone: {error}") from error


class Supervisor(_Channel):
    """The spawner of this run, and the keepers that wait for a script."""

    def __init__(self, spawner: Spawner, run_id: str) -> None:
        super().__init__(spawner.sock)
        self._spawner = spawner
        self._run_id = run_id
        loop = asyncio.get_running_loop()
        self._tier: asyncio.Future[tuple[str, str, list[str]]] = loop.create_future()
        self._forks: collections.deque[asyncio.Future[int]] = collections.deque()
        self._abandoned: dict[int, asyncio.Future[None]] = {}
        self._idle: list[_Keeper] = []
        self._keepers: set[_Keeper] = set()  # all that have not been hung up on
        self._coming: asyncio.Task[_Keeper] | None = None  # being forked ahead of its use
        self._count = 0
        self._gone = False
        self.cgroups: Path | None = None  # the cgroup that holds those of the scripts
        self.tier = Containment.SCAN
        self.notes: tuple[str, ...] = ()

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
    ) -> AsyncIterator[Self]:
        """Have a launched spawner set up supervision for the length of the block.

        `scratch` is removed by the spawner when the run is over, however it ends; `log` takes what
        the spawner and the keepers have to complain about. Raises SetupError when the tier `wanted`
        cannot be had, naming why.
        """
        supervisor = cls(spawner, run_id)
        with contextlib.suppress(OSError):  # its end is seen right below
            send(
                spawner.sock,
                ("setup", wanted.value if wanted else "auto", run_id, str(scratch), str(log)),
            )
        try:
            await supervisor._probed(log)
            supervisor._fork_ahead()
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
        keeper = self._idle.pop() if self._idle else await self._next_keeper()
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
        deadline = asyncio.get_running_loop().time() + _KILL_TIMEOUT
        with contextlib.suppress(OSError, SupervisionLost):
            send(self.sock, ("abandon", child.keeper))
            while not done.done() and asyncio.get_running_loop().time() < deadline:
                # An orphan of the keeper's has the spawner for a parent, and may stop that too.
                self._spawner.wake()
                await asyncio.wait([done], timeout=_WAKE_EVERY)

    def received(self, message: Message) -> None:
        """Take what the spawner says; see `spawner` for the messages."""
        match message:
            case ("tier", str(name), str(parent), list(notes)):
                self._tier.set_result((name, parent, notes))
            case ("forked", int(pid)):
                self._forks.popleft().set_result(pid)
            case ("not-forked", int(number), str(text)):
                self._forks.popleft().set_exception(OSError(number, text))
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
            _fail(future, error)
        self._forks.clear()
        self._abandoned.clear()

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

    def _take_back(self, keeper: _Keeper) -> None:
        if keeper.gone or keeper.sock.fileno() < 0:
            self._keepers.discard(keeper)
            self._fork_ahead()
        else:
            self._idle.append(keeper)

    def _fork_ahead(self) -> None:
        if self._coming is None and not self._gone:
            self._coming = asyncio.create_task(self._fork())
            self._coming.add_done_callback(_seen)

    async def _next_keeper(self) -> _Keeper:
        coming, self._coming = self._coming, None
        return await (coming or self._fork())

    async def _fork(self) -> _Keeper:
        if self._gone:
            raise SupervisionLost("the spawner process was killed")
        ours, theirs = socket.socketpair()
        self._count += 1
        cgroup = None if self.cgroups is None else str(self.cgroups / str(self._count))
        keeper = _Keeper(ours)
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks.append(forked)
        try:
            with theirs:
                send(self.sock, ("keeper", cgroup), (theirs.fileno(),))
            keeper.pin(await forked)
            self._keepers.add(keeper)
        except OSError as error:
            keeper.close()
            raise StartError(f"no process could be forked: {error.strerror or error}") from error
        except BaseException:
            keeper.close()
            raise
        return keeper

    async def _shut_down(self) -> None:
        if self._coming is not None:
            with contextlib.suppress(StartError, SupervisionLost):
                await self._coming
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


def _exit(status: int, *, cpu: float, max_rss: int) -> Exit:
    code = os.waitstatus_to_exitcode(status)
    return Exit(
        code=None if code < 0 else code,
        signal=-code if code < 0 else None,
        cpu=cpu,
        max_rss=max_rss,
    )


def _start_failure(number: int, what: str, program: str) -> str:
    reason = os.strerror(number)
    match what:
        case "cwd":
            return f"its working folder cannot be entered: {reason}"
        case "interpreter" if number == errno.E2BIG:
            return "its arguments and environment are too long for the system"
        case "interpreter":
            return f"{program} cannot be run: {reason}"
        case _:
            return what


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as seen: nobody may be waiting for it


def _seen(task: asyncio.Task[_Keeper]) -> None:
    if not task.cancelled():
        task.exception()  # whoever takes the keeper gets it again
