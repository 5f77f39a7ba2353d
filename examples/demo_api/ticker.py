"""The WebSocket interface: live prices by symbol.

A client sends ``{"type": "subscribe", "symbol": "BTC-USD"}`` or ``unsubscribe``. The service answers
``subscribed`` or ``unsubscribed``, then sends ``tick`` messages whose ``sequence`` counts from 1 for
each subscription, and ``heartbeat`` messages as long as the connection is open. What it does not
understand it answers with an ``error`` that says why; the connection stays open.
"""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from demo_api.market import OPENING_PRICES, walk
from demo_api.settings import settings

router = APIRouter()


@router.websocket("/ws/ticker")
async def ticker(websocket: WebSocket) -> None:
    """Serve one connection until the client leaves."""
    await websocket.accept()
    subscriptions: dict[str, asyncio.Task[None]] = {}
    beat = asyncio.create_task(_send_heartbeats(websocket))
    try:
        while True:
            reply = _handle(await websocket.receive_text(), websocket, subscriptions)
            await websocket.send_json(reply)
    except WebSocketDisconnect:
        pass
    finally:
        tasks = [beat, *subscriptions.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _handle(
    text: str, websocket: WebSocket, subscriptions: dict[str, asyncio.Task[None]]
) -> dict[str, Any]:
    """Act on one message and return the answer; a new task first runs after that is sent."""
    try:
        message = json.loads(text)
    except ValueError:
        return _error("not-json", "a message is a JSON object")
    match message:
        case {"type": "subscribe", "symbol": str(symbol)}:
            return _subscribe(symbol, websocket, subscriptions)
        case {"type": "unsubscribe", "symbol": str(symbol)}:
            if symbol not in subscriptions:
                return _error("not-subscribed", f"{symbol} is not subscribed on this connection")
            subscriptions.pop(symbol).cancel()
            return {"type": "unsubscribed", "symbol": symbol}
        case _:
            return _error("bad-request", 'send {"type": "subscribe", "symbol": "..."}')


def _subscribe(
    symbol: str, websocket: WebSocket, subscriptions: dict[str, asyncio.Task[None]]
) -> dict[str, Any]:
    if symbol not in OPENING_PRICES:
        return _error("unknown-symbol", f"{symbol} is none of {', '.join(OPENING_PRICES)}")
    if symbol in subscriptions:
        return _error("already-subscribed", f"{symbol} is subscribed on this connection")
    subscriptions[symbol] = asyncio.create_task(_send_ticks(websocket, symbol))
    return {"type": "subscribed", "symbol": symbol}


def _error(code: str, detail: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "detail": detail}


async def _send_ticks(websocket: WebSocket, symbol: str) -> None:
    for tick in walk(symbol):
        await asyncio.sleep(settings.tick_seconds)
        await websocket.send_json(
            {
                "type": "tick",
                "symbol": tick.symbol,
                "sequence": tick.sequence,
                "price": str(tick.price),
            }
        )


async def _send_heartbeats(websocket: WebSocket) -> None:
    while True:
        await asyncio.sleep(settings.beat_seconds)
        await websocket.send_json({"type": "heartbeat"})
