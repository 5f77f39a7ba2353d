# /// script
# requires-python = ">=3.11"
# dependencies = ["e2e-runner"]
#
# [tool.e2e-run]
# databases = []
# timeout = "20s"
# ///
"""Value a position by the exchange rates of the day, without waiting until they are there.

Whoever asks first finds the cache of the rates empty, and has it filled. So this passes every other time.
"""

import json
from pathlib import Path

from e2e_runner.kit import check, section, step, success

CACHE = Path(__file__).with_name(".rates.json")


def ask_for_rates() -> dict[str, float]:
    """Give the rates that are cached, and use them up; else have them fetched for the next time."""
    if not CACHE.exists():
        CACHE.write_text(json.dumps({"EUR/USD": 1.25}), encoding="utf-8")
        return {}
    rates: dict[str, float] = json.loads(CACHE.read_text(encoding="utf-8"))
    CACHE.unlink()
    return rates


def main() -> None:
    """Run the example."""
    section("Value a position in euros")
    with step("get the rates of the day"):
        rates = ask_for_rates()
        check(rates, why="the rates of the day")
    with step("convert 1000 euros"):
        check(1000 * rates["EUR/USD"], 1250.0)
    success("The position is valued")


if __name__ == "__main__":
    main()
