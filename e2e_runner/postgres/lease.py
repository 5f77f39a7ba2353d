"""The lease of a run: a lock on the server that lives as long as the run does, and no longer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from e2e_runner.dbnames import lease_key
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import DRIVER_ERRORS, Connection, Unreachable, connect

_HEARTBEAT = 20.0  # seconds: finds a connection that broke without a word
_ANSWER = 10.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5  # short, since a sweep elsewhere may look meanwhile


class Lease:
    """An advisory lock of one run, taken again at once when its connection breaks."""

    def __init__(self, address: ServerAddress, token: str, warn: Callable[[str], None]) -> None:
        """Take nothing yet; `warn` is told of every loss."""
        self._address = address
        self._key = lease_key(token)
        self._warn = warn
        self._held = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def hold(
        cls, address: ServerAddress, token: str, *, warn: Callable[[str], None]
    ) -> AsyncIterator["Lease"]:
        """Hold the lease of a run for the length of the block. Raises Unreachable."""
        lease = cls(address, token, warn)
        connection = await lease._take()
        keeper = asyncio.create_task(lease._keep(connection))
        try:
            yield lease
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def wait(self, patience: float) -> bool:
        """Wait until the lease is held; says whether it is."""
        try:
            async with asyncio.timeout(patience):
                await self._held.wait()
        except TimeoutError:
            return False
        return True

    async def _take(self) -> Connection:
        connection = await connect(self._address, patience=_ANSWER)
        try:
            # The lock of a connection that just broke may need a moment to be let go.
            async with asyncio.timeout(_ANSWER):
                for setting in _settings(connection):
                    await connection.execute(setting)
                await connection.execute(f"SELECT pg_advisory_lock({self._key})")
        except BaseException as error:
            connection.terminate()
            if isinstance(error, DRIVER_ERRORS):
                raise Unreachable(f"{self._address}: no lease: {error}") from error
            raise
        self._held.set()
        return connection

    async def _keep(self, connection: Connection) -> None:
        try:
            while True:
                await self._until_broken(connection)
                self._held.clear()
                lost = time.monotonic()
                connection.terminate()
                connection = await self._take_again()
                seconds = time.monotonic() - lost
                self._warn(
                    f"the lease on {self._address} was lost, and taken again {seconds:.2f} s later: "
                    "the server restarted, or somebody ended our session"
                )
        finally:
            self._held.clear()
            # Not close(): that would wait for a server that may not answer any more.
            connection.terminate()

    async def _until_broken(self, connection: Connection) -> None:
        broken = asyncio.Event()
        connection.add_termination_listener(lambda _: broken.set())
        while not (broken.is_set() or connection.is_closed()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT):
                    await broken.wait()
                return
            try:
                async with asyncio.timeout(_ANSWER):
                    await connection.execute("SELECT 1")
            except DRIVER_ERRORS:
                return

    async def _take_again(self) -> Connection:
        pause = _FIRST_PAUSE
        while True:
            with contextlib.suppress(Unreachable):
                return await self._take()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _settings(connection: Connection) -> list[str]:
    """Let nothing end the session while the run lives, and soon once its machine is gone."""
    settings = {
        "statement_timeout": 0,
        "lock_timeout": 0,
        "tcp_keepalives_idle": 60,
        "tcp_keepalives_interval": 10,
        "tcp_keepalives_count": 3,
    }
    if connection.get_server_version().major >= 14:  # noqa: PLR2004 - which introduced it
        settings["idle_session_timeout"] = 0
    return [f"SET {name} = {value}" for name, value in settings.items()]
