"""Prices. Each symbol walks from its opening price in steps that depend on nothing but the symbol."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

OPENING_PRICES = {
    "BTC-USD": Decimal("64250.00"),
    "ETH-USD": Decimal("3120.00"),
    "EUR-USD": Decimal("1.0850"),
}
_LARGEST_STEP = 5  # in units of the last decimal place


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One price of one symbol; the sequence counts from 1 without gaps."""

    symbol: str
    sequence: int
    price: Decimal


def walk(symbol: str) -> Iterator[Tick]:
    """Yield a symbol's ticks for ever: the same ones every time. KeyError for an unknown symbol."""
    price = OPENING_PRICES[symbol]
    unit = Decimal(1).scaleb(int(price.as_tuple().exponent))
    steps = random.Random(symbol)  # noqa: S311 - repeatable on purpose; nothing secret
    sequence = 1
    while True:
        yield Tick(symbol=symbol, sequence=sequence, price=price)
        price = max(unit, price + steps.randint(-_LARGEST_STEP, _LARGEST_STEP) * unit)
        sequence += 1
