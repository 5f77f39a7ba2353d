"""The application: ``uvicorn demo_api.main:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from demo_api import __version__, routes, ticker
from demo_api.security import hash_password
from demo_api.settings import settings
from demo_api.storage import UserStore


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    users = UserStore()
    await users.add(settings.user, hash_password(settings.password))
    app.state.users = users
    yield


def create_app() -> FastAPI:
    """Put the service together."""
    app = FastAPI(title="Demo trading service", version=__version__, lifespan=_lifespan)
    app.include_router(routes.router)
    app.include_router(ticker.router)
    return app


app = create_app()
