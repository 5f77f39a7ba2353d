"""Logging in, and looking after users."""

import asyncio
from http import HTTPStatus
from typing import Annotated

import asyncpg
from fastapi import APIRouter, HTTPException
from pydantic import AfterValidator, BaseModel, Field

from demo_api.access import Admin, CurrentUser, Role, User, unauthorized
from demo_api.database import Id, Name, Orm, Pool
from demo_api.paging import Page, Paging, fetch_page
from demo_api.security import create_token, hash_password, utc_now, verify_password
from demo_api.settings import settings

router = APIRouter(tags=["users"])
_NOBODY = hash_password("nobody has this password")

Email = Annotated[
    str,
    Field(pattern=r"^[^@\s\x00]+@[^@\s\x00]+\.[^@\s\x00]+$", max_length=254),
    AfterValidator(str.lower),
]
Password = Annotated[str, Field(min_length=8, max_length=256)]


class Credentials(BaseModel):
    """The body of a login."""

    email: Email
    password: str = Field(max_length=256)


class Token(BaseModel):
    """The answer to a login."""

    access_token: str
    token_type: str
    expires_in: float


class NewUser(BaseModel):
    """The body that creates a user."""

    email: Email
    name: Name
    password: Password
    role: Role = Role.TRADER


class UserChange(BaseModel):
    """The body that changes a user; what is left out stays."""

    name: Name | None = None
    role: Role | None = None


@router.post("/auth/login")
async def login(credentials: Credentials, orm: Orm) -> Token:
    """Exchange an e-mail and a password for a token."""
    row = await orm.fetchrow(
        "SELECT id, password_hash FROM users WHERE email = $1", credentials.email
    )
    # An unknown e-mail costs as much time as a wrong password, so that nobody can tell them apart.
    password_hash = _NOBODY if row is None else row["password_hash"]
    matches = await asyncio.to_thread(verify_password, credentials.password, password_hash)
    if row is None or not matches:
        raise unauthorized("Wrong e-mail or password")
    token = create_token(
        row["id"], secret=settings.jwt_secret, seconds=settings.token_seconds, now=utc_now()
    )
    return Token(access_token=token, token_type="bearer", expires_in=settings.token_seconds)


@router.get("/users/me")
async def me(user: CurrentUser) -> User:
    """Show the user who asks."""
    return user


@router.post("/users", status_code=HTTPStatus.CREATED)
async def create_user(new: NewUser, orm: Orm, _: Admin) -> User:
    """Create a user."""
    password_hash = await asyncio.to_thread(hash_password, new.password)
    try:
        rows = await orm.fetch(
            "INSERT INTO users (email, name, role, password_hash) VALUES ($1, $2, $3, $4)"
            " RETURNING id, email, name, role",
            *(new.email, new.name, new.role, password_hash),
        )
    except asyncpg.UniqueViolationError as error:
        raise HTTPException(HTTPStatus.CONFLICT, f"{new.email} is taken") from error
    return User(**rows[0])


@router.get("/users")
async def list_users(orm: Orm, paging: Paging, _: Admin) -> Page[User]:
    """List the users, the oldest first."""
    query = "SELECT id, email, name, role FROM users"
    return await fetch_page(orm, User, query, order="id", part=paging)


@router.get("/users/{user_id}")
async def read_user(user_id: Id, orm: Orm, _: Admin) -> User:
    """Show a user."""
    query = "SELECT id, email, name, role FROM users WHERE id = $1"
    return await _one(orm, query, user_id)


@router.patch("/users/{user_id}")
async def update_user(user_id: Id, change: UserChange, orm: Orm, _: Admin) -> User:
    """Change a user's name or role."""
    query = (
        "UPDATE users SET name = coalesce($2, name), role = coalesce($3, role) WHERE id = $1"
        " RETURNING id, email, name, role"
    )
    return await _one(orm, query, user_id, change.name, change.role)


@router.delete("/users/{user_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_user(user_id: Id, orm: Orm, _: Admin) -> None:
    """Delete a user, with the bots that are theirs."""
    await _one(orm, "DELETE FROM users WHERE id = $1 RETURNING id, email, name, role", user_id)


async def _one(orm: Pool, query: str, user_id: int, *values: object) -> User:
    row = await orm.fetchrow(query, user_id, *values)
    if row is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no user {user_id}")
    return User(**row)
