"""What runs left on a server that others use too: what may go, and what must stay."""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from e2e_runner.dbnames import KEPT, is_given, recognise, run_of_role
from e2e_runner.model import DatabaseFacts, ServerState
from e2e_runner.postgres.connection import Connection
from e2e_runner.postgres.drop import DropOutcome, drop_database, drop_role
from e2e_runner.postgres.pool import Connections
from e2e_runner.postgres.survey import survey
from e2e_runner.sweep_plan import Candidate, Criteria, attached, idle_roles, judge, protects

# A run that lives takes a lease that it lost again within this time.
_SECOND_LOOK = 1.5
_STATEMENT = 10.0


def of_run(name: str, token: str) -> bool:
    """Tell whether a name carries the token of a run."""
    made = recognise(name)
    return made is not None and made.token == token


def obstacle(database: DatabaseFacts) -> str:
    """Say why even a database that is surely a script's own must stay; empty when it may go."""
    if database.is_template:
        return "it is marked as a template"
    return attached(database)


def obstacle_of_name(name: str, protect: Sequence[str], connected: Collection[str]) -> str:
    """Say why a database of that name must stay whoever made it; empty when it may go."""
    if name == "postgres" or name.startswith("template"):
        return "it has the name of one of the server's own"
    if name in connected:
        return "it is the one that the address names"
    entry = next((each for each in protect if protects(each, name)), None)
    return "" if entry is None else f"postgres.protect names {entry}"


async def drop_dead(
    connections: Connections,
    *,
    protect: tuple[str, ...],
    connected: frozenset[str],
    users: frozenset[str],
    patience: float,
) -> tuple[str, ...]:
    """Drop the databases and roles of runs that died; gives the names of the databases.

    Of what a sweep would drop because its run is over, that which belongs to a role of a run, or to
    one of `users` under the very name that runs give; within about `patience` seconds, and but for
    what was kept on purpose. Raises Unreachable and what asyncpg raises.
    """
    criteria = Criteria(protect=protect, connected=connected)
    state = await connections.run(_look)
    # The sessions of one that has only just died may need a moment to end.
    quiet = replace(state, busy=frozenset())
    if not _dead(quiet, criteria, users) and not idle_roles(quiet, state.databases):
        return ()
    # After a crash or restart of the server, a run that lives may be about to take its lease again.
    await asyncio.sleep(_SECOND_LOOK)
    state = await connections.run(_look)

    dropped: list[str] = []

    async def drop(database: DatabaseFacts) -> None:
        if await connections.run(lambda each: _drop_if_dead(each, database, criteria, users)):
            dropped.append(database.name)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience), asyncio.TaskGroup() as group:
            for database in _dead(state, criteria, users):
                group.create_task(drop(database))
    await connections.run(_drop_idle_roles)
    return tuple(dropped)


def _dead(state: ServerState, criteria: Criteria, users: Collection[str]) -> list[DatabaseFacts]:
    judged = [judge(each, state, criteria) for each in state.databases]
    return [
        each.database
        for each in judged
        if isinstance(each, Candidate)
        and not each.database.kept
        and _was_given(each.database, users)
    ]


def _was_given(database: DatabaseFacts, users: Collection[str]) -> bool:
    """Tell whether a run with a lease made a database, beyond what a name may only look like."""
    if run_of_role(database.owner) is not None:
        return True
    made = recognise(database.name)
    return made is not None and made.leased and is_given(database.name) and database.owner in users


async def _look(connection: Connection) -> ServerState:
    """Survey what carries the mark of a run, by name or by owner."""
    rows = await connection.fetch(
        "SELECT d.oid::int8 AS oid FROM pg_database d LEFT JOIN pg_roles o ON o.oid = d.datdba"
        " WHERE strpos(d.datname, 'e2e_') > 0 OR strpos(o.rolname, 'e2e_') > 0",
        timeout=_STATEMENT,
    )
    return await survey(connection, only=[row["oid"] for row in rows])


async def _drop_if_dead(
    connection: Connection, database: DatabaseFacts, criteria: Criteria, users: Collection[str]
) -> bool:
    state = await survey(connection, only=[database.oid])  # its lease may be there again
    for each in _dead(state, criteria, users):
        result = await drop_database(connection, each.name, force=False, oid=each.oid)
        return result.outcome is DropOutcome.DROPPED
    return False


async def _drop_idle_roles(connection: Connection) -> None:
    rows = await connection.fetch(
        "SELECT rolname FROM pg_roles o WHERE strpos(rolname, 'e2e_') > 0"
        " AND NOT EXISTS (SELECT FROM pg_database WHERE datdba = o.oid)"
        " AND shobj_description(o.oid, 'pg_authid') IS DISTINCT FROM $1 ORDER BY oid DESC",
        KEPT,
        timeout=_STATEMENT,
    )
    own_none = {row["rolname"] for row in rows}
    state = await survey(connection, only=[])
    for role in idle_roles(state, ()):
        if role in own_none:
            await drop_role(connection, role)  # one that still owns something stays
