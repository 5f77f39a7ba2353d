"""A few connections to one server, opened when they are needed and replaced when they break."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

import asyncpg

from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import DRIVER_ERRORS, Connection, Unreachable, connect

_MOST = 4
_RECOVERY = 10.0  # seconds that a server has to come back from a restart
_PAUSE = 0.1
_GOODBYE = 2.0
_STARTING = "57P03"  # or stopping
_ENDED = frozenset({"57P01", "57P02", "57P05", "25P03"})  # by somebody, a crash, or for idleness

_T = TypeVar("_T")

# Which of these the work that runs now holds a connection of.
_HELD: ContextVar[frozenset["Connections"]] = ContextVar("_HELD", default=frozenset())


class Connections:
    """Up to `most` connections to one server."""

    def __init__(
        self, address: ServerAddress, *, most: int = _MOST, settings: tuple[str, ...] = ()
    ) -> None:
        """Open none yet; `settings` are statements for each new one."""
        self._address = address
        self._settings = settings
        self._places = asyncio.Semaphore(most)
        self._idle: list[Connection] = []
        self._closed = False

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        """Hold one of them for the length of the block. Raises Unreachable.

        Whoever holds one cannot ask for another: with the places taken, all would wait for good.
        """
        if self in _HELD.get():
            raise AssertionError("work that has a connection asks for a second one")
        async with self._places:
            connection = await self._open()
            _HELD.set(_HELD.get() | {self})
            try:
                yield connection
            except BaseException:
                # It may be broken, or in the middle of something that the server must first break
                # off: a CREATE DATABASE that went on would be there after its run was cleaned up.
                await _end(connection)
                raise
            finally:
                _HELD.set(_HELD.get() - {self})
            self._idle.append(connection)

    async def run(self, work: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Do work that may be done again: where the connection breaks, it is begun anew.

        Raises what the work raises, and Unreachable where the server stays away.
        """
        deadline = asyncio.get_running_loop().time() + _RECOVERY
        lost = False
        while True:
            try:
                async with self.one() as connection:
                    return await work(connection)
            except Unreachable as error:
                starting = getattr(error.__cause__, "sqlstate", None) == _STARTING
                if not (lost or starting) or asyncio.get_running_loop().time() > deadline:
                    raise
            except DRIVER_ERRORS as error:
                if not is_loss(error) or asyncio.get_running_loop().time() > deadline:
                    raise
                lost = True
            await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Close those that are idle, and open no more."""
        self._closed = True
        while self._idle:
            await _end(self._idle.pop())

    async def _open(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        if self._closed:
            raise Unreachable(f"{self._address}: the run is ending")
        connection = await connect(self._address)
        try:
            for setting in self._settings:
                await connection.execute(setting, timeout=_RECOVERY)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, DRIVER_ERRORS):
                raise Unreachable(f"{self._address}: {error}") from error
            raise
        return connection


async def _end(connection: Connection) -> None:
    try:
        await connection.close(timeout=_GOODBYE)
    except BaseException as error:
        connection.terminate()
        if not isinstance(error, Exception):  # the server may be gone, which is no matter
            raise


def is_loss(error: BaseException) -> bool:
    """Tell whether an error means that the connection is gone, and not that the server refused."""
    match error:
        case TimeoutError():  # an OSError, too
            return False
        case asyncpg.PostgresConnectionError():
            return True
        case asyncpg.PostgresError():
            return error.sqlstate in _ENDED
        case asyncpg.InterfaceError():
            return "clos" in str(error)
        case asyncpg.InternalClientError():  # a farewell of the server came when none was expected
            return True
        case _:
            return isinstance(error, OSError)
