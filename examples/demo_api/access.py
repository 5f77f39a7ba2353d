"""Who asks, and what a role may do: every route that is not public depends on one of these."""

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from demo_api.database import Orm, Pool
from demo_api.security import InvalidTokenError, read_token
from demo_api.settings import settings

_bearer = HTTPBearer(auto_error=False)


class Role(StrEnum):
    """What a user may do: all, trade, or look."""

    ADMIN = "admin"
    TRADER = "trader"
    VIEWER = "viewer"


class User(BaseModel):
    """A user as others may see them."""

    id: int
    email: str
    name: str
    role: Role


async def user_of_token(token: str, orm: Pool) -> User:
    """Give the user whom a token names, as they are now. Raises InvalidTokenError."""
    user_id = read_token(token, secret=settings.jwt_secret)
    row = await orm.fetchrow("SELECT id, email, name, role FROM users WHERE id = $1", user_id)
    if row is None:
        raise InvalidTokenError("no such user")
    return User(**row)


async def current_user(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)], orm: Orm
) -> User:
    """Give the user whose token came with the request; answer 401 when there is none."""
    if credentials is None:
        raise unauthorized("Not authenticated")
    try:
        return await user_of_token(credentials.credentials, orm)
    except InvalidTokenError as error:
        raise unauthorized(f"Invalid token: {error}") from error


CurrentUser = Annotated[User, Depends(current_user)]


async def writer(user: CurrentUser) -> User:
    """Let pass who may change something; answer 403 to viewers."""
    if user.role is Role.VIEWER:
        raise HTTPException(HTTPStatus.FORBIDDEN, "A viewer may not write")
    return user


async def admin(user: CurrentUser) -> User:
    """Let pass administrators; answer 403 to others."""
    if user.role is not Role.ADMIN:
        raise HTTPException(HTTPStatus.FORBIDDEN, "Only an admin may do this")
    return user


Writer = Annotated[User, Depends(writer)]
Admin = Annotated[User, Depends(admin)]


def whose(user: User) -> tuple[int, bool]:
    """Give what queries ask of what has an owner: who that has to be, and whether anybody will do."""
    return user.id, user.role is Role.ADMIN


def unauthorized(detail: str) -> HTTPException:
    """Make the answer to somebody whom the service does not know."""
    return HTTPException(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})
