"""Databases on a server that one attempt has for itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from e2e_runner.dbnames import quote_identifier
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import DRIVER_ERRORS, Connection, Unreachable, connected

_PATIENCE = 30.0  # seconds for everything that is asked at once
_FIRST_WITH_STRATEGY = 15  # major version


async def make_database(admin: ServerAddress, name: str) -> None:
    """Make an empty database. Raises Unreachable."""
    async with _asking(admin) as connection:
        await connection.execute(f"CREATE DATABASE {quote_identifier(name)}")


async def make_databases(admin: ServerAddress, wanted: Mapping[str, str | None]) -> frozenset[int]:
    """Make databases, each of a template or empty; gives the oids of all that there are then.

    A template that nobody needs again is renamed, which takes no time. Raises Unreachable.
    """
    made: dict[str, str] = {}
    async with _asking(admin) as connection:
        recent = connection.get_server_version().major >= _FIRST_WITH_STRATEGY
        copy = " STRATEGY FILE_COPY" if recent else ""
        for name, template in wanted.items():
            quoted = quote_identifier(name)
            if template is None:
                await connection.execute(f"CREATE DATABASE {quoted}{copy}")
            elif template in made:
                source = quote_identifier(made[template])
                await connection.execute(f"CREATE DATABASE {quoted} TEMPLATE {source}{copy}")
            else:
                source = quote_identifier(template)
                await connection.execute(f"ALTER DATABASE {source} RENAME TO {quoted}")
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
