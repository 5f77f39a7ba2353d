"""Trades: what was bought and sold, and what came of it. Each sees their own; an admin sees all."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from http import HTTPStatus

from fastapi import APIRouter, HTTPException
from pydantic import AwareDatetime, BaseModel, Field

from demo_api.access import CurrentUser, Writer, whose
from demo_api.candles import NonNegative, Positive
from demo_api.database import Ohlcv, Orm
from demo_api.exchanges import Slug, Symbol, is_listed
from demo_api.paging import Page, Paging, fetch_page

router = APIRouter(prefix="/trades", tags=["trades"])

_COLUMNS = "id, owner_id, exchange, symbol, side, price, amount, fee, executed_at"
_THEIRS = "(owner_id = $1 OR $2)"


class Side(StrEnum):
    """Which way a trade went."""

    BUY = "buy"
    SELL = "sell"


class NewTrade(BaseModel):
    """A trade as it is reported."""

    exchange: Slug
    symbol: Symbol
    side: Side
    price: Positive
    amount: Positive
    fee: NonNegative = Decimal(0)
    executed_at: AwareDatetime


class Trade(NewTrade):
    """A trade as it is stored."""

    id: int
    owner_id: int


class NewTrades(BaseModel):
    """The body that stores trades."""

    trades: list[NewTrade] = Field(min_length=1, max_length=1000)


class Stored(BaseModel):
    """How many trades were stored."""

    stored: int


class Analysis(BaseModel):
    """What the trades of one symbol add up to.

    `vwap` is the average price, weighted by amount. `realised_pnl` is what was gained on the amount
    that was both bought and sold, at the average prices of both, before fees.
    """

    symbol: str
    trades: int
    volume: Decimal
    turnover: Decimal
    vwap: Decimal
    fees: Decimal
    realised_pnl: Decimal
    first: datetime
    last: datetime


@router.post("", status_code=HTTPStatus.CREATED)
async def store_trades(body: NewTrades, orm: Orm, ohlcv: Ohlcv, user: Writer) -> Stored:
    """Store trades: all of them, or none where one is of a symbol that nobody trades."""
    for exchange, symbol in sorted({(trade.exchange, trade.symbol) for trade in body.trades}):
        if not await is_listed(orm, exchange, symbol):
            raise HTTPException(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"{symbol} is not traded at {exchange}"
            )
    columns = ("exchange", "symbol", "side", "price", "amount", "fee", "executed_at")
    async with ohlcv.acquire() as connection:
        await connection.copy_records_to_table(
            "trades",
            columns=("owner_id", *columns),
            records=[
                (user.id, *(getattr(trade, column) for column in columns)) for trade in body.trades
            ],
        )
    return Stored(stored=len(body.trades))


@router.get("")
async def list_trades(
    ohlcv: Ohlcv, paging: Paging, user: CurrentUser, symbol: Symbol | None = None
) -> Page[Trade]:
    """List trades, the newest first."""
    query = f"SELECT {_COLUMNS} FROM trades WHERE {_THEIRS} AND ($3::text IS NULL OR symbol = $3)"
    values = (*whose(user), symbol)
    order = "executed_at DESC, id DESC"
    return await fetch_page(ohlcv, Trade, query, *values, order=order, part=paging)


@router.get("/analytics")
async def analyse_trades(ohlcv: Ohlcv, user: CurrentUser) -> list[Analysis]:
    """Add trades up by symbol."""
    rows = await ohlcv.fetch(
        f"""
        WITH per_symbol AS (
            SELECT symbol, count(*) AS trades, min(executed_at) AS first, max(executed_at) AS last,
                sum(amount) AS volume, sum(price * amount) AS turnover, sum(fee) AS fees,
                sum(amount) FILTER (WHERE side = 'buy') AS bought,
                sum(price * amount) FILTER (WHERE side = 'buy') AS paid,
                sum(amount) FILTER (WHERE side = 'sell') AS sold,
                sum(price * amount) FILTER (WHERE side = 'sell') AS earned
            FROM trades WHERE {_THEIRS} GROUP BY symbol
        )
        SELECT symbol, trades, first, last, trim_scale(volume) AS volume,
            trim_scale(turnover) AS turnover, trim_scale(fees) AS fees,
            trim_scale(round(turnover / volume, 8)) AS vwap,
            trim_scale(round(
                coalesce((earned / sold - paid / bought) * least(bought, sold), 0), 8
            )) AS realised_pnl
        FROM per_symbol ORDER BY symbol
        """,
        *whose(user),
    )
    return [Analysis(**row) for row in rows]
