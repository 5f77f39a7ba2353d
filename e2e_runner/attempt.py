"""One attempt at one example: preflight, start, watch, stop, inspect, judge.

Talks to the rest of the program through the events that it emits and the `Result` that it gives.
"""

import asyncio
import contextlib
import os
import re
import shlex
import signal
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

from e2e_runner import logs, ports, text
from e2e_runner.answering import local_port, stranger
from e2e_runner.databases import Coming, Grant, NoDatabase
from e2e_runner.events import Event, OutputWritten, Phase, PhaseChanged, Warned
from e2e_runner.handover import COMPANIONS, companion_url, encode_companions
from e2e_runner.hints import (
    Diagnosis,
    HintFacts,
    Rule,
    diagnose,
    leak_advice,
    network_advice,
    reach_advice,
    timeout_advice,
)
from e2e_runner.isolation import (
    NETWORK,
    Signs,
    ports_in,
    remedy,
    shortfall,
    spares_the_machine,
    suspicion,
)
from e2e_runner.model import (
    Example,
    Leak,
    LeakedDatabase,
    LeakedPort,
    LeakedProcess,
    NetworkMode,
    NetworkTier,
    Past,
    Probe,
    Result,
    Status,
    TcpProbe,
)
from e2e_runner.narration import Narration
from e2e_runner.preflight import PORT_IN_USE, PortClaims, needed_ports
from e2e_runner.probes import NotReady, Ready, wait_ready
from e2e_runner.reaching import NoNetwork, OwnNetwork, has_local_resolver, reach_of
from e2e_runner.record_file import MOST_READ
from e2e_runner.records import VARIABLE, Record
from e2e_runner.script import Script, Surroundings, start_failure, started
from e2e_runner.supervise.child import NetworkError, StartError, SupervisionLost
from e2e_runner.supervise.networks import Network, Refusals
from e2e_runner.verdict import (
    ILL,
    WELL,
    Blocked,
    Facts,
    Judgement,
    Serving,
    ended_well,
    judge,
    signal_name,
)

# How long what a script started may take to go by itself after the script has ended: helpers of
# multiprocessing and servers that were just told to stop end a moment later, and are no leak.
_LINGER = 0.5
_SHORT = 0.05  # seconds; what takes less is not worth telling
_NOT_READY = "companion-not-ready"


class Attempt:
    """What is seen of one attempt, step by step; `run` gives the verdict."""

    def __init__(
        self,
        example: Example,
        around: Surroundings,
        *,
        network: NetworkMode = NetworkMode.HOST,
        past: Past | None = None,
        wanted_ports: Collection[int] = (),
        load_rules: Callable[[], tuple[Rule, ...]],
        forbidden: tuple[re.Pattern[str], ...],
        emit: Callable[[Event], None],
        since: float,
        meanwhile: Callable[[], None],
    ) -> None:
        """Prepare an attempt.

        `network` is ISOLATED or HOST, and `past` what earlier runs tell of the example;
        `wanted_ports` must be free on the network of the machine, besides those that it declares.
        `since` is the start of the run on the monotonic clock of the surroundings; `meanwhile` is
        called once the script runs, for what may then be done without keeping anybody waiting.
        """
        self._mode = network
        self._past = past
        self._own: OwnNetwork | None = None
        networks = around.supervisor.networks
        if network is NetworkMode.ISOLATED and networks.tier is not NetworkTier.HOST:
            self._own = OwnNetwork(networks, write_file=around.workspaces.new_file)
        self._network: Network | None = None  # that scripts are started in; None: the machine's
        self._suspect = ""  # why it may pass on the network of the machine
        self._refusals = Refusals(connections=0, no_route=0, datagrams=0)
        self._listened: set[int] = set()
        self._meanwhile = meanwhile
        self._command = ""
        self.example = example
        self._settings = example.settings
        self._around = around
        self._load_rules = load_rules
        self._forbidden = forbidden
        self._emit = emit
        self._since = since
        self._ports = PortClaims(
            example,
            around,
            past=past or Past(),
            wanted=wanted_ports,
            phase=self._phase,
            warn=self._warn,
        )
        self._notes: list[str] = []
        self._hints: list[str] = []
        self._log_files: list[Path] = []
        self._output: tuple[str, bool] | None = None  # of a companion, before it was stopped
        self._dropped = 0
        self._starts = 0
        self._coming: Coming | None = None
        self._grant: Grant | None = None
        self._given: Mapping[str, str] = {}  # the variables that tell of it
        self._companions_started = False
        self._companions_died: list[str] = []
        self._companions: dict[Path, str] = {}  # where those are that are ready, by their files
        self._started_at = 0.0
        self._narration = Narration(example.path, started=0.0)

    def prepare(self) -> None:
        """Do what can be done before its turn; without this it is done then."""
        self._command = self._by_hand()
        self._around.workspaces.prepare(self.example.path)
        if not self.example.problems:
            self._coming = self._around.databases.prepare(
                self.example,
                network=self._own.network if self._own else None,
                close_network=self._close_network,
            )

    async def run(self) -> Result:
        """Make the attempt. Never raises for what a script can do."""
        try:
            facts = await self._observe()
            if facts.exit is not None and self._forbidden:
                facts = replace(
                    facts, forbidden_output=logs.first_match(self._log_files, self._forbidden)
                )
            judgement = judge(facts)
            await self._give_back(judgement.status)
            return self._result(facts, judgement)
        finally:
            if self._coming is not None:
                await self._around.databases.drop(self._coming)
            await self._close_network()

    # --- preflight -----------------------------------------------------------------------------

    async def _observe(self) -> Facts:
        settings = self._settings
        base = Facts(
            expect_exit=settings.expect_exit, timeout=settings.timeout, grace=settings.grace
        )
        if self.example.problems:
            return replace(base, problems=self.example.problems)
        return await self._prepared(base) or await self._observe_parts(base)

    async def _prepared(self, base: Facts) -> Facts | None:
        """Get all that it needs; gives the facts where that cannot be had, or the run is stopped."""
        if self._mode is NetworkMode.HOST:
            claim = await self._ports.claim()
            self._hints.extend(claim.advice)
            if self._around.stop.asked.done():
                return replace(base, interrupted=True)
            if claim.skipped or claim.blocked:
                return replace(base, skipped=claim.skipped, blocked=claim.blocked)
        unavailable = (
            await self._open_network() or await self._take_databases() or await self._lead_out()
        )
        if self._around.stop.asked.done():
            return replace(base, interrupted=True)
        if unavailable is not None:
            return replace(base, blocked=unavailable)
        return None

    async def _observe_parts(self, base: Facts) -> Facts:
        try:
            facts = await self._run_with_companions(base)
        except NetworkError as error:
            return replace(base, blocked=self._without_network(str(error)))
        facts = replace(facts, companions_died=tuple(self._companions_died))
        leaks: tuple[Leak, ...] = facts.leaks
        if self._own is None:
            # Once the companions have ended too: what they hold is no leak while they run.
            leaks += tuple(self._ports.left_behind(leaks))
        else:
            self._refusals = await self._own.refusals()
            self._notes += (f"reach {trouble}" for trouble in self._own.troubles)
        return replace(facts, leaks=(*leaks, *await self._left_databases()))

    async def _run_with_companions(self, base: Facts) -> Facts:
        async with contextlib.AsyncExitStack() as companions:
            for companion in self.example.companions:
                self._phase(Phase.COMPANIONS, companion.path)
                blocked = await self._start_companion(companion, companions)
                if self._around.stop.asked.done():
                    return replace(base, interrupted=True)
                if blocked is not None:
                    return replace(base, blocked=blocked)
            return await self._run_script(base)

    # --- a network of its own --------------------------------------------------------------------

    async def _open_network(self) -> Blocked | None:
        """Open the network that the example is to have, if that is not the machine's."""
        if self._mode is NetworkMode.HOST:
            return None
        if self._own is None:
            notes = self._around.supervisor.networks.notes
            why = text.short_note(notes[-1]) if notes else "there is none on this system"
            return self._without_network(why)
        try:
            self._network = await self._own.network()
        except NoNetwork as error:
            return self._without_network(str(error))
        return None

    async def _lead_out(self) -> Blocked | None:
        """Lead the network to what the example may reach of the machine's services."""
        if self._own is None:
            return None
        settings = self._settings
        services = {each: each for each in reach_of(self.example)}
        for at, server in (self._grant.services if self._grant else {}).items():
            # What it declares to be its own is not taken from it; the variables lead to the server.
            if at == server or at.port not in settings.ports:
                services.setdefault(at, server)
        try:
            await self._own.lead(services)
        except NoNetwork as error:
            return self._without_network(str(error))
        return None

    def _given_ports(self) -> set[int]:
        """List the ports of its network on which others listen for it."""
        given = {each.port for each in self._own.reached} if self._own else set()
        port = self._own_database_port()
        return given if port is None else given | {port}

    def _without_network(self, why: str) -> Blocked:
        """Tell that the example cannot have a network of its own; it may be run on the machine's."""
        reason = f"it cannot have a network of its own: {why}"
        if self._settings.network is NetworkMode.AUTO:
            self._suspect = reason
            warning = f"an example that would run in a network of its own cannot: {why}"
            if warning not in self._around.told:
                self._around.told.add(warning)
                self._warn(warning)
        else:
            self._hints.append(network_advice(self._around.info.network_notes))
        return Blocked(cause=NETWORK, reason=reason)

    def _name_holders(self, port: str | None) -> list[str]:
        """Say who holds the port that the output complained about."""
        if self._own is None:
            return self._ports.name_owners(port)
        if port is not None and port == str(self._own_database_port()):
            given = (
                f"In its network PostgreSQL is given to it at port {port}: to have that itself, "
            )
            return [f"{given}it declares ports = [{port}]."]
        reached = [str(each) for each in self._own.reached if str(each.port) == port]
        taken = "is a service that it reaches: serve on another port, or take it out of `reach`."
        return [f"In its network {each} {taken}" for each in reached[:1]]

    async def _close_network(self) -> None:
        if self._own is not None:
            await self._own.close()

    def _suspect_isolation(self, status: Status, diagnosis: Diagnosis) -> None:
        if self._own is None:
            return
        signs = self._signs(status, diagnosis)
        suspect = suspicion(signs)
        spared = bool(suspect) and spares_the_machine(signs)
        if suspect and not spared and self._settings.network is NetworkMode.AUTO:
            self._suspect = suspect
            return
        suspect = suspect or shortfall(signs)
        if not suspect:
            return
        blame = "left something out" if status in WELL else "failed by that"
        note = f"it may have {blame}: {suspect}"
        if spared:
            note += (
                f"; not tried on the network of the machine, which has a PostgreSQL server of its "
                f"own at port {signs.databases}"
            )
        self._notes.append(note)
        if status not in WELL:
            self._hints.append(remedy(suspect))

    def _signs(self, status: Status, diagnosis: Diagnosis) -> Signs:
        """Gather what may tell that the isolation is to blame."""
        parts = (self.example, *self.example.companions)
        own = {
            *needed_ports(self.example),
            *self._listened,
            *(self._past.ports if self._past else ()),
            *self._given_ports(),
        }
        reached = self._own.reached if self._own else frozenset()
        in_source = (port for each in parts for port in each.ports)
        services = (
            *(port for each in parts for port in each.service_ports),
            *ports_in({**self._around.environ, **self._settings.env}),
        )
        source_ports = tuple(dict.fromkeys([*in_source, *services]))
        told = diagnosis.details.get("port", "")
        in_question = {*source_ports, *([int(told)] if told.isdecimal() else ())}
        return Signs(
            status=status,
            cause=diagnosis.cause,
            details=diagnosis.details,
            refused=self._refusals.connections,
            no_route=self._refusals.no_route,
            datagrams=self._refusals.datagrams,
            local_resolver=bool(self._refusals.datagrams) and has_local_resolver(),
            own_ports=frozenset(own),
            source_ports=source_ports,
            service_ports=tuple(dict.fromkeys(services)),
            host_ports=self._host_ports(in_question),
            reached=frozenset(each.port for each in reached),
            databases=self._own_database_port(),
        )

    def _host_ports(self, in_question: Collection[int]) -> frozenset[int]:
        """List the ports that the machine listens on, but for those in question that are this run's.

        What an example beside it serves there is no service of the machine.
        """
        listening = {each.port for each in ports.listening()}
        by_port: dict[int, set[bool]] = {}
        for owner in ports.owners(listening.intersection(in_question)):
            told = ports.started_for(owner.process.pid) if owner.process else None
            ours = told is not None and told[0] == self._around.info.id
            by_port.setdefault(owner.port, set()).add(ours)
        return frozenset(port for port in listening if by_port.get(port) != {True})

    def _own_database_port(self) -> int | None:
        """Give the port of its network at which it has a server to itself."""
        return None if self._grant is None else self._grant.port_inside

    # --- databases -----------------------------------------------------------------------------

    async def _take_databases(self) -> Blocked | None:
        """Take what PostgreSQL the example wants, unless the run is stopped meanwhile."""
        if not self._around.databases.serves(self.example):
            return None
        taking = asyncio.ensure_future(
            self._around.databases.give(
                self.example,
                network=self._own.network if self._own else None,
                coming=self._coming,
            )
        )
        try:
            await asyncio.wait([taking], timeout=_SHORT)
            if not taking.done():
                self._phase(Phase.DATABASES)
            either: list[asyncio.Future[Any]] = [taking, self._around.stop.asked]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                return None
            self._grant = taking.result()
        except NetworkError as error:
            return self._without_network(str(error))
        except NoDatabase as error:
            self._hints.extend(error.advice)
            self._notes.extend(error.facts)
            return Blocked(cause="database", reason=str(error))
        finally:
            if taking.cancel():
                await asyncio.wait([taking])
        if self._grant is not None:
            self._given = self._grant.environment
        return None

    async def _left_databases(self) -> tuple[LeakedDatabase, ...]:
        if self._grant is None:
            return ()
        try:
            return await self._around.databases.left_behind(self._grant)
        except NoDatabase as error:
            self._warn(f"Whether it left databases behind is not known: {error}")
            return ()

    async def _give_back(self, status: Status) -> None:
        if self._grant is None:
            return
        keep = None
        if self._around.run.postgres.keep_databases and status in ILL:
            keep = self._around.workspaces.kept_databases(self.example.path)
        self._notes += await self._around.databases.release(self._grant, keep=keep)

    # --- companions ----------------------------------------------------------------------------

    async def _start_companion(
        self, companion: Example, stack: contextlib.AsyncExitStack
    ) -> Blocked | None:
        probe = companion.settings.serve or _probe_of(companion.ports)
        if companion.problems:
            return Blocked(cause="bad-metadata", reason=companion.problems[0].message)
        if probe is None:
            self._hints.append(
                f'Add `serve = "http://127.0.0.1:PORT/"` to the metadata of {companion.path}.'
            )
            return Blocked(
                cause=_NOT_READY,
                reason=f"companion {companion.path} declares neither `serve` nor `ports`, "
                "so nothing can tell when it is ready",
            )
        suffix = f".for-{text.one_line(Path(self.example.path).name)}.log"
        try:
            script = await stack.enter_async_context(
                started(
                    companion,
                    self._around,
                    given=self._given,
                    network=self._network,
                    suffix=suffix,
                )
            )
        except NetworkError:
            raise
        except (StartError, SupervisionLost, OSError) as error:
            return Blocked(
                cause=_NOT_READY,
                reason=f"companion {companion.path} could not be started: {start_failure(error)}",
            )
        self._companions_started = True
        stack.push_async_callback(self._end_companion, companion, script, local_port(probe))
        ready = await self._wait_ready(script, probe, companion.settings.timeout)
        if isinstance(ready, Ready):
            self._companions[companion.file] = companion_url(probe, companion.ports)
            self._saw_listening(probe)
            return None
        self._log_files = list(script.log_files)
        # As it is now: what it writes when it is stopped would bury the reason.
        self._output = logs.tail(self._log_files)
        return Blocked(cause=_NOT_READY, reason=f"companion {companion.path}: {ready or 'stopped'}")

    def _about_companions(self) -> dict[str, str]:
        return {COMPANIONS: encode_companions(self._companions)} if self._companions else {}

    async def _end_companion(self, companion: Example, script: Script, port: int | None) -> None:
        if port is not None and not script.child.exited.done():
            found = ports.listening_ports_of(await script.child.pids())
            if not any(port in each for each in found.values()):
                # A process that ends closes its sockets first: the news may be on their way.
                await asyncio.wait([script.child.exited], timeout=_LINGER)
        if script.child.exited.done():
            ended = script.exited
            how = "was lost" if ended is None else _exit_words(ended.exit.code, ended.exit.signal)
            said = f"companion {companion.path} ended by itself: {how}"
            self._notes.append(said)
            if ended is None or ended.exit.code not in (0, companion.settings.expect_exit):
                self._companions_died.append(said)
        grace = companion.settings.grace
        if await script.end(signal.SIGINT, signal.SIGTERM, grace=grace):
            self._notes.append(f"companion {companion.path} did not stop in {grace:g}s: killed")
        script.close_logs()

    def _saw_listening(self, probe: Probe) -> None:
        port = local_port(probe)
        if port is not None:
            self._listened.add(port)

    async def _wait_ready(
        self, script: Script, probe: Probe, patience: float
    ) -> Ready | NotReady | None:
        """Wait until a server is ready; None when the run is stopped meanwhile."""
        port = local_port(probe)
        waiting = asyncio.create_task(
            wait_ready(
                probe,
                timeout=patience,
                log=script.log_files[0],
                ended=script.child.exited,
                clock=self._around.clock,
                # Nobody else is in a network of its own.
                stranger=None
                if port is None or self._own
                else partial(stranger, [port], script.child),
                connect=self._own.connect if self._own else None,
            )
        )
        try:
            either: list[asyncio.Future[Any]] = [waiting, self._around.stop.asked]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])

    # --- the script itself ---------------------------------------------------------------------

    async def _run_script(self, base: Facts) -> Facts:
        facts = base
        try:
            async with started(
                self.example,
                self._around,
                given={**self._given, **self._about_companions()},
                network=self._network,
                on_records=self._narrate,
                meanwhile=self._meanwhile,
            ) as script:
                self._starts += 1
                self._started_at = script.started_at
                self._narration = Narration(self.example.path, started=script.started_at)
                self._log_files = script.log_files
                facts = await self._watch(script, base)
                facts = await self._inspect(script, facts)
                self._drain(script)
                await self._hear_out(script)
                facts = replace(facts, step=self._narration.place(facts.elapsed))
                script.close_logs()
                self._dropped = script.dropped
                if script.log_trouble:
                    self._warn(f"The log could not be kept whole: {script.log_trouble}")
        except NetworkError:
            raise
        except (StartError, SupervisionLost, OSError) as error:
            if not self._starts:
                return replace(base, start_error=start_failure(error))
            if not isinstance(error, SupervisionLost):
                raise
            # Without an exit in the facts: nobody saw how it ended.
        return facts

    async def _watch(self, script: Script, base: Facts) -> Facts:
        """Wait for the end of the script, and bring it about where it does not come."""
        settings = self._settings
        stop = self._around.stop
        deadline = script.started_at + settings.timeout
        serving, missing = Serving.NOT_A_SERVER, ""
        on_output = self._write_output if self._around.run.no_capture else None
        if settings.serve is None:
            self._phase(Phase.RUNNING)
            ended = await script.wait(stop.asked, deadline=deadline, on_output=on_output)
        else:
            self._phase(Phase.STARTING)
            serving, missing = await self._watch_server(script, settings.serve, deadline, on_output)
            ended = script.child.exited.done()
        timed_out = stopped = interrupted = killed = False
        if not ended:
            if serving is Serving.READY:
                stopped = True
                signals = [signal.SIGINT, signal.SIGTERM]
            else:
                interrupted = stop.asked.done()
                timed_out = not interrupted
                signals = [signal.SIGTERM]
                # What it tells of itself once it is being stopped is another matter.
                await script.read_records()
                if timed_out:
                    await self._explain_timeout(script)
                self._narration.stop(self._around.clock() - script.started_at)
            self._phase(Phase.STOPPING, signals[0].name)
            killed = await self._end(script, *signals)
        exited = script.exited
        if script.child.exited.done() and exited is None:
            await self._around.supervisor.abandon(script.child)
            self._notes.append("the process that supervised it was killed, by itself perhaps")
        return replace(
            base,
            timed_out=timed_out,
            interrupted=interrupted,
            stopped=stopped,
            serving=serving,
            missing=missing,
            killed=killed,
            exit=None if exited is None else exited.exit,
            elapsed=(exited.at if exited else self._around.clock()) - script.started_at,
        )

    async def _watch_server(
        self,
        script: Script,
        probe: Probe,
        deadline: float,
        on_output: Callable[[str], None] | None,
    ) -> tuple[Serving, str]:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer: Ready | NotReady | None = None

        async def ask() -> None:
            nonlocal answer
            answer = await self._wait_ready(script, probe, deadline - self._around.clock())
            ready.set_result(None)

        asking = asyncio.create_task(ask())
        try:
            await script.wait(ready, deadline=deadline + 1, on_output=on_output)
            # The answer is there, or comes at once now that the script has ended.
            await asyncio.wait([asking])
        finally:
            asking.cancel()
        if isinstance(answer, Ready):
            self._saw_listening(probe)
            self._notes.append(f"ready after {text.duration(answer.seconds)}: {answer.answer}")
            return Serving.READY, ""
        return Serving.NOT_READY, answer.missing if isinstance(answer, NotReady) else ""

    async def _explain_timeout(self, script: Script) -> None:
        if self._settings.serve is not None:
            return
        own = await script.look_at_ports()
        if self._narration.has_steps:
            return  # a story, whatever it serves meanwhile
        now = self._around.clock()
        for port in sorted(own):
            listened = text.duration(now - script.listening[port])
            self._hints.append(
                f"It was listening on port {port} for {listened} when its time was over. If it is "
                "a server by design, say so in its metadata, and it is stopped once it is ready:\n"
                "# /// script\n"
                "# [tool.e2e-run]\n"
                f'# serve = "tcp://127.0.0.1:{port}"\n'
                "# ///"
            )

    async def _end(self, script: Script, *signals: signal.Signals) -> bool:
        killed = await script.end(
            *signals, grace=self._settings.grace, on_kill=partial(self._phase, Phase.KILLING)
        )
        # A supervisor that was lost cannot tell; what it held is seen to by `abandon`.
        await asyncio.wait([script.child.exited], timeout=_LINGER)
        return killed

    # --- what is left --------------------------------------------------------------------------

    async def _inspect(self, script: Script, facts: Facts) -> Facts:
        """Name and end what the script left behind."""
        self._ports.seen(script.listening)
        self._listened |= script.listened - self._given_ports()
        exited = script.exited
        if exited is None or not exited.left or facts.killed or facts.timed_out:
            return facts
        return replace(facts, leaks=tuple(await self._left_processes(script)))

    async def _left_processes(self, script: Script) -> list[Leak]:
        if await script.child.wait_empty(_LINGER):
            return []
        leaks: list[Leak] = []
        for pid in await script.child.pids():
            info = ports.process_info(pid)
            if info is not None:
                leaks.append(LeakedProcess(pid=pid, command=info.command, ports=info.ports))
                leaks.extend(
                    LeakedPort(port=port, owner=f"pid {pid} ({info.command})")
                    for port in info.ports
                )
        if not leaks:
            if await script.child.wait_empty(0):
                return []
            leaks.append(LeakedProcess(pid=None, command="ends and starts anew all the time"))
        self._phase(Phase.KILLING, text.plural(len(leaks), "leftover"))
        if not await script.kill():
            self._warn("Something that it left behind withstood SIGKILL.")
            return [_kept(leak) for leak in leaks]
        return leaks

    # --- the verdict ---------------------------------------------------------------------------

    def _result(self, facts: Facts, judgement: Judgement) -> Result:
        status, cause = judgement.status, judgement.cause
        plain = status in (Status.PASSED, Status.SERVED, Status.SKIPPED)
        output, cut = ("", False) if plain else self._output or logs.tail(self._log_files)
        ended = facts.exit
        signal_seen = signal_name(ended.signal) if ended and ended.signal is not None else None
        failed = status in ILL and not facts.problems
        # A companion may be hindered by the isolation as the script may.
        hindered = failed or (status is Status.BLOCKED and cause == _NOT_READY)
        if failed or (hindered and self._own is not None):
            diagnosis = diagnose(
                self._load_rules(),
                HintFacts(
                    output=output,
                    status=status,
                    exit_code=ended.code if ended else None,
                    signal=signal_seen,
                    path=self.example.path,
                    python=self._around.run.python,
                    network=self._mode,
                ),
            )
            self._suspect_isolation(status, diagnosis)
            if self._own is not None:
                self._hints.extend(map(reach_advice, self._own.troubles))
            if failed:
                cause = diagnosis.cause or cause
                self._hints.extend(diagnosis.hints)
                if diagnosis.cause == PORT_IN_USE:
                    self._hints.extend(self._name_holders(diagnosis.details.get("port")))
        elif any(astuple(self._refusals)):
            self._suspect_isolation(status, Diagnosis(cause=None))
        if status is Status.LEAKED:
            self._hints.extend(leak_advice(facts.leaks))
        if cause == "time-limit" and facts.step is not None:
            # First: a script in a step waits for something, even where it listens meanwhile.
            self._hints.insert(0, timeout_advice(self.example.path, facts.timeout))
        story = self._narration.end(facts.elapsed, ended_well=ended_well(facts))
        return Result(
            path=self.example.path,
            status=status,
            cause=cause,
            reason=judgement.reason,
            exit_code=ended.code if ended else None,
            signal=signal_seen,
            duration=facts.elapsed,
            cpu=ended.cpu if ended else None,
            max_rss=ended.max_rss if ended else None,
            tags=self._settings.tags,
            ports=self.example.ports,
            leaks=facts.leaks,
            attempts=self._starts,
            log=self._relative(self._log_files[0]) if self._log_files else None,
            output_tail=output,
            output_cut=cut or self._dropped > 0,
            output_dropped=self._dropped,
            hints=tuple(dict.fromkeys(self._hints)),
            notes=tuple(self._notes),
            command=self._command or self._by_hand(),
            steps=story.steps,
            happened_in=story.happened_in,
            metrics=story.metrics,
            summary=story.summary,
            network=self._mode if self._starts or self._companions_started else None,
            listened=tuple(sorted(self._listened)),
            isolation_suspect=self._suspect,
        )

    def _by_hand(self) -> str:
        return by_hand(self.example, self._around.run.root, without=self._around.info.withheld)

    def _relative(self, file: Path) -> str:
        return Path(os.path.relpath(file, self._around.run.root)).as_posix()

    # --- speaking ------------------------------------------------------------------------------

    def _at(self) -> float:
        return self._around.clock() - self._since

    def _phase(self, phase: Phase, detail: str = "") -> None:
        self._emit(PhaseChanged(at=self._at(), path=self.example.path, phase=phase, detail=detail))

    def _warn(self, message: str) -> None:
        self._emit(Warned(at=self._at(), message=message, path=self.example.path))

    def _write_output(self, written: str) -> None:
        self._emit(OutputWritten(at=self._at(), path=self.example.path, text=written))

    def _narrate(self, records: Sequence[Record]) -> None:
        now = self._around.clock() - self._started_at
        for event in self._narration.add(records, now=now, at=self._at()):
            self._emit(event)

    async def _hear_out(self, script: Script) -> None:
        """Take the last records of a script that is over, and note what was left out."""
        file = script.records
        if file is None:
            return
        await script.read_records()
        self._narrate(file.rest())
        if file.overflowed:
            most = text.size(MOST_READ)
            self._notes.append(f"wrote more than {most} of records: the rest is ignored")
        elif file.nonsense and not file.records:
            lines = text.plural(file.nonsense, "line")
            self._notes.append(
                f"wrote {lines} to the file in {VARIABLE}, none of which is a record"
            )
        self._notes += self._narration.notes()

    def _drain(self, script: Script) -> None:
        if self._around.run.no_capture:
            while written := script.new_text():
                self._write_output(written)


def by_hand(example: Example, root: Path, *, without: Iterable[str] = ()) -> str:
    """Give the shell command that runs an example by hand, from the root.

    `without` are variables of the caller that the run kept from it.
    """
    settings = example.settings
    words = [_from(settings.cwd, word, root) for word in example.argv]
    if "/" not in words[0] and words[0] != example.argv[0]:
        words[0] = f"./{words[0]}"  # without a slash the shell would look on PATH
    command = shlex.join(words)
    if settings.env:
        assignments = (f"{name}={shlex.quote(value)}" for name, value in settings.env.items())
        command = f"{' '.join(assignments)} {command}"
    unset = [word for name in without for word in ("-u", name) if name not in settings.env]
    if unset:
        command = f"env {shlex.join(unset)} {command}"
    folder = os.path.relpath(settings.cwd, root)
    return command if folder == "." else f"(cd {shlex.quote(folder)} && {command})"


def _from(cwd: Path, word: str, root: Path) -> str:
    """Shorten an absolute path below the root as seen from `cwd`; leave other words alone."""
    path = Path(word)
    if not path.is_absolute() or not path.is_relative_to(root):
        return word
    relative = os.path.relpath(path, cwd)
    return f"./{relative}" if relative.startswith("-") else relative


def _kept(leak: Leak) -> Leak:
    """Say of a process that it may be still there."""
    if isinstance(leak, LeakedProcess):
        return replace(leak, kept="something withstood SIGKILL")
    return leak


def _probe_of(found: tuple[int, ...]) -> Probe | None:
    return TcpProbe(host="127.0.0.1", port=found[0]) if found else None


def _exit_words(code: int | None, number: int | None) -> str:
    return f"exit code {code}" if number is None else signal_name(number)
