"""One started script: its process and what it writes to, held for the length of a block."""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2e_runner import ports
from e2e_runner.databases import Databases
from e2e_runner.handover import COMPANIONS
from e2e_runner.model import Example, RunInfo, RunSettings
from e2e_runner.records import VARIABLE, Record
from e2e_runner.stop import Stop
from e2e_runner.supervise.child import Child, Command, Exited, StartError, SupervisionLost
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.networks import Network
from e2e_runner.workspace import LOG_SUFFIX, Workspace, Workspaces

_MOST_READS = 16  # of a megabyte each between two looks; a faster flood loses its middle
_TICK = 0.1  # seconds between looks at a log that may outgrow its limit
_FIRST_TICK = 0.02  # most scripts that flood do so at once
_SHELLS = {"ash", "bash", "dash", "ksh", "sh", "zsh"}
_FIRST_LOOK = 0.1  # seconds until the listening ports are looked at; then at doubling intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the scripts of one run share."""

    run: RunSettings
    info: RunInfo
    workspaces: Workspaces
    supervisor: Supervisor
    databases: Databases
    environ: Mapping[str, str]  # the caller's, without what leads to the application's databases
    null: int  # descriptor of /dev/null
    stop: Stop
    clock: Callable[[], float]  # monotonic seconds
    told: set[str] = field(default_factory=set)  # warnings that are given once


def child_environment(
    environ: Mapping[str, str],
    example: Example,
    info: RunInfo,
    workspace: Workspace,
    given: Mapping[str, str],
) -> dict[str, str]:
    """Compose the environment of a script; `given` tells of what it has, its settings win."""
    env = dict(environ)
    env.setdefault("PYTHONUNBUFFERED", "1")
    env.setdefault("MPLBACKEND", "Agg")
    env["TMPDIR"] = str(workspace.scratch)
    # A run in a script of another run is none of that one's story.
    env.pop(VARIABLE, None)
    env.pop(COMPANIONS, None)
    if workspace.records is not None:
        env[VARIABLE] = str(workspace.records.file)
    env["E2E_RUN"] = "1"
    env["E2E_RUN_ID"] = info.id
    env["E2E_RUN_EXAMPLE"] = example.path
    # With the id, this proves to a later run of the same project that a leftover is its own.
    env["E2E_RUN_PROJECT"] = str(info.root)
    env.update(given)
    env.update(example.settings.env)
    return env


class Script:
    """A script that was started. Times are on the monotonic clock of the surroundings."""

    def __init__(
        self,
        example: Example,
        around: Surroundings,
        child: Child,
        workspace: Workspace,
        *,
        network: Network | None,
        on_records: Callable[[Sequence[Record]], None],
        at: float,
    ) -> None:
        self.example = example
        self.started_at = at
        self.child = child
        self.log_files = [log.file for log in workspace.logs]
        self.records = workspace.records
        self.listening: dict[int, float] = {}  # port -> since when, as of the last look
        self.listened: set[int] = (
            set()
        )  # ports seen at any look, those of its network if it has one
        self.log_trouble = ""
        self._around = around
        self._logs = workspace.logs
        self._network = network
        self._inside: socket.socket | None = None  # by which the listeners of its network are told
        self._on_records = on_records
        self._next_look = at + _FIRST_LOOK

    @property
    def dropped(self) -> int:
        """Bytes dropped from the middle of the logs."""
        return sum(log.dropped for log in self._logs)

    @property
    def exited(self) -> Exited | None:
        """How it ended; None while it runs, or when nobody saw it."""
        future = self.child.exited
        return future.result() if future.done() and future.exception() is None else None

    def new_text(self) -> str:
        """Read what it has written since the last call, a bounded piece at a time."""
        return "".join(log.new_text() for log in self._logs)

    async def wait(
        self,
        *others: asyncio.Future[None],
        deadline: float,
        on_output: Callable[[str], None] | None = None,
    ) -> bool:
        """Wait until it ends, or one of `others` is done, or `deadline`; True when it has ended.

        Meanwhile the logs are kept within bounds, `on_output` is told what is written, its records are
        handed on, and the ports that it listens on are noted.
        """
        exited = self.child.exited
        waited: list[asyncio.Future[Any]] = [exited, *others]
        tick = _FIRST_TICK
        while not exited.done():
            left = deadline - self._around.clock()
            done, _ = await asyncio.wait(
                waited,
                timeout=max(0.0, min(tick, left)),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done or left <= 0:
                break
            tick = _TICK
            self.child.wake()
            # Read first: what is dropped to keep the log within bounds is shown all the same.
            for _ in range(_MOST_READS):
                if on_output is None or not (text := self.new_text()):
                    break
                on_output(text)
            self._bound_logs()
            self._read_records()
            if self._around.clock() >= self._next_look:
                await self._look()
        return exited.done()

    def _read_records(self) -> None:
        if self.records is not None and (found := self.records.new()):
            self._on_records(found)

    async def read_records(self) -> None:
        """Hand on all the records that it has written by now."""
        self._read_records()
        while self.records is not None and self.records.more:
            await asyncio.sleep(0)  # between two pieces others have their turn
            self._read_records()

    async def look_at_ports(self) -> set[int]:
        """Note the TCP ports that the script and its processes listen on now.

        Gives those that the script itself serves, and not a server that it has beside what else it
        does: its own process listens, or it is a shell and all that it runs does.
        """
        now = self._around.clock()
        self._next_look = now + (now - self.started_at)
        pids = await self.child.pids()  # parents before their children
        seen = ports.listening_ports_of(pids, await self._way_inside())
        listening = {port for found in seen.values() for port in found}
        self._saw(listening, now)
        if pids and pids[1:] == [pid for pid in pids[1:] if pid in seen] and _is_shell(pids[0]):
            return listening
        return set(seen.get(pids[0], ())) if pids else set()

    async def _look(self) -> None:
        """Note the ports in the cheapest way: in a network of its own, each time, all that there are."""
        inside = await self._way_inside()
        if inside is None:
            await self.look_at_ports()
            return
        self._saw({each.port for each in ports.listening(inside)}, self._around.clock())

    def _saw(self, listening: set[int], now: float) -> None:
        self.listening = {port: self.listening.get(port, now) for port in sorted(listening)}
        self.listened |= listening

    async def _way_inside(self) -> socket.socket | None:
        if self._network is not None and self._inside is None:
            with contextlib.suppress(OSError, SupervisionLost):
                self._inside = await self._network.diagnosis()
        return self._inside

    def let_go(self) -> None:
        """Give back what it was watched by."""
        if self._inside is not None:
            self._inside.close()

    async def end(
        self,
        *signals: signal.Signals,
        grace: float,
        on_kill: Callable[[], None] = lambda: None,
    ) -> bool:
        """End the script and everything that it started; True when that took SIGKILL.

        The signals go to the whole tree, one after the other, on one shared deadline of `grace`
        seconds; then `on_kill` is told and everything that is left is killed. A second request to
        stop kills at once.
        """
        now = self._around.clock()
        for number, part in enumerate(signals, start=1):
            self.child.signal(part)
            deadline = now + grace * number / len(signals)
            while not self.child.empty.done():
                left = deadline - self._around.clock()
                if left <= 0 or self._around.stop.now.done():
                    break
                await asyncio.wait(
                    (self.child.empty, self._around.stop.now),
                    timeout=min(_TICK, left),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                self._bound_logs()
                self._read_records()
        if self.child.empty.done():
            return False
        on_kill()
        await self.kill()
        return True

    async def kill(self) -> bool:
        """Kill the script and everything that it started; False when something withstood it.

        A keeper that does not do it is killed itself, and the spawner sees to the rest.
        """
        done = await self.child.kill()
        if not done:
            await self._around.supervisor.abandon(self.child)
        return done

    def close_logs(self) -> None:
        """Complete the log files, so that they can be read."""
        for log in self._logs:
            try:
                log.close()
            except OSError as error:
                self.log_trouble = f"{log.file}: {error.strerror}"

    def _bound_logs(self) -> None:
        for log in self._logs:
            try:
                log.bound()
            except OSError as error:
                self.log_trouble = f"{log.file}: {error.strerror}"


@contextlib.asynccontextmanager
async def started(
    example: Example,
    around: Surroundings,
    *,
    given: Mapping[str, str],
    network: Network | None = None,
    suffix: str = LOG_SUFFIX,
    on_records: Callable[[Sequence[Record]], None] = lambda _: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> AsyncIterator[Script]:
    """Start a script, and see to it that nothing of it is left after the block but its logs.

    `given` are the variables that tell it of its databases; `network` is the one that it is started in,
    the machine's where it is None; `suffix` completes the name of its log (see `Workspaces.take`);
    `on_records` is told what it tells of itself; `meanwhile` is called as soon as it is on its way. Raises StartError, SupervisionLost, and OSError when a log or the temporary folder
    cannot be made.
    """
    settings = example.settings
    workspace = around.workspaces.take(example.path, suffix)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(around.workspaces.give_back, workspace)
        stdin = around.null
        if settings.stdin is not None:
            source = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
            source.write(settings.stdin.encode("utf-8", "surrogateescape"))
            source.seek(0)
            stdin = source.fileno()
        child, at = await around.supervisor.start(
            Command(
                argv=example.argv,
                env=child_environment(around.environ, example, around.info, workspace, given),
                cwd=settings.cwd,
                stdin=stdin,
                stdout=workspace.logs[0].fd,
                stderr=workspace.logs[-1].fd,
                network=network,
            ),
            meanwhile,
        )
        stack.callback(child.release)
        script = Script(
            example, around, child, workspace, network=network, on_records=on_records, at=at
        )
        stack.callback(script.let_go)
        yield script
        script.close_logs()


def start_failure(error: StartError | SupervisionLost | OSError) -> str:
    """Say why a script could not be started."""
    if isinstance(error, OSError):
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        return f"its log or temporary folder cannot be made: {error.strerror}{where}"
    return str(error)


def _is_shell(pid: int) -> bool:
    info = ports.process_info(pid)
    words = info.command.split() if info is not None else []
    return bool(words) and words[0].rpartition("/")[2].removeprefix("-") in _SHELLS
