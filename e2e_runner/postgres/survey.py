"""Reads what a server holds, as far as the user may know it."""

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import asyncpg

from e2e_runner.dbnames import KEPT, recognise, tokens_of
from e2e_runner.model import DatabaseFacts, ServerState
from e2e_runner.postgres.connection import Connection

SURVEY_PATIENCE = 10.0  # seconds; somebody may have locked a catalog
SIZES_PATIENCE = 5.0  # seconds
_BREAKING_OFF = 5.0  # seconds
_SIZES_AT_ONCE = 50

_T = TypeVar("_T")

# Names come as bytes: a database that was created with another encoding has a name that is no
# UTF-8, which must not keep us from seeing the others. Sessions are told from autovacuum, which a
# DROP ends by itself, and from helpers of a session by their user and leader: a plain user is not
# shown what kind a foreign process is. A walsender of a slot is a session.
_DATABASES = """
    SELECT d.oid::int8 AS oid, namesend(d.datname) AS name, namesend(o.rolname) AS owner,
           d.datistemplate AS is_template, d.datallowconn AS allows_connections,
           d.datconnlimit = -2 AS half_dropped,
           coalesce(shobj_description(d.oid, 'pg_database') = $2
                    OR shobj_description(o.oid, 'pg_authid') = $2, false) AS kept,
           coalesce(a.sessions, 0) AS sessions,
           s.slots, u.subscriptions, coalesce(p.prepared, 0) AS prepared,
           extract(epoch FROM clock_timestamp() - %MADE%)::float8 AS age
      FROM pg_database d
      LEFT JOIN pg_roles o ON o.oid = d.datdba
      LEFT JOIN (SELECT datid, count(*) AS sessions FROM pg_stat_activity
                  WHERE usesysid IS NOT NULL AND leader_pid IS NULL AND pid <> pg_backend_pid()
                  GROUP BY datid) a ON a.datid = d.oid
      LEFT JOIN (SELECT datoid, array_agg(namesend(slot_name)) AS slots
                   FROM pg_replication_slots GROUP BY datoid) s ON s.datoid = d.oid
      LEFT JOIN (SELECT subdbid, array_agg(namesend(subname)) AS subscriptions
                   FROM pg_subscription GROUP BY subdbid) u ON u.subdbid = d.oid
      LEFT JOIN (SELECT database, count(*) AS prepared
                   FROM pg_prepared_xacts GROUP BY database) p ON p.database = d.datname
     WHERE $1::oid[] IS NULL OR d.oid = ANY ($1)
     ORDER BY d.oid
"""

# When a database was made, by what the user may ask. A function that is not allowed fails even where
# it would never be called, so that each way is a statement of its own.
_BY_FILE = """
    (pg_stat_file(
        CASE d.dattablespace WHEN 1663 THEN 'base'
            ELSE 'pg_tblspc/' || d.dattablespace || '/PG_'
                || current_setting('server_version_num')::int / 10000 || '_'
                || (SELECT catalog_version_no FROM pg_control_system()) END
        || '/' || d.oid || '/PG_VERSION', true)).modification
"""
_BY_COMMIT = "pg_xact_commit_timestamp(d.xmin)"
_UNKNOWN = "NULL::timestamptz"
_WAYS = """
    SELECT has_function_privilege('pg_stat_file(text,bool)', 'EXECUTE')
               AND has_function_privilege('pg_control_system()', 'EXECUTE') AS by_file,
           current_setting('track_commit_timestamp')::bool AS by_commit
"""

# An advisory lock of one key of 64 bits has objsubid 1, and its halves in classid and objid.
# One that is only waited for counts too: somebody lives who wants it.
_LEASES_AND_ROLES = """
    SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
           ARRAY(SELECT DISTINCT (classid::int8 << 32) | objid::int8 FROM pg_locks
                  WHERE locktype = 'advisory' AND objsubid = 1) AS leases,
           ARRAY(SELECT namesend(rolname) FROM pg_roles
                  WHERE strpos(rolname, 'e2e_') > 0 ORDER BY oid) AS roles,
           ARRAY(SELECT DISTINCT namesend(used.name) FROM pg_stat_activity,
                        LATERAL (VALUES (usename), (datname)) AS used (name)
                  WHERE usesysid IS NOT NULL AND pid <> pg_backend_pid()
                    AND strpos(used.name, 'e2e_') > 0) AS busy
"""

_SIZES = """
    SELECT oid::int8 AS oid,
           CASE WHEN has_database_privilege(oid, 'CONNECT')
                  OR pg_has_role('pg_read_all_stats', 'USAGE')
                THEN pg_database_size(oid) END AS size
      FROM pg_database WHERE oid = ANY ($1::oid[])
"""


async def survey(
    connection: Connection,
    *,
    only: Collection[int] | None = None,
    sizes_of: Iterable[int] = (),
) -> ServerState:
    """Read the databases of a server, or only those whose OIDs are in `only`.

    What the user may not know is None. Leases are read after the databases, so that a database
    never seems older than the lease of the run that made it. The connection is in no transaction,
    and closed where the server does not even let go of it. Raises what asyncpg raises, and
    TimeoutError after SURVEY_PATIENCE.
    """
    try:
        rows, rest = await _bounded(_read(connection, only))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.PostgresSystemError):
        # A provider may forbid what the privileges allow, or have its files elsewhere.
        rows, rest = await _bounded(_read(connection, only, made=_UNKNOWN))
    except TimeoutError:
        if connection.is_in_transaction():
            connection.terminate()
        raise
    known = await sizes(connection, sizes_of)
    return ServerState(
        databases=tuple(_facts(row, known) for row in rows),
        leases=frozenset(rest["leases"]),
        roles=tuple(name for name in map(_text, rest["roles"]) if recognise(name)),
        now=rest["now"],
        busy=tokens_of(map(_text, rest["busy"])),
    )


async def _bounded(reading: Coroutine[Any, Any, _T]) -> _T:
    """Wait for what reads; the inner limit leaves time to break its statement off in order."""
    try:
        async with (
            asyncio.timeout(SURVEY_PATIENCE + _BREAKING_OFF),
            asyncio.timeout(SURVEY_PATIENCE),
        ):
            return await reading
    except TimeoutError:
        raise TimeoutError(
            f"what the server holds could not be read within {SURVEY_PATIENCE:g} s; "
            "somebody may have locked its catalogs"
        ) from None


async def sizes(
    connection: Connection,
    oids: Iterable[int],
    *,
    patience: float = SIZES_PATIENCE,
) -> dict[int, int]:
    """Measure databases by their OIDs, in bytes; those are missing that may not be known.

    Each takes the server a look at some 300 files, so that after `patience` seconds the rest is
    left unknown. Raises what asyncpg raises for a connection that is lost.
    """
    wanted = list(dict.fromkeys(oids))
    found: dict[int, int] = {}
    deadline = asyncio.get_running_loop().time() + patience
    for start in range(0, len(wanted), _SIZES_AT_ONCE):
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            break
        found |= await _sizes(connection, wanted[start : start + _SIZES_AT_ONCE], left)
    return found


async def busy_roles(connection: Connection, names: Collection[str]) -> frozenset[str]:
    """Give those of the roles `names` that have sessions. Raises what asyncpg raises."""
    rows = await connection.fetch(
        "SELECT DISTINCT usename::text AS name FROM pg_stat_activity WHERE usename = ANY ($1::name[])",
        list(names),
    )
    return frozenset(row["name"] for row in rows)


async def _sizes(connection: Connection, oids: list[int], patience: float) -> dict[int, int]:
    try:
        rows = await connection.fetch(_SIZES, oids, timeout=patience)
    except TimeoutError:
        return {}
    except asyncpg.PostgresConnectionError:
        raise
    except asyncpg.PostgresError:
        # One was dropped while it was measured, or cannot be read: measure the others one by one.
        if len(oids) == 1:
            return {}
        found: dict[int, int] = {}
        for oid in oids:
            found |= await _sizes(connection, [oid], patience)
        return found
    return {row["oid"]: row["size"] for row in rows if row["size"] is not None}


async def _read(
    connection: Connection,
    only: Collection[int] | None,
    *,
    made: str = "",
) -> tuple[list[asyncpg.Record], asyncpg.Record]:
    """Read databases, then the rest; `made` is the SQL for when a database was made."""
    oids = None if only is None else list(only)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        if not made:
            ways = _one(await connection.fetchrow(_WAYS))
            made = _BY_FILE if ways["by_file"] else _BY_COMMIT if ways["by_commit"] else _UNKNOWN
        rows = await connection.fetch(_DATABASES.replace("%MADE%", made), oids, KEPT)
        return rows, _one(await connection.fetchrow(_LEASES_AND_ROLES))


def _one(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise AssertionError("a SELECT without FROM has one row")
    return row


def _facts(row: asyncpg.Record, sizes_known: Mapping[int, int]) -> DatabaseFacts:
    return DatabaseFacts(
        oid=row["oid"],
        name=_text(row["name"]),
        owner=_text(row["owner"] or b""),
        is_template=row["is_template"],
        allows_connections=row["allows_connections"],
        half_dropped=row["half_dropped"],
        kept=row["kept"],
        sessions=row["sessions"],
        slots=tuple(map(_text, row["slots"] or ())),
        subscriptions=tuple(map(_text, row["subscriptions"] or ())),
        prepared=row["prepared"],
        size=sizes_known.get(row["oid"]),
        age=None if row["age"] is None else max(row["age"], 0.0),
    )


def _text(name: bytes) -> str:
    """Decode a name; what is no UTF-8 becomes lone surrogates, as in names of files."""
    return name.decode("utf-8", "surrogateescape")
