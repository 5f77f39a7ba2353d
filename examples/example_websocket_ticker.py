# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn", "websockets"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["websocket"]
# timeout = "30s"
# ///
"""Follow prices over a WebSocket: those that are stored, and one that is loaded meanwhile."""

import asyncio
import json
from typing import Any

import httpx
from demo_data import (
    END_OF_CANDLES,
    MARKET,
    MINUTE,
    SERVICE,
    TRADER,
    between,
    candles,
    login,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from e2e_runner.kit import api_response, check, databases, metric, section, serve, step, success

MARKET_OF_TICKS = {"exchange": "kestrel", "symbol": "BTC-USDT"}
AFTER = END_OF_CANDLES - 4 * MINUTE  # three candles opened after it
ANSWER_SECONDS = 5.0


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv"),
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        client.headers = await login(client, TRADER)
        token = client.headers["Authorization"].removeprefix("Bearer ")
        url = server.url.replace("http", "ws", 1) + "/ws/ticker"
        await be_refused(url)
        async with connect(url, proxy=None) as socket:
            await ask(socket, {"type": "login", "token": token}, "welcome")
            await follow(socket, client)
            await try_nonsense(socket)
    success("Prices come as they are loaded")


async def be_refused(url: str) -> None:
    """Send a token that is none; the service hangs up."""
    section("Log in")
    with step("a bad token ends the connection"):
        async with connect(url, proxy=None) as socket:
            await socket.send(json.dumps({"type": "login", "token": "open sesame"}))
            try:
                answer = await receive(socket)
            except ConnectionClosedError as closed:
                check(closed.rcvd and closed.rcvd.code, 4401)
            else:
                check(answer, None, why="the service must hang up")


async def follow(socket: ClientConnection, client: httpx.AsyncClient) -> None:
    """Subscribe, get what is stored, load a candle, get that too, unsubscribe."""
    section("Prices")
    with step("subscribe"):
        wanted = {**MARKET_OF_TICKS, "after": AFTER.isoformat()}
        await ask(socket, {"type": "subscribe", **wanted}, "subscribed")
    with step("the stored candles come as ticks, in order"):
        ticks = [await receive(socket) for _ in range(3)]
        check([tick["sequence"] for tick in ticks], [1, 2, 3])
        stored = between(AFTER + MINUTE, END_OF_CANDLES)
        closes = api_response(await client.get(MARKET, params=stored), 200).json()
        check([tick["price"] for tick in ticks], [candle["close"] for candle in closes])
    with step("a candle that is loaded now comes too"):
        (candle,) = candles(END_OF_CANDLES, 1)
        load = await client.post(f"{MARKET}/load", json={"candles": [candle]})
        check(api_response(load, 200).json()["stored"], 1)
        tick = await receive(socket)
        check((tick["sequence"], tick["price"]), (4, candle["close"]))
    with step("unsubscribe"):
        await ask(socket, {"type": "unsubscribe", **MARKET_OF_TICKS}, "unsubscribed")
    metric("ticks", tick["sequence"])


async def try_nonsense(socket: ClientConnection) -> None:
    """Send what makes no sense; the service says so, and the connection stays open."""
    section("Nonsense")
    unknown = {"exchange": "kestrel", "symbol": "TULIP-USDT", "after": AFTER.isoformat()}
    with step("an unknown symbol"):
        error = await ask(socket, {"type": "subscribe", **unknown}, "error")
        check(error["code"], "unknown-symbol")
    with step("something that is not subscribed"):
        error = await ask(socket, {"type": "unsubscribe", **MARKET_OF_TICKS}, "error")
        check(error["code"], "not-subscribed")
    with step("something else, and what is not even text"):
        error = await ask(socket, {"type": "sing"}, "error")
        check(error["code"], "bad-request")
        await socket.send(b"\0")
        check((await receive(socket))["code"], "bad-request")


async def ask(socket: ClientConnection, message: dict[str, str], expected: str) -> dict[str, Any]:
    """Send a message; give the answer, which must be of the expected type."""
    await socket.send(json.dumps(message))
    answer = await receive(socket)
    check(answer["type"], expected, why=f"the answer to {message['type']!r}")
    return answer


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """Give the next message."""
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), ANSWER_SECONDS))
    return message


if __name__ == "__main__":
    asyncio.run(main())
