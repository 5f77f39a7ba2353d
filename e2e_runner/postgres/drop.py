"""Drops databases and roles, and says in words why one could not be dropped."""

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum

import asyncpg

from e2e_runner.dbnames import quote_identifier
from e2e_runner.postgres.connection import Connection

PATIENCE = 10.0  # seconds; a plain DROP DATABASE waits 5 for sessions that are about to end
_ATTEMPTS = 2
_FIRST_WITH_FORCE = 13

_DEPENDED_UPON = "2BP01"
_WORDS = {  # SQLSTATE -> what it means for a DROP
    "25001": "not possible inside a transaction",
    "25006": "the server is read-only",
    _DEPENDED_UPON: "something still depends on it",
    "42501": "not allowed",
    "42809": "it is marked as a template",
    "53100": "the server's disk is full",
    "53300": "the server has no connection free",
    "55000": "not possible in the state that it is in",
    "55006": "it is in use",
    "57014": "somebody cancelled it",
    "57P01": "the server ended our session",
    "57P02": "the server has crashed",
    "57P03": "the server is starting up or shutting down",
    "58030": "the server could not read or write a file",
    "58P01": "the server misses a file",
}
_NO_SUCH_DATABASE = "3D000"
_NO_SUCH_ROLE = "42704"


class DropOutcome(StrEnum):
    """What became of what was to be dropped."""

    DROPPED = "dropped"
    GONE = "gone"  # somebody else was faster
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DropResult:
    """What became of a database or role; `reason` is a clause, and empty unless it FAILED.

    `timed_out` and `still_owns` single out two failures: the server did not answer, and a role to
    which something still belongs.
    """

    name: str
    outcome: DropOutcome
    reason: str = ""
    seconds: float = 0.0
    timed_out: bool = False
    still_owns: bool = False


async def drop_database(
    connection: Connection,
    name: str,
    *,
    force: bool,
    oid: int | None = None,
    patience: float = PATIENCE,
) -> DropResult:
    """Drop a database over a connection to another one of the server; a failure is a result.

    `force` ends its sessions first, where the server knows how to (PostgreSQL 13). A server that
    does not answer within `patience` seconds is asked to cancel, and tried once more: what a broken
    off DROP DATABASE leaves can only be dropped. With `oid`, another database that has got the name
    meanwhile stays.
    """
    forced = force and connection.get_server_version().major >= _FIRST_WITH_FORCE
    return await _drop(
        connection,
        name,
        "DROP DATABASE",
        ending=" WITH (FORCE)" if forced else "",
        gone=_NO_SUCH_DATABASE,
        oid=oid,
        patience=patience,
    )


async def drop_role(connection: Connection, name: str, *, patience: float = PATIENCE) -> DropResult:
    """Drop a role, as `drop_database` does; one that still owns something is a failure."""
    return await _drop(connection, name, "DROP ROLE", gone=_NO_SUCH_ROLE, patience=patience)


async def _drop(
    connection: Connection,
    name: str,
    statement: str,
    *,
    gone: str,
    ending: str = "",
    oid: int | None = None,
    patience: float,
) -> DropResult:
    started = time.monotonic()

    def result(outcome: DropOutcome, reason: str = "", **more: bool) -> DropResult:
        seconds = time.monotonic() - started
        return DropResult(name=name, outcome=outcome, reason=reason, seconds=seconds, **more)

    try:
        sql = f"{statement} {quote_identifier(name)}{ending}"
        sql.encode()
    except ValueError as error:
        return result(DropOutcome.FAILED, f"its name cannot be sent: {error}")
    for attempt in range(_ATTEMPTS):
        try:
            # The outer limit is for a server that does not even take note of the cancelling.
            async with asyncio.timeout(2 * patience):
                # The attempt that timed out may be through after all, and the name be another's now.
                if not attempt or oid is None or await _is_there(connection, oid, name, patience):
                    await connection.execute(sql, timeout=patience)
        except TimeoutError:
            continue
        except asyncpg.PostgresError as error:
            if error.sqlstate != gone:
                owns = error.sqlstate == _DEPENDED_UPON
                return result(DropOutcome.FAILED, explain(error), still_owns=owns)
            # The attempt that timed out may have been through with it after all.
            return result(DropOutcome.DROPPED if attempt else DropOutcome.GONE)
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            return result(DropOutcome.FAILED, _lost(error))
        return result(DropOutcome.DROPPED)
    return result(
        DropOutcome.FAILED,
        f"no answer within {patience:g} s, {_ATTEMPTS} times: "
        "a process of the server may be stopped or hung",
        timed_out=True,
    )


async def _is_there(connection: Connection, oid: int, name: str, patience: float) -> bool:
    sql = "SELECT oid = $1::int8::oid FROM pg_database WHERE datname = $2"
    return bool(await connection.fetchval(sql, oid, name, timeout=patience))


def explain(error: asyncpg.PostgresError) -> str:
    """Say in a clause why the server refused: what it means, and the server's own words."""
    own = getattr(error, "message", None) or str(error)
    detail = getattr(error, "detail", None)
    if detail:  # a line for each thing that depends on it
        own = f"{own} ({'; '.join(detail.rstrip('.').splitlines())})"
    words = _WORDS.get(error.sqlstate or "")
    return f"{words}: {own}" if words else f"{own} (SQLSTATE {error.sqlstate})"


def _lost(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"the connection to the server was lost: {words or type(error).__name__}"
