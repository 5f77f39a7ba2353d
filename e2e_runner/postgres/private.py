"""Databases that one attempt makes for itself, as on a server that it does not share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace

from e2e_runner.dbnames import quote_identifier
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import DRIVER_ERRORS, Connection, Unreachable, connected
from e2e_runner.postgres.drop import DropOutcome, drop_database

_PATIENCE = 30.0  # seconds for everything that is asked at once
_FIRST_WITH_STRATEGY = 15  # major version


async def make_database(admin: ServerAddress, name: str, *, template: str | None = None) -> None:
    """Make a database, empty or as a clone of `template`. Raises Unreachable."""
    async with _asking(admin) as connection:
        await _create(connection, name, template)


async def way_in(address: ServerAddress, databases: Sequence[str]) -> ServerAddress:
    """Give the address with the first of the databases that lets us in. Raises Unreachable."""
    *others, last = databases
    for name in others:
        with contextlib.suppress(Unreachable):
            async with connected(address, database=name):
                return replace(address, database=name)
    async with connected(address, database=last):
        return replace(address, database=last)


async def drop_databases(admin: ServerAddress, names: Collection[str]) -> dict[str, str]:
    """Drop databases, with their sessions; gives those that stay, and why. Raises Unreachable."""
    stays = {}
    async with _asking(admin) as connection:
        for name in names:
            result = await drop_database(connection, name, force=True)
            if result.outcome is DropOutcome.FAILED:
                stays[name] = result.reason
    return stays


async def make_databases(admin: ServerAddress, wanted: Mapping[str, str | None]) -> frozenset[int]:
    """Make databases, each of a template or empty; gives the oids of all that there are then.

    A template that nobody needs again is renamed, which takes no time. Raises Unreachable.
    """
    made: dict[str, str] = {}
    async with _asking(admin) as connection:
        for name, template in wanted.items():
            if template is None or template in made:
                await _create(connection, name, template and made[template])
            else:
                old, new = quote_identifier(template), quote_identifier(name)
                await connection.execute(f"ALTER DATABASE {old} RENAME TO {new}")
                made[template] = name
        rows = await connection.fetch("SELECT oid FROM pg_database")
    return frozenset(row["oid"] for row in rows)


async def databases_beyond(admin: ServerAddress, known: frozenset[int]) -> dict[str, str]:
    """Give the databases that are not among the oids `known`: name -> owner. Raises Unreachable."""
    async with _asking(admin) as connection:
        rows = await connection.fetch(
            "SELECT d.oid, datname, coalesce(rolname, '') AS owner"
            " FROM pg_database d LEFT JOIN pg_roles r ON r.oid = datdba ORDER BY d.oid"
        )
    return {row["datname"]: row["owner"] for row in rows if row["oid"] not in known}


async def _create(connection: Connection, name: str, template: str | None) -> None:
    sql = f"CREATE DATABASE {quote_identifier(name)}"
    if template is not None:
        sql += f" TEMPLATE {quote_identifier(template)}"
    if connection.get_server_version().major >= _FIRST_WITH_STRATEGY:
        sql += " STRATEGY FILE_COPY"  # without a copy of each block in the log
    await connection.execute(sql)


@contextlib.asynccontextmanager
async def _asking(
    admin: ServerAddress,
) -> AsyncIterator[Connection]:
    """Hold a connection; whatever the script has done to its server is then Unreachable."""
    try:
        async with asyncio.timeout(_PATIENCE), connected(admin) as connection:
            yield connection
    except TimeoutError as error:
        raise Unreachable(f"no answer within {_PATIENCE:g} s") from error
    except DRIVER_ERRORS as error:
        raise Unreachable(str(error) or type(error).__name__) from error
