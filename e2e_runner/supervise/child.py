"""One script under supervision, as the runner holds it: a `Child`, and the channel to its keeper."""

import asyncio
import collections
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e_runner.model import Containment, Exit
from e2e_runner.supervise.wire import Message, Reader, send

if TYPE_CHECKING:
    from e2e_runner.supervise.networks import Network

KILL_TIMEOUT = 12.0  # seconds; a little more than the keeper itself gives a kill
WAKE_EVERY = 0.01  # seconds; a script may stop its keeper, or the spawner, again and again
_LIST_TIMEOUT = 3.0  # seconds; a table of thousands of processes takes a tenth of one


class StartError(Exception):
    """The script could not be started; the text says what failed and why."""


class NetworkError(StartError):
    """It could not be started in its network, or not with the names of its services there."""


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
    network: "Network | None" = None  # that it is started in; None: the one of the host


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """How and when a script ended; `left` says whether something that it started lived on then."""

    exit: Exit
    at: float  # monotonic
    left: bool


class Channel:
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
        """Hang up; harmless when it is done."""
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


class Keeper(Channel):
    """A keeper process; holds one script at a time."""

    def __init__(self, sock: socket.socket, *, joined: bool) -> None:
        super().__init__(sock)
        self.joined = joined  # it is in the user namespace of the run, and so are its scripts
        self.pid = 0
        self.pidfd = -1  # where there are pidfds
        # Done: it has set itself up. Fails with StartError or SupervisionLost.
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.child: Child | None = None
        self.unfit = ""  # why it could not set itself up, in words
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
        match message:
            case ("ready",):
                self.ready.set_result(None)
            case _ if self.child is not None:
                self.child.received(message)
            case ("not-started", int(), str(what)):  # before there was anything to start
                self.unfit = what
                fail(self.ready, StartError(what))

    def ended(self) -> None:
        """Give up on the script: the keeper died, or was killed by it."""
        self.gone = True
        error = SupervisionLost("its keeper was killed")
        fail(self.ready, error)
        if self.child is not None:
            self.child.lost(error)


class Child:
    """One script and everything that it starts, until `release` or the end of the supervisor."""

    def __init__(
        self, keeper: Keeper, tier: Containment, release: Callable[[Keeper], None]
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
        if self._keeper.unfit:
            raise StartError(self._keeper.unfit)
        network = command.network
        hosts = None if network is None else network.hosts_file
        encoded = (
            "start",
            [os.fsencode(arg) for arg in command.argv],
            {os.fsencode(name): os.fsencode(value) for name, value in command.env.items()},
            os.fsencode(command.cwd),
            network is not None,
            None if hosts is None else os.fsencode(hosts),
        )
        self._argv0 = command.argv[0]
        streams = (command.stdin, command.stdout, command.stderr)
        self._send(encoded, streams if network is None else (*streams, network.fileno()))
        meanwhile()
        return await self._started

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until nothing that the script started lives; False after `seconds`."""
        await asyncio.wait([self.empty], timeout=seconds)
        return self.empty.done()

    def signal_alone(self, number: signal.Signals) -> None:
        """Send a signal to the script and nothing that it started; nothing when it has ended."""
        with contextlib.suppress(SupervisionLost):
            self._send(("signal-alone", int(number)))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the script and everything that it started; nothing when all is over."""
        with contextlib.suppress(SupervisionLost):
            self._send(("signal", int(number)))

    async def kill(self) -> bool:
        """Kill the script and everything that it started; False when something withstood it."""
        self._spent = True
        try:
            left = await self._ask("kill", KILL_TIMEOUT)
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
                if not self._started.done():  # whoever waits for it was cancelled a moment ago
                    self._started.set_result(at)
            case ("not-started", int(number), str(what)):
                kind = NetworkError if what in {"network", "hosts"} else StartError
                fail(self._started, kind(_start_failure(number, what, self._argv0)))
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
            fail(future, error)
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
            await asyncio.wait([answer], timeout=WAKE_EVERY)
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


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Have a future fail, unless it is done."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as seen: nobody may be waiting for it


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
        case "network":
            return f"its network cannot be entered: {reason}"
        case "hosts":
            return f"the names of its services cannot be put into its /etc/hosts: {reason}"
        case "interpreter":
            return f"{program} cannot be run: {reason}"
        case _:
            return what
