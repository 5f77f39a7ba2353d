"""The two databases: a pool of connections to each, for as long as the application runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import asyncpg
from fastapi import Depends
from fastapi.requests import HTTPConnection
from pydantic import Field

from demo_api.settings import settings

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # only the stubs know that it has a parameter
    Pool = asyncpg.Pool

# What a bigint holds, and what a text does, which may contain any character but NUL.
Id = Annotated[int, Field(ge=1, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]

_MOST_CONNECTIONS = 4
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Databases:
    """What the application keeps open."""

    orm: Pool
    ohlcv: Pool

    async def health(self) -> dict[str, str]:
        """Ask both whether they answer: "ok", or what is wrong, by the name of the database."""
        return {"orm": await _health(self.orm), "ohlcv": await _health(self.ohlcv)}


@asynccontextmanager
async def open_databases() -> AsyncIterator[Databases]:
    """Hold connections to both databases for the length of the block."""
    async with _pool(settings.orm_database) as orm, _pool(settings.ohlcv_database) as ohlcv:
        yield Databases(orm=orm, ohlcv=ohlcv)


def databases(connection: HTTPConnection) -> Databases:
    """Give a route the databases that the application was started with."""
    opened: Databases = connection.app.state.databases
    return opened


def orm_pool(opened: Annotated[Databases, Depends(databases)]) -> Pool:
    """Give a route the database of users, exchanges and bots."""
    return opened.orm


def ohlcv_pool(opened: Annotated[Databases, Depends(databases)]) -> Pool:
    """Give a route the database of candles and trades."""
    return opened.ohlcv


Orm = Annotated[Pool, Depends(orm_pool)]
Ohlcv = Annotated[Pool, Depends(ohlcv_pool)]


def _pool(database: str) -> Pool:
    return asyncpg.create_pool(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password,
        database=database,
        min_size=1,
        max_size=_MOST_CONNECTIONS,
    )


async def _health(pool: Pool) -> str:
    try:
        async with pool.acquire(timeout=_ANSWER_SECONDS) as connection:
            await connection.execute("SELECT 1", timeout=_ANSWER_SECONDS)
    except asyncpg.InvalidCatalogNameError:
        return "does not exist"
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"
