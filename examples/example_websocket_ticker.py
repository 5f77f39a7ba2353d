# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi", "httpx", "pyjwt", "uvicorn", "websockets"]
#
# [tool.e2e-run]
# tags = ["websocket"]
# ports = [8000]
# timeout = "20s"
# ///
"""Follow prices over a WebSocket: subscribe, check the sequence and the heartbeat, leave."""

import json
import sys
from decimal import Decimal
from typing import Any

from demo_server import ServerError, check, demo_server
from websockets.sync.client import ClientConnection, connect

SYMBOL = "BTC-USD"
TICKS = 5
ANSWER_SECONDS = 5.0


def ask(socket: ClientConnection, message: dict[str, str], expected: str) -> dict[str, Any]:
    """Send a message and return the answer, which must be of the expected type."""
    socket.send(json.dumps(message))
    return receive(socket, expected, skip=("tick", "heartbeat"))


def receive(socket: ClientConnection, expected: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the next message that is not of a type to skip; it must be of the expected type."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=ANSWER_SECONDS))
        if message["type"] == expected:
            return message
        check(message["type"] in skip, f"expected {expected!r}, got {message}")


def follow_prices(socket: ClientConnection) -> list[Decimal]:
    """Subscribe, read a few ticks and a heartbeat, unsubscribe; return the prices."""
    answer = ask(socket, {"type": "subscribe", "symbol": SYMBOL}, "subscribed")
    check(answer["symbol"] == SYMBOL, f"subscribed to another symbol: {answer}")
    prices = []
    for sequence in range(1, TICKS + 1):
        tick = receive(socket, "tick", skip=("heartbeat",))
        check(tick["sequence"] == sequence, f"expected tick number {sequence}, got {tick}")
        prices.append(Decimal(tick["price"]))
    receive(socket, "heartbeat", skip=("tick",))
    ask(socket, {"type": "unsubscribe", "symbol": SYMBOL}, "unsubscribed")
    return prices


def main() -> None:
    """Run the example."""
    with demo_server() as base_url:
        url = base_url.replace("http", "ws", 1) + "/ws/ticker"
        with connect(url, proxy=None) as socket:
            error = ask(socket, {"type": "subscribe", "symbol": "TULIPS"}, "error")
            check(error["code"] == "unknown-symbol", f"expected unknown-symbol, got {error}")
            print(f"An unknown symbol is refused: {error['detail']}.")

            prices = follow_prices(socket)
            print(f"{TICKS} ticks of {SYMBOL} in order: {', '.join(map(str, prices))}.")
            print("A heartbeat arrived among them or after.")

            again = follow_prices(socket)
            check(again == prices, f"the walk differs the second time: {again}, not {prices}")
            print("A second subscription starts from the first tick and sees the same prices.")
    print("The ticker works.")


if __name__ == "__main__":
    try:
        main()
    except ServerError as error:
        sys.exit(f"error: {error}")
