"""Password hashes (scrypt) and access tokens (JWT, HS256)."""

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta

import jwt

_ALGORITHM = "HS256"
_ISSUER = "demo-api"
# 16 MiB and some 50 ms for each guess. OWASP asks for p=5; but the examples log in again and again.
_COST = {"n": 2**14, "r": 8, "p": 1}


class InvalidTokenError(Exception):
    """A token that is malformed, expired or signed by someone else; says which."""


def hash_password(password: str) -> str:
    """Hash a password with a salt of its own; the result holds both."""
    salt = secrets.token_bytes(16)
    return f"scrypt${_encode(salt)}${_encode(_scrypt(password, salt))}"


def verify_password(password: str, password_hash: str) -> bool:
    """Compare a password with what `hash_password` made of the right one, in constant time."""
    _, salt, expected = password_hash.split("$")
    return hmac.compare_digest(
        _scrypt(password, base64.b64decode(salt)), base64.b64decode(expected)
    )


def create_token(user_id: int, *, secret: str, seconds: float, now: datetime) -> str:
    """Sign a token that names a user and is valid for `seconds` from `now`."""
    expires = now + timedelta(seconds=seconds)
    claims = {"iss": _ISSUER, "sub": str(user_id), "iat": now, "exp": expires}
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)


def read_token(token: str, *, secret: str) -> int:
    """Give the id of the user whom a valid token names. Raises InvalidTokenError."""
    try:
        claims = jwt.decode(
            token,
            secret,
            algorithms=[_ALGORITHM],
            issuer=_ISSUER,
            options={"require": ["exp", "sub"]},
        )
        return int(claims["sub"])
    except (jwt.InvalidTokenError, ValueError) as error:
        raise InvalidTokenError(str(error)) from error


def utc_now() -> datetime:
    """Give the present time with its zone."""
    return datetime.now(UTC)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, **_COST)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
