# /// script
# requires-python = ">=3.11"
# dependencies = ["e2e-runner", "websockets"]
#
# [tool.e2e-run]
# databases = []
# needs = ["example_market_stream_server.py"]
# tags = ["websocket"]
# timeout = "30s"
# ///
"""Follow a market over a WebSocket, lose the connection, and go on without a gap."""

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from e2e_runner.kit import check, companion, metric, section, step, success

SYMBOL = "BTC-USDT"
AWAY = 30  # messages that come meanwhile
ANSWER_SECONDS = 5.0


async def main() -> None:
    """Run the example."""
    # e2e-run has started the server before this script; by hand, this line does.
    async with companion("example_market_stream_server.py") as server:
        url = server.url.replace("http", "ws", 1)
        await ask_for_what_is_not_there(url)
        await lose_the_connection(url)
    success("The stream comes in order, and goes on where it was broken off")


async def ask_for_what_is_not_there(url: str) -> None:
    """Send requests that are refused; the connection stays usable."""
    section("Refusals")
    async with connect(url, proxy=None) as socket:
        with step("an unknown symbol"):
            refusal = await ask(socket, symbol="TULIP-USDT")
            check((refusal["type"], refusal["code"]), ("error", "unknown-symbol"))
        with step("something else than a subscription"):
            refusal = await ask(socket, type="sing", symbol=SYMBOL)
            check((refusal["type"], refusal["code"]), ("error", "bad-request"))
        with step("then a symbol that there is"):
            await subscribe(socket)
            check((await receive(socket))["symbol"], SYMBOL)


async def lose_the_connection(url: str) -> None:
    """Follow the market twice, once without a break and once with one; both see the same."""
    section("A lost connection")
    async with connect(url, proxy=None) as steady:
        with step("subscribe"):
            start = await subscribe(steady)
        with step("subscribe once more, and lose that connection"):
            async with connect(url, proxy=None) as lost:
                await subscribe(lost, after=start)
                before = [await receive(lost) for _ in range(10)]
        with step("meanwhile the market moves on"):
            messages = [await receive(steady) for _ in range(len(before) + AWAY)]
        with step("connect again: first comes what was missed, then what is new"):
            async with connect(url, proxy=None) as again:
                last = before[-1]["sequence"]
                missed = await subscribe(again, after=last) - last
                after = [await receive(again) for _ in range(missed + 10)]
            check(missed >= AWAY, why="so many came meanwhile")
            messages += [await receive(steady) for _ in range(len(before + after) - len(messages))]
            check(before + after, messages, why="nothing is lost, and nothing comes twice")
        with step("all came in order"):
            check_order(messages, start)
    metric("messages", len(messages))
    metric("missed and made up for", missed)


def check_order(messages: list[dict[str, Any]], start: int) -> None:
    """Check that messages follow each other, and that trades lie at the prices of the last quote."""
    numbers = [message["sequence"] for message in messages]
    check(numbers, list(range(start + 1, start + 1 + len(messages))))
    times = [message["at"] for message in messages]
    check(times, sorted(times))
    quote = None
    for message in messages:
        if message["type"] == "quote":
            quote = message
        elif quote is not None:
            price = quote["ask"] if message["side"] == "buy" else quote["bid"]
            check(message["price"], price, why=f"a {message['side']} after {quote}")


async def subscribe(socket: ClientConnection, **more: int) -> int:
    """Subscribe to the market; give the number of its latest message."""
    answer = await ask(socket, symbol=SYMBOL, **more)
    check(answer["type"], "subscribed")
    latest: int = answer["latest"]
    return latest


async def ask(socket: ClientConnection, **request: str | int) -> dict[str, Any]:
    """Send a request; give the answer."""
    await socket.send(json.dumps({"type": "subscribe", **request}))
    return await receive(socket)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """Give the next message."""
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), ANSWER_SECONDS))
    return message


if __name__ == "__main__":
    asyncio.run(main())
