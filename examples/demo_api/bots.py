"""Bots: each belongs to a trader, who alone sees it; an admin sees all."""

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

import asyncpg
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from demo_api.access import CurrentUser, User, Writer, whose
from demo_api.database import Id, Name, Orm
from demo_api.exchanges import Slug, Symbol, is_listed
from demo_api.paging import Page, Paging, fetch_page

router = APIRouter(prefix="/bots", tags=["bots"])

Strategy = Annotated[str, Field(pattern="^(grid|momentum|rebalance)$")]

_COLUMNS = "id, owner_id, name, exchange, symbol, strategy, status"
# Somebody else's bot is answered like one that does not exist. $2 and $3 are as `whose` gives them.
_THEIRS = "id = $1 AND (owner_id = $2 OR $3)"


class Status(StrEnum):
    """Whether a bot trades."""

    STOPPED = "stopped"
    RUNNING = "running"


class NewBot(BaseModel):
    """The body that creates a bot."""

    name: Name
    exchange: Slug
    symbol: Symbol
    strategy: Strategy = "grid"


class BotChange(BaseModel):
    """The body that changes a bot; what is left out stays."""

    name: Name | None = None
    strategy: Strategy | None = None


class Bot(NewBot):
    """A bot."""

    id: int
    owner_id: int
    status: Status


@router.post("", status_code=HTTPStatus.CREATED)
async def create_bot(new: NewBot, orm: Orm, user: Writer) -> Bot:
    """Create a bot, which is stopped at first."""
    if not await is_listed(orm, new.exchange, new.symbol):
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"{new.symbol} is not traded at {new.exchange}"
        )
    try:
        row = await orm.fetchrow(
            "INSERT INTO bots (owner_id, name, exchange, symbol, strategy)"
            f" VALUES ($1, $2, $3, $4, $5) RETURNING {_COLUMNS}",
            *(user.id, new.name, new.exchange, new.symbol, new.strategy),
        )
    except asyncpg.UniqueViolationError as error:
        raise HTTPException(HTTPStatus.CONFLICT, f"You have a bot {new.name!r}") from error
    return _bot(row)


@router.get("")
async def list_bots(
    orm: Orm, paging: Paging, user: CurrentUser, status: Status | None = None
) -> Page[Bot]:
    """List your own bots, or as an admin all, by name."""
    query = (
        f"SELECT {_COLUMNS} FROM bots WHERE (owner_id = $1 OR $2)"
        " AND ($3::text IS NULL OR status = $3)"
    )
    values = (*whose(user), status)
    return await fetch_page(orm, Bot, query, *values, order="name, id", part=paging)


@router.get("/{bot_id}")
async def read_bot(bot_id: Id, orm: Orm, user: CurrentUser) -> Bot:
    """Show a bot."""
    query = f"SELECT {_COLUMNS} FROM bots WHERE {_THEIRS}"
    return _bot(await orm.fetchrow(query, bot_id, *whose(user)))


@router.patch("/{bot_id}")
async def update_bot(bot_id: Id, change: BotChange, orm: Orm, user: Writer) -> Bot:
    """Change a bot's name or strategy."""
    query = (
        "UPDATE bots SET name = coalesce($4, name), strategy = coalesce($5, strategy)"
        f" WHERE {_THEIRS} RETURNING {_COLUMNS}"
    )
    try:
        row = await orm.fetchrow(query, bot_id, *whose(user), change.name, change.strategy)
    except asyncpg.UniqueViolationError as error:
        raise HTTPException(HTTPStatus.CONFLICT, f"You have a bot {change.name!r}") from error
    return _bot(row)


@router.post("/{bot_id}/start")
async def start_bot(bot_id: Id, orm: Orm, user: Writer) -> Bot:
    """Let a stopped bot trade."""
    return await _switch(bot_id, orm, user, Status.RUNNING)


@router.post("/{bot_id}/stop")
async def stop_bot(bot_id: Id, orm: Orm, user: Writer) -> Bot:
    """Stop a running bot."""
    return await _switch(bot_id, orm, user, Status.STOPPED)


@router.delete("/{bot_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_bot(bot_id: Id, orm: Orm, user: Writer) -> None:
    """Delete a stopped bot."""
    query = f"DELETE FROM bots WHERE {_THEIRS} AND status = 'stopped' RETURNING id"
    if await orm.fetchval(query, bot_id, *whose(user)) is None:
        bot = await read_bot(bot_id, orm, user)
        raise HTTPException(HTTPStatus.CONFLICT, f"{bot.name} is {bot.status}: stop it first")


async def _switch(bot_id: Id, orm: Orm, user: User, status: Status) -> Bot:
    """Change the status in one statement, so that of two who do it at once one is told."""
    query = f"UPDATE bots SET status = $4 WHERE {_THEIRS} AND status <> $4 RETURNING {_COLUMNS}"
    row = await orm.fetchrow(query, bot_id, *whose(user), status)
    if row is None:
        bot = await read_bot(bot_id, orm, user)
        raise HTTPException(HTTPStatus.CONFLICT, f"{bot.name} is {bot.status} already")
    return _bot(row)


def _bot(row: "asyncpg.Record | None") -> Bot:
    if row is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such bot of yours")
    return Bot(**row)
