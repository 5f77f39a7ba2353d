"""The HTTP interface: health, login, the current user."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from demo_api import __version__
from demo_api.security import (
    InvalidTokenError,
    create_token,
    hash_password,
    read_token,
    utc_now,
    verify_password,
)
from demo_api.settings import settings
from demo_api.storage import User, UserStore

router = APIRouter()
_bearer = HTTPBearer(auto_error=False)
_NOBODY = hash_password("nobody has this password")


class Health(BaseModel):
    """The answer of ``/health``."""

    status: str
    version: str
    instance: str


class Credentials(BaseModel):
    """The body of a login."""

    username: str = Field(min_length=1, max_length=64)
    password: str = Field(min_length=1, max_length=256)


class Token(BaseModel):
    """The answer to a login."""

    access_token: str
    token_type: str
    expires_in: float


class UserOut(BaseModel):
    """A user as others may see them."""

    id: int
    username: str


def user_store(request: Request) -> UserStore:
    """Return the store that the application was started with."""
    store: UserStore = request.app.state.users
    return store


async def current_user(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    users: Annotated[UserStore, Depends(user_store)],
) -> User:
    """Return the user whose token came with the request; answer 401 when there is none."""
    if credentials is None:
        raise _unauthorized("Not authenticated")
    try:
        username = read_token(credentials.credentials, secret=settings.jwt_secret)
    except InvalidTokenError as error:
        raise _unauthorized(f"Invalid token: {error}") from error
    user = await users.find(username)
    if user is None:
        raise _unauthorized("Invalid token: no such user")
    return user


@router.get("/health")
async def health() -> Health:
    """Say that the service takes requests."""
    return Health(status="ok", version=__version__, instance=settings.instance)


@router.post("/api/v1/auth/login")
async def login(
    credentials: Credentials, users: Annotated[UserStore, Depends(user_store)]
) -> Token:
    """Exchange a name and password for a token."""
    user = await users.find(credentials.username)
    # An unknown name costs as much time as a wrong password, so that names cannot be guessed.
    password_hash = _NOBODY if user is None else user.password_hash
    matches = await asyncio.to_thread(verify_password, credentials.password, password_hash)
    if user is None or not matches:
        raise _unauthorized("Wrong username or password")
    token = create_token(
        user.username,
        secret=settings.jwt_secret,
        seconds=settings.token_seconds,
        now=utc_now(),
    )
    return Token(access_token=token, token_type="bearer", expires_in=settings.token_seconds)


@router.get("/api/v1/users/me")
async def me(user: Annotated[User, Depends(current_user)]) -> UserOut:
    """Return the user who asks."""
    return UserOut(id=user.id, username=user.username)


def _unauthorized(detail: str) -> HTTPException:
    return HTTPException(
        status.HTTP_401_UNAUTHORIZED, detail=detail, headers={"WWW-Authenticate": "Bearer"}
    )
