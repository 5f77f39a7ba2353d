"""The database ``.e2e-run/history.db``: its tables, how it is opened, and what may be wrong with it.

Whoever wrote it last may have been another version, another user or a broken disk, and a repository may
come with one. So nothing is taken for granted: what cannot be used is told as a `HistoryError`, whose
`trouble` says what is to be done about it.
"""

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from e2e_runner.errors import SetupError
from e2e_runner.text import limit

NAME = "history.db"

_APPLICATION = 0x65326572  # "e2er": tells our files from those of others
_VERSION = 1
_BUSY = 1.0  # seconds to wait for another process
_DAMAGED = f"{NAME}.damaged-"
_KEPT = 3  # damaged ones
_BESIDE = ("-wal", "-shm", "-journal")  # the log first: it must never meet a new database

# The last: who reads and who writes first could not be settled with other processes.
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
# What a healthy file never gives, so that it may be moved aside: no database, torn pages, tables or
# columns that are not there, rows that contradict each other, no UTF-8.
_NO_UTF8 = -1  # of Python, which decodes
_DAMAGES = {
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR),
    *(sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, _NO_UTF8),
}

# In one statement: another process may make the tables between two.
_STATE = """
SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)
FROM pragma_user_version, pragma_application_id
"""
_TABLES = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    started REAL NOT NULL,
    duration REAL,
    exit_code INTEGER,
    interrupted INTEGER NOT NULL DEFAULT 0,
    jobs INTEGER NOT NULL,
    network TEXT NOT NULL,
    processes TEXT NOT NULL,
    python TEXT NOT NULL,
    version TEXT NOT NULL,
    shard TEXT NOT NULL
);
CREATE TABLE results (
    number INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (number),
    path NOT NULL,
    status TEXT NOT NULL,
    cause TEXT,
    reason TEXT NOT NULL,
    duration REAL NOT NULL,
    cpu REAL,
    max_rss INTEGER,
    attempts INTEGER NOT NULL,
    repeats INTEGER NOT NULL,
    repeats_passed INTEGER NOT NULL,
    network TEXT,
    listened TEXT NOT NULL,
    suspect TEXT NOT NULL
);
CREATE UNIQUE INDEX results_of_run ON results (run, path);
CREATE INDEX results_of_path ON results (path);
CREATE INDEX results_suspected ON results (path) WHERE suspect <> '';
"""


class Trouble(StrEnum):
    """What is wrong with a history."""

    DAMAGED = "damaged"  # nothing can be read from it any more
    BUSY = "busy"  # another process has it locked
    UNUSABLE = "unusable"  # it may be good, but not for this process


class HistoryError(SetupError):
    """The history cannot be used."""

    def __init__(
        self, message: str, *, trouble: Trouble, facts: tuple[str, ...] = (), remedy: str = ""
    ) -> None:
        super().__init__(message, facts=facts, remedy=remedy)
        self.trouble = trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open history. `identity` tells its file from one that takes its place."""

    connection: sqlite3.Connection
    identity: tuple[int, int]


def open_to_read(state_dir: Path) -> Opened | None:
    """Open the history; None when there is none. Raises HistoryError."""
    file = state_dir / NAME
    with telling(file):
        identity = _identify(file)
        if identity is None or file.stat().st_size == 0:
            return None
        connection = _connect(file, "mode=ro")
        try:
            if not _look(connection, file):
                connection.close()
                return None
        except sqlite3.OperationalError as error:
            connection.close()
            if _code(error) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
                raise
            # Of another user: what it needs beside it cannot be made, nor does anybody write now.
            connection = _connect(file, "mode=ro&immutable=1")
            try:
                _look(connection, file)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            connection.close()
            raise
    return Opened(connection=connection, identity=identity)


def open_to_write(state_dir: Path) -> Opened:
    """Open the history, and make it where there is none. Raises HistoryError."""
    file = state_dir / NAME
    with telling(file):
        _identify(file)
        connection = _connect(file, "mode=rwc")
        try:
            if not _look(connection, file):
                _make(connection, file)
            connection.execute("PRAGMA synchronous = NORMAL")
            identity = _identify(file)
        except BaseException:
            connection.close()
            raise
        if identity is None:
            connection.close()
            raise FileNotFoundError(f"{file} was removed just now")
    return Opened(connection=connection, identity=identity)


def move_aside(state_dir: Path, identity: tuple[int, int] | None, now: float) -> str:
    """Move a damaged history out of the way; gives its new name, empty when another process did.

    `identity` is that of the damaged one; None: of what is there now. `now` is in seconds since the
    epoch. Raises HistoryError.
    """
    file = state_dir / NAME
    with telling(file), _held(state_dir):
        found = _identify(file)
        if found is None or (identity is not None and found != identity):
            return ""
        name = _DAMAGED + time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        for suffix in (*_BESIDE, ""):
            with contextlib.suppress(FileNotFoundError):
                (state_dir / (NAME + suffix)).replace(state_dir / (name + suffix))
        _forget_old(state_dir)
    return name


def is_there(state_dir: Path, identity: tuple[int, int]) -> bool:
    """Tell whether the history is still the file of this identity. Raises HistoryError."""
    file = state_dir / NAME
    with telling(file):
        return _identify(file) == identity


def moved_words(error: HistoryError, name: str) -> str:
    """Say that a damaged history was moved to `name`; empty where another run did so meanwhile."""
    how = f"it was moved to {name}" if name else "another run has moved it aside"
    return f"{error.message.rstrip('.')}: {how}, and a new one is begun"


def flat(error: HistoryError) -> str:
    """Give an error on one line."""
    about = f" ({'; '.join(error.facts)})" if error.facts else ""
    remedy = f"; to fix this: {error.remedy}" if error.remedy else ""
    return f"{error.message.rstrip('.')}{about}{remedy}"


@contextlib.contextmanager
def telling(file: Path) -> Iterator[None]:
    """Raise what SQLite and the system say of `file` in the block as HistoryError."""
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) < 0 and not isinstance(error, sqlite3.OperationalError):
            raise  # SQLite was not even asked
        raise _translated(error, file) from error
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error


# --- opening -------------------------------------------------------------------------------------


def _connect(file: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?{how}", uri=True, timeout=_BUSY, isolation_level=None
    )
    # A file that came with a repository may bring functions along that run when it is read.
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _look(connection: sqlite3.Connection, file: Path) -> bool:
    """Tell whether the tables are there; raises HistoryError when they are not ours."""
    version, application, tables = connection.execute(_STATE).fetchone()
    if application == _APPLICATION:
        if version > _VERSION:
            raise HistoryError(
                f"The history {file} was written by a newer version of e2e-run.",
                trouble=Trouble.UNUSABLE,
                facts=(f"its tables are of version {version}; this one knows version {_VERSION}",),
                remedy="update e2e-run, or move the file away",
            )
        if version == _VERSION:
            return True
    if tables or application:
        raise _damaged(file, "it is a database of another kind")
    return False


def _make(connection: sqlite3.Connection, file: Path) -> None:
    # Refused by some network file systems, and while another process makes the same tables.
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    with transaction(connection):
        if _look(connection, file):
            return
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all of the block or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # some errors have rolled it back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _identify(file: Path) -> tuple[int, int] | None:
    """Give what tells a file from another; None where there is none. Raises OSError, HistoryError."""
    try:
        status = file.stat()
    except FileNotFoundError:
        if file.is_symlink():
            raise _unusable(file, "it is a link that leads nowhere") from None
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no file"
        raise _unusable(file, f"it is {kind}")
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Be the only one who moves files of a folder; raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _forget_old(state_dir: Path) -> None:
    """Remove the oldest damaged ones, so that a disk that breaks again and again does not fill up."""
    for old in sorted(state_dir.glob(f"{_DAMAGED}*[0-9]"))[:-_KEPT]:
        for suffix in ("", *_BESIDE):
            with contextlib.suppress(OSError):
                old.with_name(old.name + suffix).unlink()


# --- what went wrong -----------------------------------------------------------------------------


def _code(error: sqlite3.Error) -> int:
    """Give the primary result code of SQLite; `_NO_UTF8` for what Python complains of."""
    code: int = getattr(error, "sqlite_errorcode", _NO_UTF8)
    return code & 0xFF if code >= 0 else code


def _translated(error: sqlite3.Error, file: Path) -> HistoryError:
    code = _code(error)
    if code in _LOCKED:
        return HistoryError(
            f"The history {file} is locked by another process.",
            trouble=Trouble.BUSY,
            facts=(f"waited {limit(_BUSY)} for it",),
            remedy="wait until that process has ended, or end it",
        )
    if code in _DAMAGES:
        return _damaged(file, str(error))
    return _unusable(file, str(error))


def _damaged(file: Path, why: str) -> HistoryError:
    return HistoryError(
        f"The history {file} is damaged: {why}.",
        trouble=Trouble.DAMAGED,
        remedy="run `e2e-run`, which moves it aside and begins a new one",
    )


def _unusable(file: Path, why: str) -> HistoryError:
    return HistoryError(
        f"The history {file} cannot be used: {why}.",
        trouble=Trouble.UNUSABLE,
        remedy="move it away, or make it and its folder writable and see that the disk has room",
    )
