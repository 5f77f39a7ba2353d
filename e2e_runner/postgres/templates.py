"""The filled databases of a run, each made once, that attempts get clones of."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from e2e_runner.dbnames import quote_identifier, recognise
from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres.connection import Connection
from e2e_runner.postgres.fill import FillFailed
from e2e_runner.postgres.making import STATEMENT, Making, NotGiven, end_sessions

Fill = Callable[[ServerAddress, DatabaseDefinition], Awaitable[None]]  # raises FillFailed

_Content = tuple[tuple[Path, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A database to clone, and the role that owns what is in it, of which attempts are members."""

    name: str
    role: str | None  # None: the user whom all attempts share


class Templates:
    """Makes templates at their first use, called `prefix` and a number."""

    def __init__(
        self,
        making: Making,
        fill: Fill,
        *,
        address: ServerAddress,
        prefix: str,
        has_roles: bool,
    ) -> None:
        """Make none yet; they are filled through `address`."""
        self._making = making
        self._fill = fill
        self._address = address
        self._prefix = prefix
        self._has_roles = has_roles
        self._made: dict[_Content, asyncio.Task[Template]] = {}
        self._building = asyncio.Lock()
        self._closed = False
        self._there: dict[int, str] | None = None

    async def get(self, definition: DatabaseDefinition) -> Template | None:
        """Give the template of a definition; None where nothing fills it. Raises NotGiven."""
        if not definition.template and not definition.command:
            return None
        if self._closed:
            raise NotGiven("the run is ending")
        # The command is told the variables, and may go by them.
        content = (definition.template, definition.command, definition.env)
        if content not in self._made:
            name = f"{self._prefix}{len(self._made) + 1}"
            self._made[content] = asyncio.create_task(self._make(name, definition))
        # Shielded: it is made for all, whoever of them is cancelled.
        return await asyncio.shield(self._made[content])

    async def close(self) -> None:
        """Stop making; what there is, is left to the end of the run."""
        self._closed = True
        for task in self._made.values():
            task.cancel()
        await asyncio.gather(*self._made.values(), return_exceptions=True)

    async def _make(self, name: str, definition: DatabaseDefinition) -> Template:
        address = replace(self._address, database=name)
        if self._has_roles:
            address = replace(address, user=name, password=secrets.token_urlsafe(24))
        role = address.user if self._has_roles else None
        roles = [] if role is None else [role]
        async with self._building:  # one at a time: they share a log
            try:
                await self._making.make(
                    lambda connection: self._begin(connection, address, role),
                    databases=[name],
                    roles=roles,
                )
                await self._filled(address, definition)
                await self._making.run(lambda connection: self._finish(connection, name, role))
            except (FillFailed, NotGiven) as error:
                await self._making.drop_all([name], roles)
                raise NotGiven(str(error)) from error
        return Template(name=name, role=role)

    async def _begin(
        self, connection: Connection, address: ServerAddress, role: str | None
    ) -> None:
        if role is not None:
            # Never a superuser, nor one who may make anything outside: a dump made with -C -c
            # would drop the database that it is of.
            await self._making.make_role(connection, role, address.password or "", "LOGIN")
        await self._making.make_database(connection, address.database, owner=address.user)

    async def _filled(self, address: ServerAddress, definition: DatabaseDefinition) -> None:
        """Fill, and see that nothing else was dropped where the rights do not prevent that."""
        if self._has_roles:
            await self._fill(address, definition)
            return
        before = await self._databases()
        if self._there is None:
            self._there = before
        reason = ""
        try:
            await self._fill(address, definition)
        except FillFailed as error:
            reason = f"; besides, {error}"
        after = await self._databases()
        # What was made since the run began may be a script's, which drops what it made.
        gone = [
            before[oid]
            for oid in sorted((before.keys() & self._there.keys()) - after.keys())
            if recognise(before[oid]) is None
        ]
        if gone:
            raise FillFailed(
                f"while the template of database {definition.name!r} was filled, "
                f"{', '.join(map(repr, gone))} vanished from the server, which cannot be undone: see "
                "whether its command or its files drop what user "
                f"{address.user} owns, and give a user who may create roles{reason}"
            )
        if reason:
            raise FillFailed(reason.removeprefix("; besides, "))

    async def _databases(self) -> dict[int, str]:
        """Give the databases of the server, by oid."""

        async def ask(connection: Connection) -> dict[int, str]:
            rows = await connection.fetch(
                "SELECT oid::int8 AS oid, datname FROM pg_database", timeout=STATEMENT
            )
            return {row["oid"]: row["datname"] for row in rows}

        return await self._making.run(ask)

    async def _finish(self, connection: Connection, name: str, role: str | None) -> None:
        database = quote_identifier(name)
        statements = []
        if role is not None:
            statements = [
                # Attempts may do with the role's objects as they like, but not with the template.
                f"ALTER DATABASE {database} OWNER TO CURRENT_USER",
                f"ALTER ROLE {quote_identifier(role)} NOLOGIN",
            ]
        # A session in it would make every clone fail, and a limit does not hold off superusers.
        statements += [f"ALTER DATABASE {database} ALLOW_CONNECTIONS false"]
        for statement in statements:
            await connection.execute(statement, timeout=STATEMENT)
        await end_sessions(connection, "datname = $1", name)
