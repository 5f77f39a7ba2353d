"""A configured server, which others use too: what one run makes there, and takes away again.

Each attempt gets a role of its own where that is allowed: then what it made is known by its owner. A
lease, taken before anything is made, tells other runs and sweeps that this run lives; what
carries its token and no lease is left by a run that died.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import asyncpg

from e2e_runner.dbnames import (
    KEPT,
    attempt_name,
    belongs_to,
    database_names,
    lease_key,
    quote_identifier,
    quote_literal,
    tokens_of,
    unleased_name,
)
from e2e_runner.model import (
    DatabaseDefinition,
    DatabaseFacts,
    LeakedDatabase,
    ServerAddress,
    ServerState,
)
from e2e_runner.postgres.connection import (
    DRIVER_ERRORS,
    Connection,
    ServerFacts,
    Unreachable,
    connected,
    describe,
)
from e2e_runner.postgres.lease import Lease
from e2e_runner.postgres.leftovers import drop_dead, obstacle, obstacle_of_name, of_run
from e2e_runner.postgres.making import STATEMENT, Making, NotGiven, end_sessions, words
from e2e_runner.postgres.pool import Connections
from e2e_runner.postgres.survey import survey
from e2e_runner.postgres.templates import Fill, Template, Templates
from e2e_runner.sweep_plan import matches
from e2e_runner.text import plural

__all__ = ["Given", "NotGiven", "NotKnown", "NotUsable", "SharedServer"]

_LEASE_PATIENCE = 10.0  # seconds, as all of these
_CLEANING_AT_OPEN = 10.0
_CLEANING_AT_EXIT = 30.0
_MOST_CONNECTIONS = 4
_MOST_NAMED = 5  # databases in one line

# A login that fails with these was let in: only the database is missing, or not for everybody.
_LET_IN = frozenset({"3D000", "42501", "55000"})


class NotUsable(Exception):  # noqa: N818 - a finding about the surroundings
    """The server cannot be used for examples; the text says why, `advice` what to do."""

    def __init__(self, reason: str, *advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


class NotKnown(Exception):  # noqa: N818 - a finding about the surroundings
    """What an attempt left behind cannot be known; the text says why, in one clause."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """What one attempt was given."""

    address: ServerAddress  # as whom it logs in, and its first database
    names: Mapping[str, str]  # of its databases, by definition
    number: int
    base: str  # what the names of its role and databases begin with
    role: str | None  # None: it shares a user with others, see `SharedServer.exact`
    role_oid: int | None
    templates: frozenset[str]  # roles that own what was cloned
    clonable: Mapping[str, str]  # templates that its user owns and may clone too, by definition
    made: frozenset[str]  # names of the databases that were made for it
    oids: frozenset[int]  # of those
    before: frozenset[int]  # of the databases that there were


class SharedServer:
    """One server, for one run. Opened with `open`."""

    def __init__(
        self,
        address: ServerAddress,
        *,
        route: ServerAddress,
        facts: ServerFacts,
        token: str,
        pooled: bool,
        patterns: tuple[str, ...],
        protect: tuple[str, ...],
        fill: Fill,
        warn: Callable[[str], None],
    ) -> None:
        """Note everything; nothing is done before `open`."""
        self.facts = facts  # as the user sees it who creates and drops
        self.pooled = pooled  # whether the scripts reach it through a pooler
        self._address = address
        self._route = route
        self._token = token
        self._patterns = patterns
        self._protect = protect
        self._fill = fill
        self._warn = warn
        self._lease: Lease | None = None
        self._has_roles = False
        self._may_pass_by = False  # whether the users of the scripts may come past the pooler
        # Behind a pooler a setting would be that of whoever gets the connection next.
        settings = () if facts.pooled else ("SET statement_timeout = 0", "SET lock_timeout = 0")
        most = max(1, min(_MOST_CONNECTIONS, facts.free_connections // 2))
        self._admin = Connections(route, most=most, settings=settings)
        self._making = Making(self._admin, facts)
        self._templates: Templates | None = None
        self._live: set[Given] = set()
        self._accompanied: set[Given] = set()  # that ran at the same time as others
        self._kept: set[str] = set()  # names of databases and roles
        self._told: set[str] = set()  # of databases and roles that could not be dropped

    @property
    def exact(self) -> bool:
        """Whether each attempt has a role of its own, by which what it made is known."""
        return self._has_roles

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        address: ServerAddress,
        *,
        admin: ServerAddress | None,
        token: str,
        patterns: tuple[str, ...],
        protect: tuple[str, ...],
        fill: Fill,
        warn: Callable[[str], None],
    ) -> AsyncIterator[Self]:
        """Use a server for the length of the block; what the run made there is then dropped.

        Scripts get `address`; what is created and dropped goes through `admin`, where there is one.
        `fill` fills a template, see `fill.fill`. `warn` is told what is worth a line, at once, such as
        a lease that was lost. Raises Unreachable and NotUsable.
        """
        route = admin or address
        async with connected(route) as connection:
            facts = await _described(connection, route)
        pooled = facts.pooled
        if admin is not None:
            async with connected(address) as connection:
                pooled = (await _described(connection, address)).pooled
        _refuse_unusable(facts, route)
        server = cls(
            address,
            route=route,
            facts=facts,
            token=token,
            pooled=pooled,
            patterns=patterns,
            protect=protect,
            fill=fill,
            warn=warn,
        )
        async with contextlib.AsyncExitStack() as held:
            if facts.pooled:
                warn(
                    f"{route} is reached through a pooler, where leases mean nothing: give "
                    "postgres.admin-url an address past it"
                )
            else:
                lease = Lease.hold(route, token, warn=warn)
                server._lease = await held.enter_async_context(lease)
            held.push_async_callback(server._close)
            await server._choose_users()
            if not facts.pooled:
                await server._clean_up_after_the_dead()
            yield server

    # --- opening -----------------------------------------------------------------------------------

    async def _choose_users(self) -> None:
        self._has_roles = await self._can_have_roles()
        if not self._has_roles:
            await self._check_shared_user()
        address = self._address
        if self._may_pass_by:
            address = replace(self._route, user=address.user, password=address.password)
        self._templates = Templates(
            self._making,
            self._fill,
            address=address,
            prefix=f"{self._name(0)}_t",
            has_roles=self._has_roles,
        )

    async def _can_have_roles(self) -> bool:
        """Try whether each attempt can have a role of its own."""
        if not self.facts.may_create_roles:
            return False
        name = f"{self._name(0)}_probe"
        password = secrets.token_urlsafe(24)

        async def make(connection: Connection) -> bool:
            await self._making.make_role(connection, name, password, "LOGIN CREATEDB")
            return bool(
                await connection.fetchval(
                    "SELECT pg_has_role(current_user, $1::name, 'USAGE')", name
                )
            )

        try:
            inherits = await self._making.make(make, roles=[name])
            login = replace(self._address, user=name, password=password)
            if not inherits or await self._login(login, name):
                return False
            self._may_pass_by = self._address is not self._route and not await self._login(
                replace(self._route, user=name, password=password), name
            )
        except NotGiven:
            return False
        finally:
            await self._making.drop_all([], [name])
        return True

    async def _check_shared_user(self) -> None:
        """See that databases can be made for the address's own user. Raises NotUsable."""
        user = self._address.user

        async def may(connection: Connection) -> bool:
            return bool(
                await connection.fetchval(
                    "SELECT pg_has_role(current_user, $1::name, $2)"
                    " AND pg_has_role(current_user, $1::name, 'USAGE')",
                    user,
                    self._making.right_to_own,
                )
            )

        if user != self.facts.user:
            try:
                allowed = await self._making.run(may)
            except NotGiven as error:
                raise NotUsable(str(error)) from error
            if not allowed:
                raise NotUsable(
                    f"user {self.facts.user} of postgres.admin-url may not make databases for {user}",
                    f"As a superuser: GRANT {quote_identifier(user)} TO "
                    f"{quote_identifier(self.facts.user)}",
                )
            self._may_pass_by = not await self._login(
                replace(self._route, user=user, password=self._address.password), user
            )
        if not self.pooled and (refused := await self._login(self._address, self._name(0))):
            raise NotUsable(
                f"user {user} is not let into new databases: {refused}",
                f"Let {user} into databases named test_e2e_* in the server's pg_hba.conf.",
            )

    async def _login(self, address: ServerAddress, database: str) -> str:
        """Try to log in; gives why not. Past a pooler, `database` need not exist."""
        if self.pooled and (address.host, address.port) == (
            self._address.host,
            self._address.port,
        ):
            database = self._address.database
        try:
            async with connected(address, database=database):
                return ""
        except Unreachable as error:
            state = getattr(error.__cause__, "sqlstate", None)
            return "" if state in _LET_IN else str(error)

    async def _clean_up_after_the_dead(self) -> None:
        """Drop what runs left that died; as much as there is time for, and never an error."""
        try:
            dropped = await drop_dead(
                self._admin,
                protect=self._protect,
                connected=frozenset({self._address.database, self._route.database}),
                users=frozenset({self._address.user, self._route.user}),
                patience=_CLEANING_AT_OPEN,
            )
        except Exception as error:  # noqa: BLE001 - a service to others; this run can do without
            self._warn(f"what earlier runs left could not be looked for: {words(error)}")
            return
        if dropped:
            self._warn(f"dropped {_some(dropped)}, which a run that died had left")

    # --- giving ------------------------------------------------------------------------------------

    async def give(self, number: int, definitions: Sequence[DatabaseDefinition]) -> Given:
        """Make a role, where there can be one, and databases for attempt `number` of the run.

        Without definitions it is one database. Raises NotGiven.
        """
        if self._lease is not None and not await self._lease.wait(_LEASE_PATIENCE):
            raise NotGiven(
                f"the lease on {self._route} was lost, and could not be taken again within "
                f"{_LEASE_PATIENCE:g} s"
            )
        base = self._name(number)
        if self._templates is None:
            raise AssertionError("it is open")
        templates = {each.name: await self._templates.get(each) for each in definitions}
        names = database_names(base, definitions)
        wanted = {name: templates[key] for key, name in names.items()} or {base: None}
        roles = [base] if self._has_roles else []
        try:
            given = await self._making.make(
                lambda connection: self._make(connection, number, names, wanted),
                databases=wanted,
                roles=roles,
            )
            if self.pooled:
                await self._see_through_the_pooler(given)
        except NotGiven:
            await self._making.drop_all(wanted, roles)
            raise
        finally:
            self._pass_on_notes()
        if self._live:
            self._accompanied |= self._live | {given}
        self._live.add(given)
        return given

    async def _make(
        self,
        connection: Connection,
        number: int,
        names: Mapping[str, str],
        wanted: Mapping[str, Template | None],
    ) -> Given:
        base = self._name(number)
        roles = frozenset(each.role for each in wanted.values() if each and each.role)
        login = replace(self._address, database=next(iter(wanted)))
        role = None
        if self._has_roles:
            role, password = base, secrets.token_urlsafe(24)
            await self._making.make_role(connection, role, password, "LOGIN CREATEDB", within=roles)
            login = replace(login, user=role, password=password)
        for name, template in wanted.items():
            source = template.name if template else None
            await self._making.make_database(connection, name, owner=login.user, template=source)
        role_oid = await connection.fetchval(
            "SELECT oid::int8 FROM pg_roles WHERE rolname = $1", role, timeout=STATEMENT
        )
        rows = await connection.fetch(
            "SELECT oid::int8 AS oid, datname = ANY ($1::name[]) AS ours FROM pg_database",
            list(wanted),
            timeout=STATEMENT,
        )
        return Given(
            address=login,
            names=names,
            number=number,
            base=base,
            role=role,
            role_oid=role_oid,
            templates=roles,
            clonable={
                key: template.name
                for key, name in names.items()
                if (template := wanted[name]) is not None and template.role is None
            },
            made=frozenset(wanted),
            oids=frozenset(row["oid"] for row in rows if row["ours"]),
            before=frozenset(row["oid"] for row in rows),
        )

    async def _see_through_the_pooler(self, given: Given) -> None:
        try:
            async with connected(given.address):
                pass
        except Unreachable as error:
            raise NotGiven(
                f"the pooler does not lead to new databases: {error}; its [databases] needs an "
                "entry for all names, as in: * = host=... port=..."
            ) from error

    # --- what an attempt leaves ----------------------------------------------------------------------

    async def left_behind(self, given: Given) -> tuple[LeakedDatabase, ...]:
        """List the databases that an attempt left, once nothing of it runs any more.

        What is surely its own is dropped. Raises NotKnown where the server cannot be asked.
        """
        self._live.discard(given)
        look = self._appeared if given.role is None else self._owned
        try:
            found = await self._making.run(lambda connection: look(connection, given))
        except NotGiven as error:
            raise NotKnown(str(error)) from error
        disposed = await asyncio.gather(
            *(self._dispose(each, given, found) for each in found.databases)
        )
        return tuple(each for each in disposed if each is not None)

    async def _owned(self, connection: Connection, given: Given) -> ServerState:
        # A session that is still there may be creating one.
        await end_sessions(connection, "usesysid = $1::int8::oid", given.role_oid)
        rows = await connection.fetch(
            "SELECT oid::int8 AS oid FROM pg_database"
            " WHERE datdba = $1::int8::oid AND datname <> ALL ($2::name[])",
            given.role_oid,
            list(given.made),
            timeout=STATEMENT,
        )
        oids = {row["oid"] for row in rows} - given.oids
        if given not in self._accompanied:
            # A script may make a database for a role that it is a member of, as others may.
            rows = await connection.fetch(
                "SELECT d.oid::int8 AS oid FROM pg_database d JOIN pg_roles o ON o.oid = d.datdba"
                " WHERE o.rolname = ANY ($1::name[]) AND d.datname <> ALL ($1::name[])",
                list(given.templates),
                timeout=STATEMENT,
            )
            oids |= {row["oid"] for row in rows} - given.before
        return await _state(connection, oids)

    async def _appeared(self, connection: Connection, given: Given) -> ServerState:
        # Those that this user cannot have made are left out.
        rows = await connection.fetch(
            "SELECT oid::int8 AS oid FROM pg_database"
            " WHERE datname <> ALL ($1::name[]) AND pg_has_role($2::name, datdba, 'MEMBER')",
            list(given.made),
            given.address.user,
            timeout=STATEMENT,
        )
        oids = {row["oid"] for row in rows} - given.before - given.oids
        state = await _state(connection, oids)
        if not oids:
            return state
        marked = await connection.fetch(
            "SELECT d.datname, o.rolname FROM pg_database d LEFT JOIN pg_roles o ON o.oid = d.datdba"
            " WHERE strpos(d.datname, 'e2e_') > 0 OR strpos(o.rolname, 'e2e_') > 0",
            timeout=STATEMENT,
        )
        tokens = tokens_of(name for row in marked for name in row if name is not None)
        tokens |= tokens_of(state.roles)
        live = {each for each in tokens if lease_key(each) in state.leases}
        return replace(state, busy=state.busy | live)

    async def _dispose(
        self, facts: DatabaseFacts, given: Given, state: ServerState
    ) -> LeakedDatabase | None:
        """Drop a database that was left where that is right; None where another made it."""
        verdict = self._judge(facts, given, others=bool(state.busy - {self._token}))
        if verdict is None:
            return None
        doubt, kept = verdict
        kept = kept or self._protected(facts.name)
        if not kept:
            try:
                kept = await self._making.run(
                    lambda connection: self._making.drop_database(
                        connection, facts.name, force=not doubt
                    )
                )
            except NotGiven as error:
                kept = str(error)
            if kept:
                kept = f"it could not be dropped: {kept}"
        return LeakedDatabase(name=facts.name, owner=facts.owner, doubt=doubt, kept=kept)

    def _judge(self, facts: DatabaseFacts, given: Given, *, others: bool) -> tuple[str, str] | None:
        """Give the doubt whether an attempt made a database, and why it stays; None: it did not.

        `others` says whether other runs live on the server.
        """
        if given.role is not None:
            return "", obstacle(facts)
        if tokens_of((facts.name, facts.owner)) - {self._token}:
            return None
        if of_run(facts.name, self._token):
            # Made by this run, or by a script from the name that it was given.
            return ("", obstacle(facts)) if belongs_to(facts.name, given.base) else None
        user = given.address.user
        doubt = f"it appeared while the example ran, and others may act as {user} too"
        examples = [each for each in self._live if facts.oid not in each.before]
        if examples:
            doubt = f"{plural(len(examples), 'other example')} ran as {user} at that time"
            return doubt, "another example that is still running may have made it"
        why = self._why_doubtful_stays(facts, user)
        return doubt, why or ("another run may have made it" if others else "")

    def _why_doubtful_stays(self, facts: DatabaseFacts, user: str) -> str:
        if facts.owner != user:
            return f"it belongs to {facts.owner}"
        if not any(matches(pattern, facts.name) for pattern in self._patterns):
            return "its name matches none of postgres.patterns"
        if facts.sessions:
            return f"it has {plural(facts.sessions, 'session')}"
        if not facts.allows_connections:
            return "it allows no connections, which somebody decided"
        return obstacle(facts)

    def _protected(self, name: str) -> str:
        return obstacle_of_name(name, self._protect, {self._address.database, self._route.database})

    # --- taking back ---------------------------------------------------------------------------------

    async def take_back(self, given: Given, *, keep: bool) -> tuple[str, ...]:
        """Drop what an attempt was given, or `keep` it; gives notes about what was kept.

        What could not be dropped is a warning.
        """
        self._live.discard(given)
        self._accompanied.discard(given)
        try:
            if keep:
                await self._making.run(lambda connection: self._keep(connection, given))
                return ()
            stays, notes = await self._making.run(lambda connection: self._drop(connection, given))
        except NotGiven as error:
            self._told |= given.made | ({given.role} if given.role else set())
            self._stays(given.base, str(error))
            return ()
        for what, name, why in stays:
            self._told.add(name)
            self._stays(f"{what} {name}", why)
        return notes

    def _stays(self, what: str, why: str) -> None:
        self._warn(f"{what} stays: {why}; to drop it later: e2e-run sweep-dbs")

    async def _keep(self, connection: Connection, given: Given) -> None:
        self._kept |= given.made | given.templates | ({given.role} if given.role else set())
        roles = [*given.templates, *([given.role] if given.role else [])]
        marked = [*(("DATABASE", each) for each in given.made), *(("ROLE", each) for each in roles)]
        for kind, name in marked:
            # So that the next run, which finds no lease, does not take it for forgotten.
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute(
                    f"COMMENT ON {kind} {quote_identifier(name)} IS {quote_literal(KEPT)}",
                    timeout=STATEMENT,
                )

    async def _drop(
        self, connection: Connection, given: Given
    ) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
        """Give what stays and why, and notes on what does because something was kept."""
        rows = await connection.fetch(
            "SELECT datname FROM pg_database"
            " WHERE datname = ANY ($1::name[]) OR oid = ANY ($2::int8[]::oid[])",
            list(given.made),
            list(given.oids),  # a script may rename its database
            timeout=STATEMENT,
        )
        stays = []
        notes = []
        for row in rows:
            name = row["datname"]
            if await self._making.drop_database(connection, name):
                await self._let_go(connection, given, name)
                if why := await self._making.drop_database(connection, name):
                    stays.append(("database", name, why))
        if given.role is not None:
            await end_sessions(connection, "usesysid = $1::int8::oid", given.role_oid)
            if why := await self._making.drop_role(connection, given.role):
                self._told.add(given.role)
                if not stays and await self._owns_databases(connection, given.role):
                    notes.append(f"role {given.role} stays: {why}")
                else:
                    stays.append(("role", given.role, why))
                with contextlib.suppress(asyncpg.PostgresError):
                    await connection.execute(
                        f"ALTER ROLE {quote_identifier(given.role)} NOLOGIN", timeout=STATEMENT
                    )
        return stays, tuple(notes)

    async def _owns_databases(self, connection: Connection, role: str) -> bool:
        sql = "SELECT EXISTS (SELECT FROM pg_database WHERE pg_get_userbyid(datdba) = $1)"
        return bool(await connection.fetchval(sql, role, timeout=STATEMENT))

    async def _let_go(self, connection: Connection, given: Given, name: str) -> None:
        """Undo what a script did to a database of its own so that it cannot be dropped."""
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute(
                f"ALTER DATABASE {quote_identifier(name)} IS_TEMPLATE false", timeout=STATEMENT
            )
        prepared = await connection.fetch(
            "SELECT gid FROM pg_prepared_xacts WHERE database = $1", name, timeout=STATEMENT
        )
        if prepared:
            login = replace(given.address, database=name)
            with contextlib.suppress(Unreachable, *DRIVER_ERRORS):
                async with connected(login) as inside:
                    for row in prepared:
                        await inside.execute(
                            f"ROLLBACK PREPARED {quote_literal(row['gid'])}", timeout=STATEMENT
                        )

    async def _close(self) -> None:
        """Drop whatever of this run is still there, but for what was kept on purpose."""
        if self._templates is not None:
            await self._templates.close()
        try:
            async with asyncio.timeout(_CLEANING_AT_EXIT):
                await self._making.run(self._drop_rest)
        except (NotGiven, TimeoutError) as error:
            self._warn(
                f"what the run made may still be there, for e2e-run sweep-dbs: {words(error)}"
            )
        finally:
            await self._admin.close()

    async def _drop_rest(self, connection: Connection) -> None:
        # The server goes on with what was cancelled here, such as a CREATE DATABASE.
        await end_sessions(
            connection,
            "strpos(usename, $1) > 0 OR (usename = current_user AND state = 'active'"
            " AND strpos(query, $1) > 0 AND pid <> pg_backend_pid())",
            f"e2e_{self._token}",
        )
        rows = await connection.fetch(
            "SELECT d.oid::int8 AS oid FROM pg_database d LEFT JOIN pg_roles o ON o.oid = d.datdba"
            " WHERE strpos(d.datname, $1) > 0 OR strpos(o.rolname, $1) > 0",
            f"e2e_{self._token}",
            timeout=STATEMENT,
        )
        for facts in await _facts(connection, {row["oid"] for row in rows}):
            if facts.name in self._kept:
                continue
            made = of_run(facts.name, self._token)
            if not made and (obstacle(facts) or self._protected(facts.name)):
                continue  # it was reported
            why = await self._making.drop_database(connection, facts.name)
            if why and facts.name not in self._told:
                self._told.add(facts.name)
                self._stays(f"database {facts.name}", why)
            elif not why and not made:
                self._warn(
                    f"dropped {facts.name}, which an example left; it belonged to {facts.owner}, and "
                    "which example made it is not known"
                )
        roles = await connection.fetch(
            "SELECT rolname FROM pg_roles WHERE strpos(rolname, $1) > 0 ORDER BY oid DESC",
            f"e2e_{self._token}",
            timeout=STATEMENT,
        )
        for row in roles:
            name = row["rolname"]
            if name in self._kept or not of_run(name, self._token):
                continue
            why = await self._making.drop_role(connection, name)
            if why and name not in self._told:
                self._told.add(name)
                self._stays(f"role {name}", why)

    def _pass_on_notes(self) -> None:
        while self._making.notes:
            self._warn(self._making.notes.pop(0))

    # --- helpers -----------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        if self.facts.pooled:
            return unleased_name(self._token, number)
        return attempt_name(self._token, number)


def _refuse_unusable(facts: ServerFacts, route: ServerAddress) -> None:
    """Raise NotUsable for a server where nothing can be made."""
    embedded = "Or let e2e-run bring its own server: --postgres embedded."
    if facts.read_only:
        raise NotUsable(
            f"{route} is a standby or read-only",
            "Name the primary server, as whose user default_transaction_read_only is off.",
            embedded,
        )
    if not facts.may_create_databases:
        raise NotUsable(
            f"user {facts.user} may not create databases on {route}",
            f"As a superuser: ALTER ROLE {quote_identifier(facts.user)} CREATEDB CREATEROLE",
            "Or give postgres.admin-url a user who may.",
            embedded,
        )


async def _described(connection: Connection, address: ServerAddress) -> ServerFacts:
    try:
        async with asyncio.timeout(STATEMENT):
            return await describe(connection)
    except DRIVER_ERRORS as error:
        raise Unreachable(f"{address}: {words(error)}") from error


async def _facts(connection: Connection, oids: Collection[int]) -> tuple[DatabaseFacts, ...]:
    return (await _state(connection, oids)).databases


async def _state(connection: Connection, oids: Collection[int]) -> ServerState:
    if not oids:
        return ServerState(databases=(), leases=frozenset(), roles=(), now=0.0)
    return await survey(connection, only=oids)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
