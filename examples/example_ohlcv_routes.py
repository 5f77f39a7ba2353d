# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["candles"]
# timeout = "30s"
# ///
"""Candles: a range of time, longer ones, those that miss, and a load that takes only what is new."""

import asyncio
from datetime import datetime
from decimal import Decimal

import httpx
from demo_data import (
    END_OF_CANDLES,
    FIRST_CANDLE,
    GAP,
    GAP_MINUTES,
    MARKET,
    MINUTE,
    SERVICE,
    TRADER,
    VIEWER,
    between,
    candles,
    login,
)

from e2e_runner.kit import api_response, check, databases, metric, section, serve, step, success


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv"),
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        client.headers = await login(client, TRADER)
        await read_candles(client)
        await find_gaps(client)
        await load_what_is_new(client)
    success("Candles are read, missed and loaded")


async def read_candles(client: httpx.AsyncClient) -> None:
    """Read a stretch of time, by the minute and by the hour."""
    section("Candles")
    hour = between(FIRST_CANDLE, FIRST_CANDLE + 60 * MINUTE)
    with step("one hour, minute by minute"):
        minutes = api_response(await client.get(MARKET, params=hour), 200).json()
        opened = [datetime.fromisoformat(candle["opened_at"]) for candle in minutes]
        check(opened, [FIRST_CANDLE + number * MINUTE for number in range(60)])
    with step("the same hour in one candle"):
        whole = await client.get(MARKET, params={**hour, "timeframe": "1h"})
        check(
            api_response(whole, 200).json(),
            [
                {
                    "opened_at": minutes[0]["opened_at"],
                    "open": minutes[0]["open"],
                    "high": str(max(Decimal(candle["high"]) for candle in minutes)),
                    "low": str(min(Decimal(candle["low"]) for candle in minutes)),
                    "close": minutes[-1]["close"],
                    "volume": str(sum(Decimal(candle["volume"]) for candle in minutes)),
                }
            ],
            why="it is what its minutes add up to",
        )
    with step("ranges and symbols that are none"):
        backwards = between(END_OF_CANDLES, FIRST_CANDLE)
        api_response(await client.get(MARKET, params=backwards), 422)
        halved = between(FIRST_CANDLE, FIRST_CANDLE + MINUTE / 2)
        api_response(await client.get(MARKET, params=halved), 422)
        api_response(await client.get(MARKET, params={**hour, "timeframe": "2m"}), 422)
        api_response(await client.get("/ohlcv/kestrel/TULIP-USDT", params=hour), 404)
    metric("candles read", len(minutes))


async def find_gaps(client: httpx.AsyncClient) -> None:
    """Find the candles that miss, and none where all are there."""
    section("Gaps")
    with step("the gap of the demo data"):
        everything = between(FIRST_CANDLE, END_OF_CANDLES)
        gaps = api_response(await client.get(f"{MARKET}/gaps", params=everything), 200).json()
        check(len(gaps), 1)
        start, end = (datetime.fromisoformat(gaps[0][name]) for name in ("start", "end"))
        check((start, end), (GAP, GAP + GAP_MINUTES * MINUTE))
        check(gaps[0]["missing"], GAP_MINUTES)
    with step("none before it"):
        before = between(FIRST_CANDLE, GAP)
        check(api_response(await client.get(f"{MARKET}/gaps", params=before), 200).json(), [])


async def load_what_is_new(client: httpx.AsyncClient) -> None:
    """Load candles twice; the second time only what is newer is taken."""
    section("Incremental load")
    with step("ten new candles"):
        body = {"candles": candles(END_OF_CANDLES, 10)}
        first = api_response(await client.post(f"{MARKET}/load", json=body), 200).json()
        check((first["received"], first["stored"]), (10, 10))
    with step("the same ten and three more"):
        body = {"candles": candles(END_OF_CANDLES, 13)}
        second = api_response(await client.post(f"{MARKET}/load", json=body), 200).json()
        check((second["received"], second["stored"]), (13, 3), why="ten are stored already")
        check(datetime.fromisoformat(second["last"]), END_OF_CANDLES + 12 * MINUTE)
    with step("the gap is in the past, so a load does not fill it"):
        body = {"candles": candles(GAP, GAP_MINUTES)}
        late = api_response(await client.post(f"{MARKET}/load", json=body), 200).json()
        check(late["stored"], 0)
    with step("what was loaded is what is read"):
        loaded = between(END_OF_CANDLES, END_OF_CANDLES + 60 * MINUTE)
        stored = api_response(await client.get(MARKET, params=loaded), 200).json()
        sent = candles(END_OF_CANDLES, 13)
        check([candle["close"] for candle in stored], [candle["close"] for candle in sent])
    with step("candles that cannot be, and somebody who may not load"):
        odd = [{**candles(END_OF_CANDLES, 1)[0], "high": "1"}]
        api_response(await client.post(f"{MARKET}/load", json={"candles": odd}), 422)
        viewer = await login(client, VIEWER)
        api_response(await client.post(f"{MARKET}/load", headers=viewer, json=body), 403)
    metric("candles loaded", first["stored"] + second["stored"])


if __name__ == "__main__":
    asyncio.run(main())
