"""The catalog of exchanges and of the symbols that are traded there."""

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

import asyncpg
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from demo_api.access import Admin, CurrentUser
from demo_api.database import Name, Orm, Pool
from demo_api.paging import Page, Paging, fetch_page

router = APIRouter(prefix="/exchanges", tags=["exchanges"])

Slug = Annotated[str, Field(pattern=r"^[a-z0-9_-]{2,63}$")]
Symbol = Annotated[str, Field(pattern=r"^[A-Z0-9]+-[A-Z0-9]+$", max_length=30)]


class Kind(StrEnum):
    """What is traded."""

    SPOT = "spot"
    FUTURES = "futures"


class Exchange(BaseModel):
    """An exchange as the catalog lists it."""

    slug: Slug
    name: Name
    kind: Kind
    active: bool = True


class ExchangeDetails(Exchange):
    """An exchange with its symbols, in the order of the alphabet."""

    symbols: list[Symbol] = []


class ExchangeChange(BaseModel):
    """The body that changes an exchange; what is left out stays, symbols are added."""

    name: Name | None = None
    active: bool | None = None
    symbols: list[Symbol] = []


@router.get("")
async def list_exchanges(
    orm: Orm,
    paging: Paging,
    _: CurrentUser,
    kind: Kind | None = None,
    active: bool | None = None,  # noqa: FBT001 - FastAPI passes it by name
    symbol: Symbol | None = None,
) -> Page[Exchange]:
    """List the exchanges by name: of a kind, active or not, those that trade a symbol."""
    query = """
        SELECT slug, name, kind, active FROM exchanges
        WHERE ($1::text IS NULL OR kind = $1)
          AND ($2::boolean IS NULL OR active = $2)
          AND ($3::text IS NULL OR id IN (SELECT exchange_id FROM symbols WHERE symbols.name = $3))
    """
    return await fetch_page(orm, Exchange, query, kind, active, symbol, order="name", part=paging)


@router.get("/{slug}")
async def read_exchange(slug: Slug, orm: Orm, _: CurrentUser) -> ExchangeDetails:
    """Show an exchange with its symbols."""
    row = await orm.fetchrow(
        """
        SELECT slug, name, kind, active,
            ARRAY(SELECT name FROM symbols WHERE exchange_id = exchanges.id ORDER BY name) AS symbols
        FROM exchanges WHERE slug = $1
        """,
        slug,
    )
    if row is None:
        raise _unknown(slug)
    return ExchangeDetails(**row)


@router.post("", status_code=HTTPStatus.CREATED)
async def add_exchange(new: ExchangeDetails, orm: Orm, user: Admin) -> ExchangeDetails:
    """Add an exchange and its symbols."""
    async with orm.acquire() as connection, connection.transaction():
        try:
            exchange_id = await connection.fetchval(
                "INSERT INTO exchanges (slug, name, kind, active) VALUES ($1, $2, $3, $4)"
                " RETURNING id",
                *(new.slug, new.name, new.kind, new.active),
            )
        except asyncpg.UniqueViolationError as error:
            raise HTTPException(HTTPStatus.CONFLICT, f"{new.slug} is in the catalog") from error
        await connection.execute(_ADD_SYMBOLS, exchange_id, new.symbols)
    return await read_exchange(new.slug, orm, user)


@router.patch("/{slug}")
async def update_exchange(
    slug: Slug, change: ExchangeChange, orm: Orm, user: Admin
) -> ExchangeDetails:
    """Rename an exchange, open or close it, and add symbols."""
    async with orm.acquire() as connection, connection.transaction():
        exchange_id = await connection.fetchval(
            "UPDATE exchanges SET name = coalesce($2, name), active = coalesce($3, active)"
            " WHERE slug = $1 RETURNING id",
            *(slug, change.name, change.active),
        )
        if exchange_id is None:
            raise _unknown(slug)
        await connection.execute(_ADD_SYMBOLS, exchange_id, change.symbols)
    return await read_exchange(slug, orm, user)


async def is_listed(orm: Pool, exchange: str, symbol: str) -> bool:
    """Say whether a symbol is traded at an exchange."""
    query = (
        "SELECT EXISTS (SELECT FROM symbols JOIN exchanges ON exchanges.id = exchange_id"
        " WHERE slug = $1 AND symbols.name = $2)"
    )
    return bool(await orm.fetchval(query, exchange, symbol))


_ADD_SYMBOLS = (
    "INSERT INTO symbols (exchange_id, name) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING"
)


def _unknown(slug: str) -> HTTPException:
    return HTTPException(HTTPStatus.NOT_FOUND, f"There is no exchange {slug}")
