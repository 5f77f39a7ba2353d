# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["trades"]
# timeout = "30s"
# ///
"""Report trades, and have volume, average price and profit computed from them."""

import asyncio
from datetime import timedelta
from decimal import Decimal

import httpx
from demo_data import FIRST_CANDLE, OTHER_TRADER, SERVICE, TRADER, VIEWER, login

from e2e_runner.kit import api_response, check, databases, metric, section, serve, step, success

TRADES = [  # symbol, side, price, amount, fee
    ("BTC-USDT", "buy", "64000", "0.5", "3.2"),
    ("BTC-USDT", "buy", "64200", "0.5", "3.21"),
    ("BTC-USDT", "sell", "64400", "0.5", "3.22"),
    ("ETH-USDT", "buy", "3200", "2", "0.64"),
]


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv"),
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        client.headers = await login(client, TRADER)
        await report_trades(client)
        await analyse(client)
        await keep_apart(client)
    success("Trades add up")


async def report_trades(client: httpx.AsyncClient) -> None:
    """Store the trades in one request, and read them back."""
    section("Trades")
    trades = [
        {
            "exchange": "kestrel",
            "symbol": symbol,
            "side": side,
            "price": price,
            "amount": amount,
            "fee": fee,
            "executed_at": (FIRST_CANDLE + timedelta(minutes=number)).isoformat(),
        }
        for number, (symbol, side, price, amount, fee) in enumerate(TRADES)
    ]
    with step("report four at once"):
        stored = api_response(await client.post("/trades", json={"trades": trades}), 201).json()
        check(stored["stored"], len(TRADES))
    with step("read them back, the newest first"):
        page = api_response(await client.get("/trades", params={"limit": 2}), 200).json()
        check(page["total"], len(TRADES))
        check([trade["symbol"] for trade in page["items"]], ["ETH-USDT", "BTC-USDT"])
    with step("where one is wrong, none is stored"):
        wrong = [trades[0], {**trades[0], "symbol": "TULIP-USDT"}]
        api_response(await client.post("/trades", json={"trades": wrong}), 422)
        free = [trades[0], {**trades[0], "price": "0"}]
        api_response(await client.post("/trades", json={"trades": free}), 422)
        page = api_response(await client.get("/trades"), 200).json()
        check(page["total"], len(TRADES))
    metric("trades", len(TRADES))


async def analyse(client: httpx.AsyncClient) -> None:
    """Compare what the service computes with what we know."""
    section("Analytics")
    found = api_response(await client.get("/trades/analytics"), 200).json()
    by_symbol = {each["symbol"]: each for each in found}
    check(list(by_symbol), ["BTC-USDT", "ETH-USDT"])
    with step("a symbol that was bought twice and sold once"):
        bitcoin = by_symbol["BTC-USDT"]
        check(Decimal(bitcoin["volume"]), Decimal("1.5"))
        check(Decimal(bitcoin["vwap"]), Decimal(64200))
        check(Decimal(bitcoin["fees"]), Decimal("9.63"))
        # Bought at 64,100 on average, and half a coin of it sold at 64,400.
        check(Decimal(bitcoin["realised_pnl"]), Decimal(150))
    with step("one that was only bought has gained nothing yet"):
        ether = by_symbol["ETH-USDT"]
        check(Decimal(ether["volume"]), Decimal(2))
        check(Decimal(ether["realised_pnl"]), Decimal(0))
    metric("realised pnl", float(bitcoin["realised_pnl"]))


async def keep_apart(client: httpx.AsyncClient) -> None:
    """See that everybody's trades are their own."""
    section("Others")
    with step("another trader's numbers are of their own trades"):
        other = await login(client, OTHER_TRADER)
        theirs = api_response(await client.get("/trades/analytics", headers=other), 200).json()
        check([(each["symbol"], each["trades"]) for each in theirs], [("BTC-USDT", 2)])
    with step("a viewer has none, and may report none"):
        viewer = await login(client, VIEWER)
        check(api_response(await client.get("/trades/analytics", headers=viewer), 200).json(), [])
        mine = api_response(await client.get("/trades"), 200).json()["items"]
        body = {"trades": mine}
        api_response(await client.post("/trades", headers=viewer, json=body), 403)
    with step("nobody sees anything without logging in"):
        nobody = {"Authorization": ""}
        api_response(await client.get("/trades", headers=nobody), 401)


if __name__ == "__main__":
    asyncio.run(main())
