"""The WebSocket interface: prices as they come.

A client sends its token first: ``{"type": "login", "token": "..."}``. In a message it is written to
no log, as a part of the address would be. Then it sends ``{"type": "subscribe", "exchange": "...",
"symbol": "...", "after": "..."}``, and gets a ``tick`` for each candle that opened after that time,
stored ones and such as are loaded later, with a ``sequence`` that counts from 1. ``unsubscribe`` ends
that. What the service does not understand it answers with an ``error`` that says why.
"""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from demo_api.access import user_of_token
from demo_api.candles import Market, closes
from demo_api.database import Databases, databases
from demo_api.exchanges import is_listed
from demo_api.security import InvalidTokenError
from demo_api.settings import settings

router = APIRouter()

UNAUTHORIZED = 4401  # the code that the connection is closed with; 4000-4999 are the application's
_LOGIN_SECONDS = 5.0


class Login(BaseModel):
    """Says who it is."""

    type: Literal["login"]
    token: str


class Subscribe(Market):
    """Asks for the ticks of a market."""

    type: Literal["subscribe"]
    after: AwareDatetime


class Unsubscribe(Market):
    """Asks for no more of them."""

    type: Literal["unsubscribe"]


_REQUEST: TypeAdapter[Subscribe | Unsubscribe] = TypeAdapter(
    Annotated[Subscribe | Unsubscribe, Field(discriminator="type")]
)


@router.websocket("/ws/ticker")
async def ticker(websocket: WebSocket) -> None:
    """Serve one connection until the client leaves."""
    await websocket.accept()
    opened = databases(websocket)
    try:
        login = Login.model_validate_json(
            await asyncio.wait_for(_receive(websocket), _LOGIN_SECONDS)
        )
        user = await user_of_token(login.token, opened.orm)
    except WebSocketDisconnect:
        return
    except (TimeoutError, ValidationError, InvalidTokenError):
        await websocket.close(UNAUTHORIZED, "Log in first, with a valid token")
        return
    await websocket.send_json({"type": "welcome", "user": user.email})
    await _Connection(websocket, opened).serve()


class _Connection:
    """What a client that has logged in is subscribed to."""

    def __init__(self, websocket: WebSocket, opened: Databases) -> None:
        self._websocket = websocket
        self._databases = opened
        self._subscriptions: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def serve(self) -> None:
        try:
            # Whatever goes wrong in one of its tasks ends the connection, and the client knows.
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._answer(await _receive(self._websocket), tasks)
        except* WebSocketDisconnect:
            pass

    async def _answer(self, text: str, tasks: asyncio.TaskGroup) -> None:
        try:
            request = _REQUEST.validate_json(text)
        except ValidationError:
            await self._error("bad-request", "send subscribe or unsubscribe as the manual says")
            return
        market = (request.exchange, request.symbol)
        known = market in self._subscriptions
        if isinstance(request, Unsubscribe):
            if not known:
                await self._error("not-subscribed", f"{request.symbol} is not subscribed")
                return
            self._subscriptions.pop(market).cancel()
            await self._send("unsubscribed", request)
        elif known:
            await self._error("already-subscribed", f"{request.symbol} is subscribed")
        elif not await is_listed(self._databases.orm, *market):
            await self._error(
                "unknown-symbol", f"{request.symbol} is not traded at {request.exchange}"
            )
        else:
            await self._send("subscribed", request)
            self._subscriptions[market] = tasks.create_task(self._follow(request))

    async def _follow(self, request: Subscribe) -> None:
        sequence = 0
        last = request.after
        while True:
            for opened_at, close in await closes(self._databases.ohlcv, request, after=last):
                sequence += 1
                last = opened_at
                await self._send(
                    *("tick", request),
                    sequence=sequence,
                    at=opened_at.isoformat(),
                    price=str(close),
                )
                await asyncio.sleep(settings.tick_seconds)
            await asyncio.sleep(settings.tick_seconds)

    async def _error(self, code: str, detail: str) -> None:
        await self._websocket.send_json({"type": "error", "code": code, "detail": detail})

    async def _send(self, kind: str, market: Market, **more: object) -> None:
        message = {"type": kind, "exchange": market.exchange, "symbol": market.symbol, **more}
        await self._websocket.send_json(message)


async def _receive(websocket: WebSocket) -> str:
    """Give the next message; one that is no text makes as little sense as an empty one."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    return message.get("text") or ""
