"""Makes roles and databases on a server, and drops them, over a few connections."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import asyncpg

from e2e_runner.dbnames import quote_identifier, quote_literal
from e2e_runner.postgres.connection import DRIVER_ERRORS, Connection, ServerFacts, Unreachable
from e2e_runner.postgres.drop import DropOutcome, drop_database, drop_role, explain
from e2e_runner.postgres.pool import Connections
from e2e_runner.postgres.scram import verifier

STATEMENT = 60.0  # seconds for one of ours; CREATE DATABASE waits for a checkpoint

_SESSIONS_END = 5.0
_PAUSE = 0.02
_FIRST_WITH_STRATEGY = 150000
_FIRST_WITH_GRANT_OPTIONS = 160000

_T = TypeVar("_T")


class NotGiven(Exception):  # noqa: N818 - a finding about the surroundings
    """An attempt cannot be given its databases; the text says why, in one clause."""


class Making:
    """Makes and drops on one server, as a user of whom `facts` tell."""

    def __init__(self, connections: Connections, facts: ServerFacts) -> None:
        """Do nothing yet."""
        self.connections = connections
        self.facts = facts
        self.notes: list[str] = []  # what is worth a line, such as a template1 that is in use
        self._source = ""  # of new databases, as CREATE DATABASE takes it; empty: template1

    @property
    def right_to_own(self) -> str:
        """The right to a role without which no database can be made for it."""
        return "SET" if self._grants_have_options else "MEMBER"

    @property
    def _grants_have_options(self) -> bool:
        return self.facts.version_number >= _FIRST_WITH_GRANT_OPTIONS

    async def run(self, work: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Do work on a connection, anew where that breaks. Raises NotGiven."""
        try:
            return await self.connections.run(work)
        except (Unreachable, *DRIVER_ERRORS) as error:
            raise NotGiven(words(error)) from error

    async def make(
        self,
        work: Callable[[Connection], Awaitable[_T]],
        *,
        databases: Collection[str] = (),
        roles: Collection[str] = (),
    ) -> _T:
        """Do work that makes these; what it had made when the connection broke is dropped first.

        Raises NotGiven.
        """
        tried = False

        async def anew(connection: Connection) -> _T:
            nonlocal tried
            if tried:
                # Not over another connection: all of them may be held by those who are here.
                await self._drop(connection, databases, roles)
            tried = True
            return await work(connection)

        return await self.run(anew)

    async def make_role(
        self,
        connection: Connection,
        name: str,
        password: str,
        rights: str,
        *,
        within: Collection[str] = (),
    ) -> None:
        """Make a role that is a member of those `within`, whose databases we may make and drop."""
        role = quote_identifier(name)
        stored = verifier(password) if self.facts.stores_scram else password
        sql = f"CREATE ROLE {role} {rights} PASSWORD {quote_literal(stored)}"
        if not self.facts.superuser and not self._grants_have_options:
            sql += " ROLE CURRENT_USER"
        if within:
            sql += f" IN ROLE {', '.join(map(quote_identifier, within))}"
        await connection.execute(sql, timeout=STATEMENT)
        if not self.facts.superuser and self._grants_have_options:
            await connection.execute(
                f"GRANT {role} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE", timeout=STATEMENT
            )

    async def make_database(
        self, connection: Connection, name: str, *, owner: str, template: str | None = None
    ) -> None:
        """Make a database, as a clone of `template` where one is given.

        Else it is one of template1, or of template0 for the rest of the run once a session in
        template1 was in the way: that waits for seconds, and would block each attempt.
        """
        sql = f"CREATE DATABASE {quote_identifier(name)} OWNER {quote_identifier(owner)}"
        if self.facts.version_number >= _FIRST_WITH_STRATEGY:
            sql += " STRATEGY FILE_COPY"
        if template is not None:
            sql += f" TEMPLATE {quote_identifier(template)}"
        tried = self._source
        try:
            await connection.execute(sql if template else sql + tried, timeout=STATEMENT)
        except asyncpg.ObjectInUseError:
            if template is not None or tried:
                raise
            await self._turn_to_template0(connection)
            await connection.execute(sql + self._source, timeout=STATEMENT)

    async def _turn_to_template0(self, connection: Connection) -> None:
        sessions = await connection.fetch(
            "SELECT pid, usename, application_name FROM pg_stat_activity"
            " WHERE datname = 'template1' ORDER BY backend_start LIMIT 3",
            timeout=STATEMENT,
        )
        usual = await connection.fetchrow(
            "SELECT pg_encoding_to_char(one.encoding) AS encoding, one.datcollate, one.datctype,"
            " one.encoding = zero.encoding AND one.datcollate = zero.datcollate"
            " AND one.datctype = zero.datctype AS alike"
            " FROM pg_database one, pg_database zero"
            " WHERE one.datname = 'template1' AND zero.datname = 'template0'",
            timeout=STATEMENT,
        )
        source = " TEMPLATE template0"
        if usual is not None and not usual["alike"]:
            source += (
                f" ENCODING {quote_literal(usual['encoding'])}"
                f" LC_COLLATE {quote_literal(usual['datcollate'])}"
                f" LC_CTYPE {quote_literal(usual['datctype'])}"
            )
        if self._source:  # another found out meanwhile
            return
        self._source = source
        who = ", ".join(
            f"{each['usename']} ({each['application_name'] or 'unnamed'}, pid {each['pid']})"
            for each in sessions
        )
        self.notes.append(
            f"template1 is in use{f' by {who}' if who else ''}: new databases are clones of "
            "template0 instead, without what was put into template1; end sessions there before a run"
        )

    async def drop_database(self, connection: Connection, name: str, *, force: bool = True) -> str:
        """Drop a database; gives why it stays, empty where it is gone. Raises what a loss raises."""
        result = await drop_database(connection, name, force=force)
        if result.outcome is not DropOutcome.FAILED:
            return ""
        _see_that_it_lives(connection)
        return result.reason

    async def drop_role(self, connection: Connection, name: str) -> str:
        """Drop a role, as `drop_database` does."""
        result = await drop_role(connection, name)
        if result.outcome is not DropOutcome.FAILED:
            return ""
        _see_that_it_lives(connection)
        return result.reason

    async def drop_all(self, databases: Collection[str], roles: Collection[str]) -> None:
        """Drop what was made in vain; what does not go is left to the end of the run."""
        with contextlib.suppress(NotGiven):
            await self.run(lambda connection: self._drop(connection, databases, roles))

    async def _drop(
        self, connection: Connection, databases: Collection[str], roles: Collection[str]
    ) -> None:
        for name in databases:
            await self.drop_database(connection, name)
        for name in roles:
            await self.drop_role(connection, name)


async def end_sessions(connection: Connection, which: str, value: object) -> None:
    """End the sessions for which the condition `which` of $1 holds, and see them off for a while."""
    deadline = asyncio.get_running_loop().time() + _SESSIONS_END
    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
        while await connection.fetchval(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {which}",  # noqa: S608 - conditions of this package
            value,
            timeout=STATEMENT,
        ):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_PAUSE)


def words(error: BaseException) -> str:
    """Say in a clause what an error of the driver means."""
    match error:
        case TimeoutError():
            return str(error) or "the server does not answer"
        case asyncpg.PostgresError():
            return explain(error)
        case _:
            return str(error) or type(error).__name__


def _see_that_it_lives(connection: Connection) -> None:
    """Raise where a failure was one of the connection, so that the work is begun anew."""
    if connection.is_closed():
        raise ConnectionResetError("the connection to the server was lost")
