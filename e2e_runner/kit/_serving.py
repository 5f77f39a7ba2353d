"""A server for the length of a block: started, waited for, watched and stopped."""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from e2e_runner import logs, ports
from e2e_runner.answering import stranger
from e2e_runner.kit._blocks import BlockFailed
from e2e_runner.kit._exchange import masked_variable
from e2e_runner.kit._host import Host, hosted
from e2e_runner.kit._shared import to_the_end
from e2e_runner.kit._warnings import tell
from e2e_runner.kit.servers import Server, ServerNotReady, reachable
from e2e_runner.model import HttpProbe, LogProbe, Probe, TcpProbe
from e2e_runner.parsers import parse_probe
from e2e_runner.ports.free_port import free_port
from e2e_runner.probes import NotReady, address_of, is_this_machine, wait_ready
from e2e_runner.supervise.child import Child, Command, StartError, SupervisionLost
from e2e_runner.text import duration, limit, one_line, shorten, strip_ansi
from e2e_runner.verdict import signal_name

_MOST_PORTS = 5  # to try, where any will do
_LARGEST_LOG = 64 << 20  # bytes on the disk
_SHOWN_LOG = 1 << 20  # bytes that `Server.log` gives
_BOUND_EVERY = 0.25  # seconds
_LINGER = 0.5  # seconds for what a server started to follow it
_TAIL = 30  # lines of a log that errors show
_TAIL_IN_A_RUN = 12  # with what stands above them, no more than a report shows of an output
_WIDTH = 500  # characters of such a line
_NO_MODULE = re.compile(r"No module named '?(?P<module>[\w.]+)'?")
_NO_APP = re.compile(r"Could not import module \"(?P<module>[^\"]*)\"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to start, and when it counts as ready. `{port}` in it stands for the port."""

    argv: tuple[str, ...]
    port: int | None  # 0: any that is free; None: as `ready` says
    host: str
    ready: str | Probe | None  # None: it listens
    timeout: float  # seconds until it is ready
    grace: float  # seconds for stopping
    env: Mapping[str, str]  # further variables
    cwd: Path
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)  # that stop it, one after the other

    def at(self, port: int | None) -> "Order":
        """Give the order for a port."""
        if port is None:
            return self

        def put(text: str) -> str:
            return text.replace("{port}", str(port))

        return replace(
            self,
            argv=tuple(map(put, self.argv)),
            port=port,
            ready=put(self.ready) if isinstance(self.ready, str) else self.ready,
            env={name: put(value) for name, value in self.env.items()},
        )

    @property
    def probe(self) -> Probe:
        """What says that it is ready. Raises ValueError."""
        if self.ready is None:
            if self.port is None:
                raise ValueError("neither `port` nor `ready` says when the server is ready")
            return TcpProbe(host=reachable(self.host), port=self.port)
        if not isinstance(self.ready, str):
            return self.ready
        if self.ready.startswith("/"):
            if self.port is None:
                raise ValueError(f"ready={self.ready!r} needs `port`, or write the whole URL")
            return HttpProbe(url=f"http://{authority(reachable(self.host), self.port)}{self.ready}")
        probe: Probe = parse_probe(self.ready)
        return probe

    def by_hand(self) -> str:
        """Give the shell command that starts it, without the secrets that it is told."""
        words = [
            f"{name}={shlex.quote(masked_variable(name, value))}"
            for name, value in self.env.items()
        ]
        words.append(shlex.join(self.argv))
        return one_line(f"(cd {shlex.quote(str(self.cwd))} && {' '.join(words)})")


def authority(host: str, port: int) -> str:
    """Give host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def scheme_of(probe: Probe) -> str:
    """Give the scheme of the URLs of what a probe asks."""
    return "https" if isinstance(probe, HttpProbe) and probe.url.startswith("https:") else "http"


class Output:
    """What a server has written: in its log, and kept when that is gone."""

    def __init__(self, file: Path) -> None:
        """Open the log; raises OSError."""
        self.log = logs.Log(file, _LARGEST_LOG)
        self._kept: str | None = None

    def text(self) -> str:
        """Read the end of it, a mebibyte at most."""
        return self._read() if self._kept is None else self._kept

    def close(self) -> None:
        """Keep the end of it in memory; the file may go."""
        with contextlib.suppress(OSError):
            self.log.close()
        self._kept = self._read()

    def _read(self) -> str:
        return logs.tail([self.log.file], _SHOWN_LOG)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """A server that was started."""

    order: Order
    child: Child
    started: float  # monotonic
    output: Output
    haste: asyncio.Event  # set: it is to be killed, not stopped
    listening: set[int]  # ports that it was seen to listen on when it was ready


@contextlib.asynccontextmanager
async def running(order: Order) -> AsyncIterator[Server]:
    """Have a server run for the length of the block. Raises ServerNotReady, at its end too."""
    failed = ""
    async with hosted() as host, contextlib.AsyncExitStack() as stack:
        # What it has to say of a failure it may write as late as when it is stopped.
        stack.callback(lambda: tell(f"{failed}\n{_last_lines(process.output)}") if failed else None)
        process, server = await _ready_server(order, host, stack)
        try:
            yield server
        except BlockFailed as failure:
            if not _is_fine(failure.error):
                kind = type(failure.error).__name__
                failed = f"the block of the server{_where(server)} was left by {kind}"
            how = await _ended_by_itself(process, server.pid)
            if how is not None and not _was_told_to_end(process.child):
                raise ServerNotReady(f"meanwhile {_end_words(server, how)}") from None
            raise
        if (how := await _ended_by_itself(process, server.pid)) is not None:
            raise ServerNotReady(f"{_end_words(server, how)}\n{_facts(process)}")


async def _ready_server(
    order: Order, host: Host, stack: contextlib.AsyncExitStack
) -> tuple[_Process, Server]:
    """Start a server and wait until it is ready; `stack` sees to its end. Raises ServerNotReady."""
    if order.port != 0:
        return await _start(order.at(order.port), host, stack)
    tried: set[int] = set()
    while True:
        port = free_port(tried)
        if port is None:
            raise ServerNotReady("no free port was found for the server: name one by port=")
        tried.add(port)
        try:
            return await _start(order.at(port), host, stack)
        except ServerNotReady:
            # Whoever was given the port in between has it still.
            if len(tried) >= _MOST_PORTS or port not in ports.taken([port]):
                raise


async def _start(
    order: Order, host: Host, stack: contextlib.AsyncExitStack
) -> tuple[_Process, Server]:
    probe = order.probe
    name, port = address_of(probe) or (order.host, order.port or 0)
    needed = {each for each in (order.port, port if is_this_machine(name) else 0) if each}
    _require_free(needed, order)
    async with contextlib.AsyncExitStack() as own:
        output = _new_output(host)
        own.callback(output.close)
        process = await _spawn(order, host, output, own)
        pids = await process.child.pids()  # parents before their children
        bounding = asyncio.create_task(_bound(process))
        own.push_async_callback(_finish, bounding)
        await _wait(process, probe, needed)
        process.listening.update(await _listening(process.child))
        if not port and len(process.listening) == 1:
            (port,) = process.listening
        stack.push_async_exit(own.pop_all())
    server = Server(
        host=reachable(name),
        port=port,
        pid=pids[0] if pids else None,
        log_file=output.log.file,
        _scheme=scheme_of(probe),
        _read_log=output.text,
    )
    return process, server


def _require_free(needed: set[int], order: Order) -> None:
    for owners in ports.taken(needed).values():
        owner = owners[0]
        raise ServerNotReady(
            f"{ports.describe(owner, time.time())}, so the server was not started\n"
            f"  to be started: {order.by_hand()}\n"
            f"To fix this: {ports.advice(owner, policy=None)}"
        )


def _new_output(host: Host) -> Output:
    number = 1
    while (file := host.run_dir.own_file(f"server-{number}.log")).exists():
        number += 1
    try:
        return Output(file)
    except OSError as error:
        raise ServerNotReady(f"the log of the server cannot be made: {error}") from None


async def _spawn(
    order: Order, host: Host, output: Output, stack: contextlib.AsyncExitStack
) -> _Process:
    """Start the process; `stack` stops it. Raises ServerNotReady."""
    env = {"PYTHONUNBUFFERED": "1", **os.environ, **order.env}
    started: list[_Process] = []

    async def start() -> None:
        command = Command(
            argv=order.argv,
            env=env,
            cwd=order.cwd,
            stdin=host.null,
            stdout=output.log.fd,
            stderr=output.log.fd,
        )
        child, at = await host.supervisor.start(command)
        process = _Process(
            order=order,
            child=child,
            started=at,
            output=output,
            haste=asyncio.Event(),
            listening=set(),
        )
        started.append(process)
        stack.push_async_callback(_stop, process, host)

    try:
        # Broken off in the middle, it would leave a process that nobody holds.
        await to_the_end(start())
    except (StartError, SupervisionLost) as error:
        raise ServerNotReady(
            f"the server could not be started: {error}\n  command: {order.by_hand()}"
        ) from None
    return started[0]


async def _wait(process: _Process, probe: Probe, needed: set[int]) -> None:
    """Wait until the server is ready, and it is this one that answers. Raises ServerNotReady."""
    try:
        answer = await wait_ready(
            probe,
            timeout=process.order.timeout,
            log=process.output.log.file,
            ended=process.child.exited,
            stranger=None
            if isinstance(probe, LogProbe)
            else partial(stranger, needed, process.child),
        )
    except asyncio.CancelledError:
        tell(f"the server was not ready when the script was ended\n{_facts(process)}")
        raise
    if isinstance(answer, NotReady):
        raise _not_ready(process, answer.missing)


async def _listening(child: Child) -> set[int]:
    """Give the ports that a server listens on, as far as the system shows them."""
    found = ports.listening_ports_of(await child.pids())
    return {port for each in found.values() for port in each}


async def _bound(process: _Process) -> None:
    """Keep the log within its limit, and the keeper awake."""
    while True:
        await asyncio.sleep(_BOUND_EVERY)
        process.child.wake()
        with contextlib.suppress(OSError):
            process.output.log.bound()


async def _finish(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


# --- the end -------------------------------------------------------------------------------------


async def _stop(process: _Process, host: Host) -> None:
    """Stop a server: signals to it alone, `grace` seconds, then by force with all that it started.

    Raises ServerNotReady when it turns out to have died of something else just before.
    """
    child, order, haste = process.child, process.order, process.haste
    ran = not child.exited.done()
    forced = ""
    try:
        for number in order.signals:
            if not child.exited.done() and not haste.is_set():
                child.signal_alone(number)
                child.signal_alone(signal.SIGCONT)  # a stopped process handles nothing
                await asyncio.wait([child.exited], timeout=order.grace / len(order.signals))
        if haste.is_set():
            return
        if not child.exited.done():
            forced = f"did not stop within {limit(order.grace)} of {order.signals[0].name}"
        elif not await child.wait_empty(_LINGER):
            forced = "left processes behind"
    finally:
        died = ran and _died_of_another(child, order)
        await to_the_end(_make_sure(child, host))
    if forced:
        tell(f"the server {forced}, and was killed: {order.by_hand()}")
    if died:
        raise ServerNotReady(
            f"the server ended by itself as its block ended: {_how(process)}\n{_facts(process)}"
        )


def _died_of_another(child: Child, order: Order) -> bool:
    """Tell whether a signal ended the server that is none of those that stop it."""
    if not child.exited.done() or child.exited.exception() is not None:
        return False
    number = child.exited.result().exit.signal
    return number is not None and number not in order.signals


async def _make_sure(child: Child, host: Host) -> None:
    """See to it that nothing of it is left."""
    seen_empty = child.empty.done() and child.empty.exception() is None
    if not seen_empty and not await child.kill():
        await host.supervisor.abandon(child)
    child.release()


async def _ended_by_itself(process: _Process, pid: int | None) -> str | None:
    """Say how it ended; None while it runs."""
    exited = process.child.exited
    try:
        # The last request of a story may be what it dies of, and the news on their way. A process that
        # ends closes its sockets first.
        if not exited.done() and (
            pid not in await process.child.pids()
            or not process.listening <= await _listening(process.child)
        ):
            await asyncio.wait([exited], timeout=_LINGER)
    except asyncio.CancelledError:
        process.haste.set()
        raise
    return _how(process) if exited.done() else None


def _was_told_to_end(child: Child) -> bool:
    """Tell whether a signal ended it that ends all that a script has started, as that of a run does."""
    if child.exited.exception() is not None:
        return False
    return child.exited.result().exit.signal in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


# --- in words ------------------------------------------------------------------------------------


def _how(process: _Process) -> str:
    """Say how and when it ended."""
    exited = process.child.exited
    if exited.exception() is not None:
        return "it was killed together with what held it"
    ended = exited.result().exit
    after = duration(exited.result().at - process.started)
    if ended.signal is not None:
        return f"killed by {signal_name(ended.signal)} after {after}"
    return f"exit code {ended.code} after {after}"


def _where(server: Server) -> str:
    return f" at port {server.port}" if server.port else ""


def _end_words(server: Server, how: str) -> str:
    return f"the server{_where(server)} ended by itself before the end of its block: {how}"


def _not_ready(process: _Process, missing: str) -> ServerNotReady:
    exited = process.child.exited
    if exited.done():
        first = f"the server ended before it was ready: {_how(process)}"
        ended = None if exited.exception() else exited.result()
        if ended is not None and ended.exit.code == 0 and ended.left:
            first += "; what it started lived on: have it run in the foreground"
    else:
        first = f"the server was not ready within {limit(process.order.timeout)}"
    lines = [first, f"  waited for {missing}"]
    lines.append(_facts(process))
    if advice := _advice(process.order, process.output.text()):
        lines.append(f"To fix this: {advice}")
    return ServerNotReady("\n".join(lines))


def _advice(order: Order, log: str) -> str:
    """Say what to do about what a log complains of; empty where nobody knows."""
    if found := _NO_MODULE.search(log):
        module = found["module"]
        if module == "uvicorn":
            return f"{order.argv[0]} -m pip install uvicorn, or start another server by serve_command()"
        return f"see that the module {module} is installed, or lies in {order.cwd} (see cwd=)"
    if found := _NO_APP.search(log):
        return (
            f"see that the module {found['module']} can be imported from {order.cwd}; "
            "cwd= names another folder"
        )
    lowered = log.lower()
    if order.port is not None and 0 < order.port < 1024 and "permission denied" in lowered:  # noqa: PLR2004 - by convention
        return f"port {order.port} takes privileges: choose one from 1024 on, or port=0 for any"
    if "address already in use" in lowered:
        return "see who has the port: e2e-run ports" + (f" {order.port}" if order.port else "")
    return ""


def _facts(process: _Process) -> str:
    return f"  command: {process.order.by_hand()}\n{_last_lines(process.output)}"


def _last_lines(output: Output) -> str:
    """Show the end of a log, with nothing in it that a terminal would obey."""
    lines = output.text().splitlines()
    if not lines:
        return "  its log is empty"
    most = _TAIL_IN_A_RUN if "E2E_RUN" in os.environ else _TAIL
    shown = [
        f"  | {shorten(one_line(strip_ansi(line).expandtabs()), _WIDTH)}" for line in lines[-most:]
    ]
    heading = f"the last {most} lines of its log" if len(lines) > most else "its log"
    return "\n".join([f"  {heading}:", *shown])


def _is_fine(error: BaseException) -> bool:
    return isinstance(error, GeneratorExit) or (
        isinstance(error, SystemExit) and error.code in (None, 0)
    )
