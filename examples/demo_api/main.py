"""The application: ``uvicorn demo_api.main:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from pydantic import BaseModel

from demo_api import __version__, bots, candles, exchanges, ticker, trades, users
from demo_api.database import Databases, databases, open_databases


class Health(BaseModel):
    """The answer of ``/health``."""

    status: str
    version: str
    databases: dict[str, str]


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    async with open_databases() as opened:
        application.state.databases = opened
        yield


app = FastAPI(title="Demo trading service", version=__version__, lifespan=_lifespan)
for module in (users, exchanges, bots, candles, trades, ticker):
    app.include_router(module.router)


@app.get("/health")
async def health(opened: Annotated[Databases, Depends(databases)], response: Response) -> Health:
    """Say whether both databases answer: 200, or 503 and which one does not."""
    answers = await opened.health()
    well = set(answers.values()) == {"ok"}
    if not well:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Health(status="ok" if well else "unavailable", version=__version__, databases=answers)
