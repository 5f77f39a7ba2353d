"""What PostgreSQL an attempt is given: a server of its own, or a role and databases on a shared one.

Nothing is set up, and no driver is loaded, before the first example that wants PostgreSQL has its turn.
"""

import asyncio
import contextlib
import itertools
import os
import shlex
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from e2e_runner import handover
from e2e_runner.addresses import DEFAULT_PORT, to_url, variables
from e2e_runner.dbnames import attempt_name, database_names, token_of
from e2e_runner.discovery.postgres import wants_postgres
from e2e_runner.handover import Handover
from e2e_runner.model import (
    DatabaseDefinition,
    Endpoint,
    Example,
    LeakedDatabase,
    Plan,
    PostgresMode,
    PostgresScope,
    RunSettings,
    ServerAddress,
)
from e2e_runner.programs import run_program
from e2e_runner.reaching import reach_of
from e2e_runner.rundir import RunDir
from e2e_runner.stop import Stop
from e2e_runner.supervise.client import Supervisor
from e2e_runner.wants import definitions_of

if TYPE_CHECKING:
    from e2e_runner.embedded import EmbeddedServer, EmbeddedServers, Template
    from e2e_runner.postgres.shared import Given, SharedServer
    from e2e_runner.supervise.networks import Network

_SEE_TO_IT = (
    "See that the server runs and lets this user in, or have e2e-run bring its own: "
    "--postgres embedded (or E2E_RUN_POSTGRES=embedded)."
)

# Seconds that a server still has once the end of the run was asked for twice.
_PATIENCE_OF_A_HURRY = 3.0

_T = TypeVar("_T")
Definitions = Sequence[DatabaseDefinition]
Fill = Callable[[ServerAddress, DatabaseDefinition], Awaitable[None]]
OpenNetwork = Callable[[], Awaitable["Network"]]  # gives the same each time


class NoDatabase(Exception):  # noqa: N818 - a finding about the surroundings
    """PostgreSQL cannot be given to an example; the text is the reason.

    `advice` are the ways out, and `facts` what was seen.
    """

    def __init__(
        self, reason: str, advice: Iterable[str] = (), *, facts: Iterable[str] = ()
    ) -> None:
        super().__init__(reason)
        self.advice = tuple(advice)
        self.facts = tuple(facts)


class Grant(Protocol):
    """What one attempt was given."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that tell the script of it, with what it is handed (see `handover`)."""

    @property
    def services(self) -> Mapping[Endpoint, Endpoint]:
        """Where a network of the attempt's own must lead: there the script finds it -> where it is."""

    @property
    def port_inside(self) -> int | None:
        """The port of the attempt's own network at which it has a server to itself; None without one."""

    async def left_behind(self) -> tuple[LeakedDatabase, ...]:
        """List the databases that the attempt left, once nothing of it runs any more.

        Raises NoDatabase when the server cannot be asked.
        """

    async def release(self, *, keep: Path | None) -> tuple[str, ...]:
        """Take it back, or leave it to be looked at; gives notes for the report.

        `keep` is the folder that a server of its own is kept in.
        """


class _Source(Protocol):
    """Where grants come from."""

    @property
    def ahead(self) -> bool:
        """Whether it may give while another attempt runs, and attribution stays what it is."""

    async def give(self, number: int, example: Example, network: "OpenNetwork | None") -> Grant:
        """Make what attempt `number` of the run gets, whose network is its own. Raises NoDatabase."""

    async def close(self) -> None:
        """Finish what goes on in the background."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coming:
    """What is being made ahead for an attempt, which takes it by `Databases.give`."""

    task: "asyncio.Task[Grant | None]"
    close_network: Callable[[], Awaitable[None]] | None  # where that attempt never comes


class Databases:
    """Gives attempts what they want of PostgreSQL, several at a time; one for each run."""

    def __init__(
        self,
        run: RunSettings,
        plan: Plan,
        *,
        supervisor: Supervisor,
        run_dir: RunDir,
        environ: Mapping[str, str],
        stop: Stop,
        warn: Callable[[str], None],
    ) -> None:
        """Note what a run will need; `environ` is the caller's, and `warn` tells the user."""
        self._run = run
        self._plan = plan
        self._supervisor = supervisor
        self._run_dir = run_dir
        self._environ = environ
        self._stop = stop
        self._warn = warn
        self._numbers = itertools.count(1)
        self._held = contextlib.AsyncExitStack()
        self._opening: asyncio.Task[_Source] | None = None
        self._grants: set[Grant] = set()
        self._coming: set[Coming] = set()
        # Where what one attempt leaves cannot be told from what another does, one has its turn.
        self._turn = asyncio.Lock()
        self._having_turn: Grant | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        coming = [each.task for each in self._coming]
        tasks: list[asyncio.Task[Any]] = [*coming, *([self._opening] if self._opening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if await in_time(self._close(), self._stop.now) is None:
            self._warn(
                "The server did not answer in time, so what the run made there is left to the next "
                "run, or to e2e-run sweep-dbs."
            )

    async def _close(self) -> bool:
        try:
            for grant in [*self._grants]:
                await self.release(grant, keep=None)
            if self._opening and not self._opening.cancelled() and not self._opening.exception():
                await self._opening.result().close()
        finally:
            await self._held.aclose()
            for each in self._coming:
                if each.close_network is not None:
                    await each.close_network()
        return True

    def prepare(
        self,
        example: Example,
        *,
        network: OpenNetwork | None = None,
        close_network: Callable[[], Awaitable[None]] | None = None,
    ) -> Coming | None:
        """Begin to make what an attempt will be given, where that disturbs nobody; None for nothing.

        `network` opens the attempt's own, if it gets one, and `close_network` closes it where the attempt
        is not made after all.
        """
        if not self.serves(example):
            return None
        task = asyncio.create_task(self._give(example, network, ahead=True))
        task.add_done_callback(_seen)
        coming = Coming(task=task, close_network=close_network)
        self._coming.add(coming)
        return coming

    async def give(
        self,
        example: Example,
        *,
        network: OpenNetwork | None = None,
        coming: Coming | None = None,
    ) -> Grant | None:
        """Give an attempt what it wants; None when that is nothing. Raises NoDatabase, NetworkError.

        `network` is as for `prepare`, and `coming` what that gave. Where attempts on the server must
        not overlap, this waits until the one before has given back what it has.
        """
        if not self.serves(example):
            return None
        if coming is not None:
            self._coming.discard(coming)
            grant = await coming.task
            if grant is not None:
                return grant
        return await self._give(example, network, ahead=False)

    async def drop(self, coming: Coming) -> None:
        """Give back what was made ahead for an attempt that takes nothing; harmless when it was taken."""
        if coming not in self._coming:
            return
        self._coming.discard(coming)
        coming.task.cancel()
        await asyncio.wait([coming.task])
        if not coming.task.cancelled() and coming.task.exception() is None:
            grant = coming.task.result()
            if grant is not None:
                await self.release(grant, keep=None)

    async def left_behind(self, grant: Grant) -> tuple[LeakedDatabase, ...]:
        """List the databases that an attempt left. Raises NoDatabase when that cannot be known."""
        found = await in_time(grant.left_behind(), self._stop.now)
        if found is None:
            raise NoDatabase("the run was killed")
        return found

    async def release(self, grant: Grant, *, keep: Path | None) -> tuple[str, ...]:
        """Take back what was given; gives notes for the report."""
        self._grants.discard(grant)
        try:
            return await in_time(grant.release(keep=keep), self._stop.now) or ()
        finally:
            if grant is self._having_turn:
                self._having_turn = None
                self._turn.release()

    def serves(self, example: Example) -> bool:
        """Tell whether an example is given anything."""
        return self._run.postgres.mode is not PostgresMode.OFF and bool(wants_postgres(example))

    async def _give(
        self, example: Example, network: OpenNetwork | None, *, ahead: bool
    ) -> Grant | None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(_seen)
        # Shielded: it is opened for all, whoever of them is cancelled.
        source = await asyncio.shield(self._opening)
        if not source.ahead:
            return None if ahead else await self._give_its_turn(source, example, network)
        grant = await source.give(next(self._numbers), example, network)
        self._grants.add(grant)
        return grant

    async def _give_its_turn(
        self, source: _Source, example: Example, network: OpenNetwork | None
    ) -> Grant:
        await self._turn.acquire()
        try:
            grant = await source.give(next(self._numbers), example, network)
        except BaseException:
            self._turn.release()
            raise
        self._having_turn = grant
        self._grants.add(grant)
        return grant

    async def _open(self) -> _Source:
        settings = self._run.postgres
        token = token_of(self._run_dir.id)
        if settings.url is not None:
            return await self._open_shared(settings.url, settings.admin_url, token)
        from e2e_runner.embedded import CannotStart, EmbeddedServers

        try:
            servers = await self._held.enter_async_context(
                EmbeddedServers.open(
                    self._supervisor,
                    self._run_dir,
                    environ=self._environ,
                    avoid_ports={
                        port
                        for example in self._plan.examples
                        for each in (example, *example.companions)
                        for port in each.ports
                    },
                )
            )
            await servers.prepare()
            if settings.scope is PostgresScope.RUN:
                server = await servers.start()
                kept = _KeptLater(server, self._run_dir.own_file("postgres"), self._run.root)
                # Between the end of what uses the server, and the server's own.
                self._held.push_async_callback(self._keep_if_wanted, kept)
                source = await self._open_shared(server.address, server.admin, token)
                return replace(source, embedded=kept)
        except CannotStart as error:
            raise NoDatabase(error.reason, error.advice, facts=error.facts) from error
        wanting = [example for example in self._plan.examples if wants_postgres(example)]
        return _Private(
            servers,
            self._run,
            [definition for example in wanting for definition in definitions_of(example)],
            token=token,
            fill=self._fill(servers),
            from_template=len(wanting) > 1,
        )

    async def _keep_if_wanted(self, kept: "_KeptLater") -> None:
        if problem := await kept.keep():
            self._warn(problem)

    def _fill(self, servers: "EmbeddedServers | None" = None) -> Fill:
        """Give what fills a template; with `servers`, by the programs that they run."""
        from e2e_runner.postgres.fill import fill

        return partial(
            fill,
            run_program=partial(run_program, self._supervisor),
            log=self._run_dir.own_file("postgres.txt"),
            # Else this is no run of the project, and the folder goes at its end.
            log_stays=self._run_dir.folder.is_relative_to(self._run.state_dir),
            environment=with_interpreter(self._environ, self._run.python),
            root=self._run.root,
            env_mapping=self._run.postgres.env,
            psql=servers.psql if servers else None,
        )

    async def _open_shared(
        self, address: ServerAddress, admin: ServerAddress | None, token: str
    ) -> "_Shared":
        from e2e_runner.postgres.connection import Unreachable
        from e2e_runner.postgres.shared import NotUsable, SharedServer

        settings = self._run.postgres
        try:
            server = await self._held.enter_async_context(
                SharedServer.open(
                    address,
                    admin=admin,
                    token=token,
                    patterns=settings.patterns,
                    protect=settings.protect,
                    fill=self._fill(),
                    warn=self._warn,
                )
            )
        except Unreachable as error:
            raise NoDatabase(
                f"PostgreSQL cannot be reached: {error}",
                (_SEE_TO_IT,),
            ) from error
        except NotUsable as error:
            raise NoDatabase(str(error), error.advice) from error
        return _Shared(server=server, run=self._run)


async def in_time(work: Coroutine[Any, Any, _T], hurry: "asyncio.Future[None]") -> _T | None:
    """Do what a person in a `hurry` need not wait for; None when it was given up.

    It has ended when this ends, however that comes about, unless it withstands to be cancelled.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_seen)
    try:
        either: list[asyncio.Future[Any]] = [task, hurry]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait([task], timeout=_PATIENCE_OF_A_HURRY)
    finally:
        given_up = task.cancel()
        if given_up:
            await asyncio.wait([task], timeout=_PATIENCE_OF_A_HURRY)
    return None if given_up else task.result()


# --- a server for each attempt -------------------------------------------------------------------


class _Private:
    """Gives each attempt a server of its own."""

    ahead = True

    def __init__(
        self,
        servers: "EmbeddedServers",
        run: RunSettings,
        wanted: Definitions,
        *,
        token: str,
        fill: Fill,
        from_template: bool,
    ) -> None:
        """Note what the run will need: `wanted` are the definitions of all its examples.

        For a single attempt it takes longer to make a template than to fill the databases themselves:
        then not `from_template`.
        """
        self._servers = servers
        self._run = run
        self._wanted = wanted
        self._token = token
        self._fill = fill
        self._from_template = from_template
        self._filling = asyncio.Lock()  # those who fill share a log
        self._base: asyncio.Task[_Base] | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def give(
        self, number: int, example: Example, network: OpenNetwork | None
    ) -> "_OwnServer":
        """Start a server, in the attempt's own network where it has one, and make the databases in it."""
        from e2e_runner.postgres.connection import Unreachable
        from e2e_runner.postgres.fill import FillFailed

        definitions = definitions_of(example)
        own = attempt_name(self._token, number)
        names = database_names(own, definitions)
        server, templates = await self._start(example, definitions, network)
        try:
            known = await self._make(server, own, names, definitions, templates)
        except FillFailed as error:
            await server.stop()
            raise NoDatabase(str(error)) from error
        except Unreachable as error:
            await server.stop()
            raise NoDatabase(f"the embedded PostgreSQL does not answer: {error}") from error
        except BaseException:
            await server.stop()
            raise
        address = replace(server.address, database=next(iter(names.values()), own))
        return _OwnServer(
            server,
            known=known,
            names=frozenset(names.values() or {own}),
            environment=_environment(
                address, names, definitions, self._run, base=own, psql=self._servers.psql
            ),
            root=self._run.root,
            stop_soon=self._stop_soon,
            port_inside=None if network is None else address.port,
        )

    async def _start(
        self, example: Example, definitions: Definitions, network: OpenNetwork | None
    ) -> "tuple[EmbeddedServer, Mapping[_Content, str]]":
        """Start a server; gives with it the databases that it has to make others of."""
        from e2e_runner.embedded import CannotStart
        from e2e_runner.postgres.connection import Unreachable

        try:
            # What fills a database runs on the host, from where a network of its own is out of reach.
            if not self._from_template and network is None:
                return await self._servers.start(), {}
            if self._base is None:
                self._base = asyncio.create_task(self._build())
                self._base.add_done_callback(_seen)
            base = await asyncio.shield(self._base)
            for definition in definitions:
                if _content(definition) in base.failed:
                    raise NoDatabase(base.failed[_content(definition)])
            inside = None if network is None else await network()
            port = None if network is None else port_inside(example)
            server = await self._servers.start(base.template, port=port, network=inside)
        except CannotStart as error:
            raise NoDatabase(error.reason, error.advice, facts=error.facts) from error
        except Unreachable as error:
            raise NoDatabase(f"the embedded PostgreSQL does not answer: {error}") from error
        return server, base.names

    async def _make(
        self,
        server: "EmbeddedServer",
        own: str,
        names: Mapping[str, str],
        definitions: Definitions,
        templates: "Mapping[_Content, str]",
    ) -> frozenset[int]:
        """Make the databases; gives the oids of all that there are then. Raises Unreachable, FillFailed."""
        from e2e_runner.postgres.private import make_databases

        wanted = {names[each.name]: templates.get(_content(each)) for each in definitions}
        known = await make_databases(server.admin, wanted or {own: None})
        unfilled = [
            each for each in definitions if _is_filled(each) and not wanted[names[each.name]]
        ]
        for definition in unfilled:
            address = replace(server.address, database=names[definition.name])
            async with self._filling:
                await self._fill(address, definition)
        if any(each.command for each in unfilled):  # which may have made other databases
            known = await make_databases(server.admin, {})
        return known

    async def close(self) -> None:
        """Wait until the servers of attempts that have ended are gone."""
        if self._base is not None:
            self._base.cancel()
            await asyncio.gather(self._base, return_exceptions=True)
        await asyncio.gather(*self._stopping, return_exceptions=True)

    def _stop_soon(self, server: "EmbeddedServer") -> None:
        task = asyncio.create_task(server.stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _build(self) -> "_Base":
        """Make the template of all servers, with the databases that are to be cloned in it."""
        contents: dict[_Content, DatabaseDefinition] = {}
        for definition in self._wanted:
            if _is_filled(definition):
                contents.setdefault(_content(definition), definition)
        if not contents:
            return _Base()
        from e2e_runner.postgres.fill import FillFailed
        from e2e_runner.postgres.private import make_database

        server = await self._servers.start()
        try:
            names: dict[_Content, str] = {}
            failed: dict[_Content, str] = {}
            for number, (content, definition) in enumerate(contents.items(), start=1):
                name = f"e2e_template_{number}"
                await make_database(server.admin, name)
                try:
                    await self._fill(replace(server.address, database=name), definition)
                except FillFailed as error:
                    failed[content] = str(error)
                else:
                    names[content] = name
            template = await server.freeze()
        except BaseException:
            await server.stop()
            raise
        return _Base(template=template, names=names, failed=failed)


# What fills a database: files, and a command, which may go by the variables that it is told.
_Content = tuple[tuple[Path, ...], tuple[str, ...], tuple[str, ...]]


def _is_filled(definition: DatabaseDefinition) -> bool:
    return bool(definition.template or definition.command)


def _content(definition: DatabaseDefinition) -> _Content:
    told = definition.env if definition.command else ()
    return definition.template, definition.command, told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What the servers of a run are copies of."""

    template: "Template | None" = None
    names: Mapping[_Content, str] = field(default_factory=dict)
    failed: Mapping[_Content, str] = field(default_factory=dict)  # with the reason


def port_inside(example: Example) -> int:
    """Choose where a server listens in the network of an example: where everybody looks for it.

    That is for the example to take, where it or a companion declares so or reaches a service there.
    """
    taken = {port for each in (example, *example.companions) for port in each.settings.ports}
    taken |= {each.port for each in reach_of(example)}
    return next(port for port in range(DEFAULT_PORT, 2**16) if port not in taken)


class _OwnServer:
    """The server of one attempt; what it does not know from its beginning is the attempt's doing."""

    services: Mapping[Endpoint, Endpoint] = MappingProxyType({})  # it is there, wherever that is

    def __init__(
        self,
        server: "EmbeddedServer",
        *,
        known: frozenset[int],
        names: frozenset[str],
        environment: Mapping[str, str],
        root: Path,
        stop_soon: Callable[["EmbeddedServer"], None],
        port_inside: int | None,
    ) -> None:
        self.port_inside = port_inside
        self.environment = environment
        self._root = root
        self._server = server
        self._known = known
        self._names = names
        self._stop_soon = stop_soon

    async def left_behind(self) -> tuple[LeakedDatabase, ...]:
        """List the databases that are new; they go with the server."""
        from e2e_runner.postgres.connection import Unreachable
        from e2e_runner.postgres.private import databases_beyond

        try:
            found = await databases_beyond(self._server.admin, self._known)
        except Unreachable as error:
            raise NoDatabase(f"its server no longer answers: {error}") from error
        usual = self._server.admin.user
        return tuple(
            LeakedDatabase(name=name, owner="" if owner == usual else owner)
            for name, owner in found.items()
            if name not in self._names  # which a script may drop and make anew
        )

    async def release(self, *, keep: Path | None) -> tuple[str, ...]:
        """Stop the server, in the background; or keep its data."""
        if keep is None:
            self._stop_soon(self._server)
            return ()
        if why_not := await _kept(self._server, keep):
            return (f"its databases could not be kept: {why_not}",)
        return (f"its databases are kept; to look at them: {_command(keep, self._root)}",)


# --- one server for all --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """Gives each attempt databases, and a role where it may, on one server."""

    server: "SharedServer"
    run: RunSettings
    embedded: "_KeptLater | None" = None  # the server itself, where the run brought it

    @property
    def ahead(self) -> bool:
        """With a role for each, what one leaves is never taken for another's."""
        return self.server.exact

    async def give(self, number: int, example: Example, network: OpenNetwork | None) -> "_Part":
        """Make a role and databases; a network of the attempt's own is led there."""
        from e2e_runner.postgres.shared import NotGiven

        del network
        definitions = definitions_of(example)
        try:
            given = await self.server.give(number, definitions)
        except NotGiven as error:
            raise NoDatabase(str(error)) from error
        return _Part(
            source=self,
            given=given,
            environment=_environment(
                given.address,
                given.names,
                definitions,
                self.run,
                base=given.base,
                templates=given.clonable,
            ),
        )

    async def close(self) -> None:
        """Nothing goes on in the background."""


class _Part:
    """What one attempt has on a shared server."""

    port_inside = None

    def __init__(self, source: _Shared, given: "Given", *, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._source = source
        self._given = given

    @property
    def services(self) -> Mapping[Endpoint, Endpoint]:
        """The server, where it is; one that the run brought is also where everybody looks for it."""
        address = self._given.address
        if address.host.startswith(("/", "@")):
            return {}
        server = Endpoint(host=address.host, port=address.port)
        usual = Endpoint(host="localhost", port=DEFAULT_PORT)
        return (
            {server: server} if self._source.embedded is None else {server: server, usual: server}
        )

    async def left_behind(self) -> tuple[LeakedDatabase, ...]:
        """List what is attributed to the attempt; what is surely its own is dropped."""
        from e2e_runner.postgres.shared import NotKnown

        try:
            return await self._source.server.left_behind(self._given)
        except NotKnown as error:
            raise NoDatabase(str(error)) from error

    async def release(self, *, keep: Path | None) -> tuple[str, ...]:
        """Drop its databases and its role, or leave them."""
        notes = await self._source.server.take_back(self._given, keep=keep is not None)
        if keep is None:
            return notes
        # Without a definition there is one of no name.
        names = tuple(self._given.names.values()) or (self._given.address.database,)
        embedded = self._source.embedded
        if embedded is not None:
            return (f"its databases are kept ({', '.join(names)}); {embedded.note()}", *notes)
        # The password of a role that all share is none of a report's business.
        own = self._given.role is not None
        kept = [
            f"its database is kept: {to_url(self._given.address, with_password=own, database=name)}"
            for name in names
        ]
        return (*kept, *notes)


class _KeptLater:
    """The run's own server, which is kept at its end when an example left databases there to be looked at."""

    def __init__(self, server: "EmbeddedServer", folder: Path, root: Path) -> None:
        self._server = server
        self._folder = folder
        self._root = root
        self._wanted = False

    def note(self) -> str:
        """Have it kept, and say how to look at it."""
        self._wanted = True
        return f"to look at them, once the run is over: {_command(self._folder, self._root)}"

    async def keep(self) -> str:
        """Keep it if that is wanted; gives what went wrong, in words."""
        if self._wanted and (why_not := await _kept(self._server, self._folder)):
            return f"the databases of the run's server could not be kept: {why_not}"
        return ""


async def _kept(server: "EmbeddedServer", folder: Path) -> str:
    """Keep a server; gives why that was not possible, empty where it was."""
    from e2e_runner.embedded import CannotStart

    try:
        await server.keep(folder)
    except (CannotStart, OSError) as error:
        return str(error)
    return ""


def _command(folder: Path, root: Path) -> str:
    """Give the command that serves a kept server, as it is typed in the project's root."""
    shown = folder.relative_to(root) if folder.is_relative_to(root) else folder
    return f"e2e-run postgres {shlex.quote(shown.as_posix())}"


def _environment(
    address: ServerAddress,
    names: Mapping[str, str],
    definitions: Definitions,
    run: RunSettings,
    *,
    base: str,
    templates: Mapping[str, str] | None = None,
    psql: Path | None = None,
) -> dict[str, str]:
    """Give the variables that tell a script of what it was given, and what it is handed besides."""
    told = variables(address, names, definitions, run.postgres.env)
    handed = Handover(
        base=base,
        address=address,
        prepared=handover.prepare(
            definitions, run.postgres.databases, names=names, templates=templates or {}, base=base
        ),
        env=run.postgres.env,
        root=run.root,
        python=run.python,
        psql=psql,
    )
    return {**told, handover.VARIABLE: handover.encode(handed)}


def with_interpreter(environ: Mapping[str, str], python: str) -> dict[str, str]:
    """Give an environment in which `python` is the interpreter of the examples."""
    folder = os.path.dirname(python)  # noqa: PTH120 - a link is not followed, which is its point
    path = environ.get("PATH", os.defpath)
    return {**environ, "PATH": f"{folder}{os.pathsep}{path}"} if folder else dict(environ)


def _seen(task: asyncio.Task[object]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it gets it again
