"""OHLCV: candles of one minute, put together to longer ones, with a look for those that miss."""

from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from demo_api.access import CurrentUser, Writer
from demo_api.database import Ohlcv, Orm, Pool
from demo_api.exchanges import Slug, Symbol, is_listed

router = APIRouter(prefix="/ohlcv/{exchange}/{symbol}", tags=["ohlcv"])

MINUTE = timedelta(minutes=1)
_LONGEST_RANGE = timedelta(days=7)
_MOST_CANDLES = 1000

Positive = Annotated[Decimal, Field(gt=0, max_digits=20, decimal_places=8)]
NonNegative = Annotated[Decimal, Field(ge=0, max_digits=20, decimal_places=8)]


class Timeframe(StrEnum):
    """How long a candle lasts."""

    MINUTE = "1m"
    FIVE_MINUTES = "5m"
    QUARTER = "15m"
    HOUR = "1h"

    @property
    def length(self) -> timedelta:
        """How long that is."""
        minutes = {"1m": 1, "5m": 5, "15m": 15, "1h": 60}
        return minutes[self.value] * MINUTE


class Candle(BaseModel):
    """What happened to a price from `opened_at` on."""

    opened_at: AwareDatetime
    open: Positive
    high: Positive
    low: Positive
    close: Positive
    volume: NonNegative

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.low <= min(self.open, self.close) <= max(self.open, self.close) <= self.high:
            raise ValueError("open and close lie between low and high")
        return self


class NewCandles(BaseModel):
    """The body of a load: candles of one minute."""

    candles: list[Candle] = Field(min_length=1, max_length=_MOST_CANDLES)

    @model_validator(mode="after")
    def _on_the_minute(self) -> Self:
        for candle in self.candles:
            if not _is_minute(candle.opened_at):
                raise ValueError(f"{candle.opened_at.isoformat()} is not on the minute")
        return self


class Loaded(BaseModel):
    """What became of a load."""

    received: int
    stored: int
    last: datetime


class Gap(BaseModel):
    """Candles that miss, from `start` until `end`, where there is one again or the range ends."""

    start: datetime
    end: datetime
    missing: int


class Market(BaseModel):
    """A symbol at an exchange."""

    exchange: Slug
    symbol: Symbol


class Range(BaseModel):
    """A stretch of whole minutes; its end is not part of it."""

    start: datetime
    end: datetime


async def _market(exchange: Slug, symbol: Symbol, orm: Orm, _: CurrentUser) -> Market:
    if not await is_listed(orm, exchange, symbol):
        raise HTTPException(HTTPStatus.NOT_FOUND, f"{symbol} is not traded at {exchange}")
    return Market(exchange=exchange, symbol=symbol)


def _range(
    start: Annotated[AwareDatetime, Query()], end: Annotated[AwareDatetime, Query()]
) -> Range:
    if not timedelta() < end - start <= _LONGEST_RANGE or not _is_minute(start, end):
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"end comes after start, by at most {_LONGEST_RANGE.days} days; both are on the minute",
        )
    return Range(start=start, end=end)


def _is_minute(*moments: datetime) -> bool:
    return not any(moment.second or moment.microsecond for moment in moments)


KnownMarket = Annotated[Market, Depends(_market)]
TimeRange = Annotated[Range, Depends(_range)]


@router.get("")
async def list_candles(
    market: KnownMarket,
    during: TimeRange,
    ohlcv: Ohlcv,
    timeframe: Timeframe = Timeframe.MINUTE,
    limit: Annotated[int, Query(ge=1, le=_MOST_CANDLES)] = _MOST_CANDLES,
) -> list[Candle]:
    """List the candles of a range, the oldest first."""
    rows = await ohlcv.fetch(
        """
        SELECT date_bin($5, opened_at, 'epoch') AS opened_at,
            (array_agg(open ORDER BY opened_at))[1] AS open,
            max(high) AS high,
            min(low) AS low,
            (array_agg(close ORDER BY opened_at DESC))[1] AS close,
            sum(volume) AS volume
        FROM candles
        WHERE exchange = $1 AND symbol = $2 AND opened_at >= $3 AND opened_at < $4
        GROUP BY 1 ORDER BY 1 LIMIT $6
        """,
        *(market.exchange, market.symbol, during.start, during.end, timeframe.length, limit),
    )
    return [Candle(**row) for row in rows]


@router.get("/gaps")
async def list_gaps(market: KnownMarket, during: TimeRange, ohlcv: Ohlcv) -> list[Gap]:
    """List the stretches of a range whose candles of one minute miss, the oldest first."""
    # Missing minutes in a row have the same distance to their number among the missing ones.
    rows = await ohlcv.fetch(
        """
        WITH missing AS (
            SELECT minute, minute - row_number() OVER (ORDER BY minute) * interval '1 minute' AS run
            FROM generate_series($3::timestamptz, $4::timestamptz - interval '1 minute',
                                 interval '1 minute') AS minute
            WHERE NOT EXISTS (
                SELECT FROM candles WHERE exchange = $1 AND symbol = $2 AND opened_at = minute
            )
        )
        SELECT min(minute) AS start, max(minute) + interval '1 minute' AS "end",
            count(*) AS missing
        FROM missing GROUP BY run ORDER BY start
        """,
        *(market.exchange, market.symbol, during.start, during.end),
    )
    return [Gap(**row) for row in rows]


@router.post("/load")
async def load_candles(market: KnownMarket, body: NewCandles, ohlcv: Ohlcv, _: Writer) -> Loaded:
    """Take the candles that are newer than the last one stored, and leave the others."""
    columns = zip(
        *((c.opened_at, c.open, c.high, c.low, c.close, c.volume) for c in body.candles),
        strict=True,
    )
    async with ohlcv.acquire() as connection, connection.transaction():
        # Of two loads at once, the second one waits and then sees what the first has stored.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext($1::text || ' ' || $2::text))",
            *(market.exchange, market.symbol),
        )
        stored = await connection.fetch(
            """
            INSERT INTO candles (exchange, symbol, opened_at, open, high, low, close, volume)
            SELECT $1, $2, *
            FROM unnest($3::timestamptz[], $4::numeric[], $5::numeric[], $6::numeric[],
                        $7::numeric[], $8::numeric[]) AS new (opened_at)
            WHERE opened_at > coalesce(
                (SELECT max(opened_at) FROM candles WHERE exchange = $1 AND symbol = $2), '-infinity'
            )
            ON CONFLICT DO NOTHING
            RETURNING opened_at
            """,
            *(market.exchange, market.symbol, *map(list, columns)),
        )
        last = await connection.fetchval(
            "SELECT max(opened_at) FROM candles WHERE exchange = $1 AND symbol = $2",
            *(market.exchange, market.symbol),
        )
    return Loaded(received=len(body.candles), stored=len(stored), last=last)


async def closes(ohlcv: Pool, market: Market, *, after: datetime) -> list[tuple[datetime, Decimal]]:
    """Give when the candles after a time opened and at what price they closed, in their order."""
    rows = await ohlcv.fetch(
        "SELECT opened_at, close FROM candles"
        " WHERE exchange = $1 AND symbol = $2 AND opened_at > $3 ORDER BY opened_at LIMIT 100",
        *(market.exchange, market.symbol, after),
    )
    return [(row["opened_at"], row["close"]) for row in rows]
