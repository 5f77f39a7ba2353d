"""Connections of our own to a PostgreSQL server, which work through PgBouncer too."""

import asyncio
import contextlib
import errno
import inspect
import os
import re
import ssl
import stat
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

import asyncpg

from e2e_runner.model import ServerAddress

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
# For the driver: what to encrypt with, whether to, or None for what the options say.
_Encryption: TypeAlias = ssl.SSLContext | bool | None

# What a call of the driver may raise; a TimeoutError is an OSError.
DRIVER_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
CONNECT_TIMEOUT = 10.0  # seconds
_BREAKING_OFF = 1.0

# Options of a URL that say how to get in. The driver takes any other for a setting of the session,
# which a pooler refuses and which is nothing to us.
_SYSTEM = "system"
_SOCKET = ("/", "@")  # what the host of a Unix socket begins with
_PASSFILE = ".pgpass" if os.name == "posix" else "AppData/Roaming/postgresql/pgpass.conf"
_ENTRY = re.compile(r"((?:[^:\\]|\\.)*):" * 4 + "(.*)")
_ESCAPED = re.compile(r"\\(.)")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_WAYS_IN = (*_FILES, "sslpassword")
_MODES_OF_TLS = frozenset({"allow", "prefer", "require", "verify-ca", "verify-full"})
# Those for which the driver would read the caller's environment, and what is usual. Where there is
# no TLS, or where it is set up here, the driver looks at those of TLS all the same.
_USUAL = {
    "sslmode": "prefer",
    "sslnegotiation": "postgres",
    "ssl_min_protocol_version": "TLSv1.2",
    "ssl_max_protocol_version": "TLSv1.3",
    "target_session_attrs": "any",
    "krbsrvname": "postgres",
    "gsslib": "sspi" if os.name == "nt" else "gssapi",
}
# Older drivers know neither these nor their variables, and take an option that they do not know for
# a setting of the session.
_KNOWN = {
    "sslnegotiation": hasattr(asyncpg.connect_utils, "SSLNegotiation"),
    **{
        name: name in inspect.signature(asyncpg.connect).parameters
        for name in ("krbsrvname", "gsslib")
    },
}


class Unreachable(Exception):  # noqa: N818 - a finding, not a mistake
    """The server does not let us in; the text says why, in one clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server is, and what the user may do there."""

    version: str  # "15.18"
    version_number: int  # 150018
    user: str
    superuser: bool
    may_create_roles: bool
    may_create_databases: bool
    read_only: bool  # a standby
    pooled: bool  # a pooler stands before it, perhaps in transaction mode: leases mean nothing
    stores_scram: bool  # new passwords are stored as SCRAM-SHA-256 verifiers
    free_connections: int  # how many more this user may have, about


@contextlib.asynccontextmanager
async def connected(
    address: ServerAddress, *, database: str | None = None, patience: float = CONNECT_TIMEOUT
) -> AsyncIterator[Connection]:
    """Hold a connection for the length of the block; `database` overrides that of the address.

    Raises Unreachable, naming what was seen.
    """
    connection = await connect(address, database=database, patience=patience)
    try:
        yield connection
    finally:
        with contextlib.suppress(Exception):  # the server may be gone, and so is the connection
            await connection.close(timeout=patience)


async def connect(
    address: ServerAddress, *, database: str | None = None, patience: float = CONNECT_TIMEOUT
) -> Connection:
    """Open a connection, which the caller closes. Raises Unreachable.

    The address decides alone. What the driver would take from the variables of the caller is said
    by name, as far as it listens; what it does not (PGSSLCERT, PGSSLKEY, PGSSLROOTCERT, PGSSLCRL)
    matters to TLS alone.
    """
    where = f"{address}, database {database or address.database}"
    if missing := _missing_file(address):
        raise Unreachable(f"{where}: {missing}")

    async def attempt(encryption: _Encryption) -> Connection:
        return await _uninterrupted(
            asyncpg.connect(
                _ways_in(address),
                host=address.host,
                port=address.port,
                user=address.user,
                # Not None, for which the driver reads PGPASSWORD.
                password=address.password or _saved_password(address, database) or "",
                database=database or address.database,
                ssl=encryption,
                timeout=patience,
                command_timeout=None,
                statement_cache_size=0,  # a pooler gives each transaction another server connection
            )
        )

    try:
        first, *fallback = _encryptions(address)
        try:
            return await attempt(first)
        except (OSError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            if not fallback or isinstance(error, TimeoutError | asyncpg.InvalidPasswordError):
                raise
        return await attempt(*fallback)
    except TimeoutError as error:
        raise Unreachable(f"{where}: no answer within {patience:g} s") from error
    except asyncpg.PostgresError as error:
        raise Unreachable(f"{where}: {error} (SQLSTATE {error.sqlstate})") from error
    except (OSError, ValueError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise Unreachable(f"{where}: {_words(error)}") from error


async def _uninterrupted(
    connecting: Coroutine[Any, Any, Connection],
) -> Connection:
    """Connect; one who is cancelled meanwhile sees it through for a moment.

    Broken off while it negotiates TLS, the driver would leave an error that asyncio then logs.
    """
    task = asyncio.create_task(connecting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_BREAKING_OFF)
        if not task.cancel() and not task.cancelled() and task.exception() is None:
            task.result().terminate()
        raise


def _ways_in(address: ServerAddress) -> str:
    """Give the options that the driver takes in a URL alone; the rest is said by name."""
    options = {name: address.options.get(name) for name in _WAYS_IN}
    options |= {name: address.options.get(name) or usual for name, usual in _USUAL.items()}
    if options["sslrootcert"] == _SYSTEM:
        options["sslrootcert"] = None
    if address.host.startswith(_SOCKET):
        options["sslnegotiation"] = _USUAL["sslnegotiation"]
    given = urlencode(
        {name: value for name, value in options.items() if value and _KNOWN.get(name, True)}
    )
    return f"postgresql://?{given}"


def _encryptions(address: ServerAddress) -> Sequence[_Encryption]:
    """Do what no `sslmode` says to the driver; None: what that one says.

    A second one is for where the server refuses the first. Raises OSError and ValueError for files
    and versions that cannot be.
    """
    if address.host.startswith(_SOCKET):
        return [False]  # as in libpq, whatever the options say
    if address.options.get("sslrootcert") == _SYSTEM:
        # The driver takes that for the name of a file.
        return [ssl.create_default_context()]  # with sslmode=verify-full, as libpq insists on
    mode = address.options.get("sslmode") or _USUAL["sslmode"]
    if mode not in _MODES_OF_TLS or not _is_home_shut():
        return [None]
    # The driver would look for files of TLS there, and fail.
    tls = _tls(address)
    if mode == "prefer":
        return [tls, False]
    return [False, tls] if mode == "allow" else [tls]


def _is_home_shut() -> bool:
    """Tell whether this user may not look into the home folder, as under another uid with HOME=/root."""
    try:
        (Path.home() / ".postgresql" / "root.crl").stat()
    except PermissionError:
        return True
    except (OSError, RuntimeError):  # there is no such file, or no home
        return False
    return False


def _tls(address: ServerAddress) -> ssl.SSLContext:
    """Set TLS up as the driver does for somebody without a home."""
    given = {**_USUAL, **{name: value for name, value in address.options.items() if value}}
    mode, root = given["sslmode"], given.get("sslrootcert")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    if root and mode not in {"allow", "prefer"}:
        context.load_verify_locations(cafile=root)
    elif mode.startswith("verify"):
        raise ValueError(
            f"sslmode={mode} needs an sslrootcert, and the home folder may not be read: {Path.home()}"
        )
    else:
        context.verify_mode = ssl.CERT_NONE
    if crl := given.get("sslcrl"):
        context.load_verify_locations(cafile=crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if certificate := given.get("sslcert"):
        secret = given.get("sslpassword", "")
        context.load_cert_chain(certificate, given.get("sslkey"), lambda: secret)
    context.minimum_version = _tls_version(given["ssl_min_protocol_version"])
    context.maximum_version = _tls_version(given["ssl_max_protocol_version"])
    if ssl.HAS_ALPN:  # without which no server negotiates directly
        context.set_alpn_protocols(["postgresql"])
    return context


def _tls_version(name: str) -> ssl.TLSVersion:
    try:
        return ssl.TLSVersion[name.replace(".", "_")]
    except KeyError:
        raise ValueError(f"there is no TLS version {name}") from None


def _saved_password(address: ServerAddress, database: str | None) -> str | None:
    """Look into the address's `passfile`, else into that of the home folder, as libpq does."""
    try:
        named = address.options.get("passfile")
        file = Path(named) if named else Path.home() / _PASSFILE
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or (os.name == "posix" and status.st_mode & 0o077):
            return None
        lines = file.read_text(errors="surrogateescape").splitlines()
    except (OSError, RuntimeError):  # there is no such file, or no home
        return None
    hosts = {address.host, "localhost"} if address.host.startswith(_SOCKET) else {address.host}
    wanted = (hosts, {str(address.port)}, {database or address.database}, {address.user})
    for line in lines:
        found = None if line.startswith("#") else _ENTRY.fullmatch(line)
        if found is None:
            continue
        *fields, password = (_ESCAPED.sub(r"\1", each) for each in found.groups())
        if all(given == "*" or given in each for given, each in zip(fields, wanted, strict=True)):
            return password
    return None


def _missing_file(address: ServerAddress) -> str | None:
    for name in _FILES:
        file = address.options.get(name)
        if not file or file == _SYSTEM:
            continue
        try:
            Path(file).stat()
        except PermissionError:
            return f"its {name} names {file}, which this user may not read"
        except (OSError, ValueError):
            return f"its {name} names {file}, and there is no such file"
    return None


def _words(error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            return "nothing listens there (connection refused)"
        case FileNotFoundError():
            return "there is no such socket"
        case OSError(strerror=str(text)) if text and not text.startswith("Connect call failed"):
            return text
        case OSError(errno=int(number)) if number in errno.errorcode:
            return os.strerror(number)  # asyncio's own words name a socket address instead
    return (str(error) or type(error).__name__).splitlines()[0]


async def describe(connection: Connection) -> ServerFacts:
    """Ask what the server is, and what its user may do."""
    row = await connection.fetchrow(
        """
        SELECT current_setting('server_version') AS version,
               current_setting('server_version_num')::int AS number,
               current_setting('password_encryption') = 'scram-sha-256' AS scram,
               current_user::text AS "user", rolsuper, rolcreaterole, rolcreatedb,
               pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool
                   AS read_only,
               pg_backend_pid() AS pid,
               greatest(0, least(
                   current_setting('max_connections')::int - sessions.everybody
                   - CASE WHEN rolsuper THEN 0
                          ELSE current_setting('superuser_reserved_connections')::int
                               + coalesce(current_setting('reserved_connections', true)::int, 0)
                     END,
                   CASE WHEN rolconnlimit >= 0 AND NOT rolsuper
                        THEN rolconnlimit - sessions.own END)) AS free
          FROM pg_roles,
               (SELECT count(*) AS everybody,
                       count(*) FILTER (WHERE usename = current_user) AS own
                  FROM pg_stat_activity
                 WHERE datid IS NOT NULL  -- backend_type is hidden from ordinary users
               ) AS sessions
         WHERE rolname = current_user
        """
    )
    if row is None:
        raise Unreachable("the server does not know the role that it let in")
    return ServerFacts(
        version=row["version"].split()[0],
        version_number=row["number"],
        user=row["user"],
        superuser=row["rolsuper"],
        may_create_roles=row["rolcreaterole"] or row["rolsuper"],
        may_create_databases=row["rolcreatedb"] or row["rolsuper"],
        read_only=row["read_only"],
        stores_scram=row["scram"],
        pooled=row["pid"] != connection.get_server_pid(),
        free_connections=row["free"],
    )
