"""What the examples share: settings of the service, its known users, candles.

It is imported and has no ``__main__`` guard, so e2e-run does not take it for an example.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx

from e2e_runner.kit import api_response

# Beside the variables that `databases` sets; the ticks follow each other fast.
SERVICE = {"JWT_SECRET": "known to everybody who reads this", "TICK_SECONDS": "0.02"}

# Six hours of candles are stored for this symbol, and 15 of them miss.
MARKET = "/ohlcv/kestrel/BTC-USDT"
FIRST_CANDLE = datetime(2026, 1, 5, tzinfo=UTC)
END_OF_CANDLES = FIRST_CANDLE + timedelta(hours=6)
GAP = FIRST_CANDLE + timedelta(hours=2, minutes=30)
GAP_MINUTES = 15

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who can log in."""

    email: str
    password: str


# As demo_api/sql/orm_data.sql stores them.
ADMIN = Person(email="ada@demo.example", password="ada-runs-the-desk")
TRADER = Person(email="tina@demo.example", password="tina-buys-low")
OTHER_TRADER = Person(email="tom@demo.example", password="tom-sells-high")
VIEWER = Person(email="vera@demo.example", password="vera-only-looks")


async def login(client: httpx.AsyncClient, who: Person) -> dict[str, str]:
    """Log in; give the headers that say so."""
    body = {"email": who.email, "password": who.password}
    response = api_response(await client.post("/auth/login", json=body), 200)
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


def candles(first: datetime, count: int, *, price: int = 65000) -> list[dict[str, str]]:
    """Make candles of one minute from `first` on, each closing 1 above where it opened."""
    return [
        {
            "opened_at": (first + number * MINUTE).isoformat(),
            "open": str(price + number),
            "high": str(price + number + 2),
            "low": str(price + number - 2),
            "close": str(price + number + 1),
            "volume": "0.5",
        }
        for number in range(count)
    ]


def between(start: datetime, end: datetime) -> dict[str, str]:
    """Make the parameters that ask for a range of time, without its end."""
    return {"start": start.isoformat(), "end": end.isoformat()}
