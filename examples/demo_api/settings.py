"""Settings of the service, read from the environment when this module is imported.

=================  =========================================================  =================
variable           meaning                                                    default
=================  =========================================================  =================
``DB_HOST``        where PostgreSQL listens: a host, or a folder of sockets   none: it is needed
``DB_PORT``        its port                                                   5432
``DB_USER``        whom the service logs in as                                none: it is needed
``DB_PASSWORD``    that role's password                                       empty
``DB_NAME``        the database of users, exchanges and bots                  none: it is needed
``DB_OHLCV_NAME``  the database of candles and trades                         none: it is needed
``JWT_SECRET``     the key that signs tokens, 32 bytes or more                none: it is needed
``TOKEN_SECONDS``  how long a token is valid                                  900
``TICK_SECONDS``   the time between two ticks of a subscription               1
=================  =========================================================  =================
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

_NEEDED = ("DB_HOST", "DB_USER", "DB_NAME", "DB_OHLCV_NAME", "JWT_SECRET")
_SHORTEST_SECRET = 32  # bytes; RFC 7518 asks for a key as long as the hash of HS256


class SettingsError(Exception):
    """A variable is missing or makes no sense; says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings, each parsed and checked."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    orm_database: str
    ohlcv_database: str
    jwt_secret: str = field(repr=False)
    token_seconds: float
    tick_seconds: float

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from `environ`. Raises SettingsError."""
        missing = [name for name in _NEEDED if not environ.get(name)]
        if missing:
            raise SettingsError(f"set {', '.join(missing)} before the service is imported")
        secret = environ["JWT_SECRET"]
        if len(secret.encode()) < _SHORTEST_SECRET:
            raise SettingsError(f"JWT_SECRET: needs {_SHORTEST_SECRET} bytes or more")
        return cls(
            host=environ["DB_HOST"],
            port=_port(environ.get("DB_PORT", "5432")),
            user=environ["DB_USER"],
            password=environ.get("DB_PASSWORD", ""),
            orm_database=environ["DB_NAME"],
            ohlcv_database=environ["DB_OHLCV_NAME"],
            jwt_secret=secret,
            token_seconds=_positive(environ, "TOKEN_SECONDS", 900),
            tick_seconds=_positive(environ, "TICK_SECONDS", 1),
        )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(f"DB_PORT: {text!r} is not a number")
    return int(text)


def _positive(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingsError(f"{name}: {text!r} is not a positive number")
    return value


settings = Settings.from_environment(os.environ)
