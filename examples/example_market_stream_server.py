# /// script
# requires-python = ">=3.11"
# dependencies = ["websockets"]
#
# [tool.e2e-run]
# databases = []
# serve = "http://127.0.0.1:8765/health"
# tags = ["websocket"]
# timeout = "30s"
# ///
"""Stream quotes and trades over a WebSocket, until Ctrl-C.

A client asks for a symbol: ``{"type": "subscribe", "symbol": "BTC-USDT"}``. It is answered with
``subscribed`` and the number of the latest message, and gets all that come from then on, each numbered
one higher than the one before. One that was away asks for what it has missed: ``"after": 17`` gives
message 18 first. What cannot be had is answered with an ``error``, and the client may ask again.
"""

import asyncio
import contextlib
import json
import signal
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

HOST, PORT = "127.0.0.1", 8765
PRICES = {"BTC-USDT": 64_000, "ETH-USDT": 3_200}
SECONDS_BETWEEN = 0.01
MESSAGES_KEPT = 1_000  # of each symbol, for those who were away


class TooOldError(Exception):
    """What somebody asks for is no longer kept."""


class Market:
    """The messages about a symbol."""

    def __init__(self, symbol: str, price: int) -> None:
        """Begin with a quote at about `price`."""
        self.latest = 0
        self._symbol = symbol
        self._bid = price
        self._kept: deque[dict[str, Any]] = deque(maxlen=MESSAGES_KEPT)
        self._moved = asyncio.Event()

    async def move(self) -> None:
        """Make messages, for ever: a quote, a trade at the price asked, one at the price bid."""
        while True:
            match self.latest % 3:
                case 0:
                    self._bid += self.latest * 7 % 13 - 6
                    told = {"type": "quote", "bid": self._bid, "ask": self._bid + 1}
                case 1:
                    told = {"type": "trade", "side": "buy", "price": self._bid + 1}
                case _:
                    told = {"type": "trade", "side": "sell", "price": self._bid}
            self.latest += 1
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            self._kept.append({"symbol": self._symbol, "sequence": self.latest, "at": now, **told})
            self._moved.set()
            self._moved = asyncio.Event()
            await asyncio.sleep(SECONDS_BETWEEN)

    async def after(self, sequence: int) -> AsyncIterator[dict[str, Any]]:
        """Give the messages after `sequence`, those that are kept first. Raises TooOldError."""
        while True:
            missed = [each for each in self._kept if each["sequence"] > sequence]
            if missed and missed[0]["sequence"] != sequence + 1:
                raise TooOldError
            for message in missed:
                yield message
                sequence = message["sequence"]
            if sequence >= self.latest:
                await self._moved.wait()


async def serve_client(socket: ServerConnection, markets: dict[str, Market]) -> None:
    """Answer what a client asks for, until it leaves."""
    with contextlib.suppress(ConnectionClosed):
        async for text in socket:
            after: int | None = None
            match read_json(text):
                case {"type": "subscribe", "symbol": str(symbol), "after": int(number)}:
                    after = number
                case {"type": "subscribe", "symbol": str(symbol)}:
                    pass
                case _:
                    await send_error(socket, "bad-request", "subscribe to a symbol")
                    continue
            market = markets.get(symbol)
            if market is None:
                await send_error(socket, "unknown-symbol", f"there are {', '.join(markets)}")
                continue
            latest = market.latest
            await socket.send(json.dumps({"type": "subscribed", "latest": latest}))
            try:
                async for message in market.after(latest if after is None else after):
                    await socket.send(json.dumps(message))
            except TooOldError:
                await send_error(socket, "too-old", f"{MESSAGES_KEPT} messages are kept")


def read_json(text: str | bytes) -> Any:
    """Read a message; one that is no JSON is None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


async def send_error(socket: ServerConnection, code: str, detail: str) -> None:
    """Say why a client does not get what it asks for."""
    await socket.send(json.dumps({"type": "error", "code": code, "detail": detail}))


def health(connection: ServerConnection, request: Request) -> Response | None:
    """Answer those who ask by HTTP whether the server is up; the others get a WebSocket."""
    if "Upgrade" in request.headers:
        return None
    if request.path == "/health":
        return connection.respond(HTTPStatus.OK, "ok\n")
    return connection.respond(HTTPStatus.NOT_FOUND, "There is /health, and a WebSocket\n")


async def main() -> None:
    """Serve until SIGINT, which is Ctrl-C, or SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    markets = {symbol: Market(symbol, price) for symbol, price in PRICES.items()}

    async def handle(socket: ServerConnection) -> None:
        await serve_client(socket, markets)

    async with asyncio.TaskGroup() as tasks:
        moving = [tasks.create_task(market.move()) for market in markets.values()]
        async with serve(handle, HOST, PORT, process_request=health, close_timeout=1):
            print(f"Streaming {', '.join(markets)} at ws://{HOST}:{PORT} until Ctrl-C", flush=True)
            await stopped.wait()
        for task in moving:
            task.cancel()
    print("Stopped")


if __name__ == "__main__":
    asyncio.run(main())
