"""Settings of the service, read from the environment when it is imported.

======================  ===============================================  =======================
variable                meaning                                          default
======================  ===============================================  =======================
``DEMO_JWT_SECRET``     key that signs tokens, 32 bytes or more          random for each process
``DEMO_TOKEN_SECONDS``  how long a token is valid                        900
``DEMO_TICK_SECONDS``   time between two ticks of a subscription         0.05
``DEMO_BEAT_SECONDS``   time between two heartbeats of a connection      0.2
``DEMO_USER``           name of the user that exists from the start      trader
``DEMO_PASSWORD``       that user's password                             buy-low-sell-high
``DEMO_INSTANCE``       what this process is called in ``/health``       random for each process
======================  ===============================================  =======================
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_SHORTEST_SECRET = 32  # bytes; RFC 7518 asks for a key as long as the hash of HS256


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings, each parsed and checked."""

    jwt_secret: str
    token_seconds: float
    tick_seconds: float
    beat_seconds: float
    user: str
    password: str
    instance: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from `environ`; a bad value raises ValueError naming its variable."""
        secret = environ.get("DEMO_JWT_SECRET") or secrets.token_urlsafe(_SHORTEST_SECRET)
        if len(secret.encode()) < _SHORTEST_SECRET:
            raise ValueError(f"DEMO_JWT_SECRET: needs {_SHORTEST_SECRET} bytes or more")
        return cls(
            jwt_secret=secret,
            token_seconds=_seconds(environ, "DEMO_TOKEN_SECONDS", 900),
            tick_seconds=_seconds(environ, "DEMO_TICK_SECONDS", 0.05),
            beat_seconds=_seconds(environ, "DEMO_BEAT_SECONDS", 0.2),
            user=environ.get("DEMO_USER", "trader"),
            password=environ.get("DEMO_PASSWORD", "buy-low-sell-high"),
            instance=environ.get("DEMO_INSTANCE") or secrets.token_hex(4),
        )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: {text!r} is not a positive number of seconds")
    return value


settings = Settings.from_environment(os.environ)
