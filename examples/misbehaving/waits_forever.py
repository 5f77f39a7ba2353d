# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner"]
#
# [tool.e2e-run]
# databases = ["orm"]
# timeout = "5s"
# ///
"""Wait for the news that an order is filled, which goes to a channel of another name."""

import asyncio

import asyncpg

from e2e_runner.kit import check, databases, section, step, success


async def main() -> None:
    """Run the example."""
    async with databases("orm") as isolated:
        exchange = await asyncpg.connect(isolated["orm"].url)
        try:
            news: asyncio.Queue[str] = asyncio.Queue()
            section("Have an order filled")
            with step("listen for fills"):
                await exchange.add_listener("order_filled", lambda *told: news.put_nowait(told[-1]))
            with step("fill the order"):
                await exchange.execute("NOTIFY orders_filled, 'order 17'")
            with step("wait for the news"):
                check(await news.get(), "order 17")
        finally:
            await exchange.close()
    success("The order is filled")


if __name__ == "__main__":
    asyncio.run(main())
