# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner"]
#
# [tool.e2e-run]
# databases = ["ohlcv"]
# timeout = "20s"
# ///
"""Archive candles in a database of their own, and forget to drop that."""

import asyncio

import asyncpg

from e2e_runner.kit import check, databases, metric, section, step, success, unique_name


async def main() -> None:
    """Run the example."""
    async with databases("ohlcv") as isolated:
        url = isolated["ohlcv"].url
        archive = unique_name("candle_archive")
        section("Archive the candles")
        candles = await asyncpg.connect(url)
        with step("make a database for them"):
            await candles.execute(f'CREATE DATABASE "{archive}"')
        archived = await asyncpg.connect(url, database=archive)
        with step("copy the closing prices"):
            rows = await candles.fetch("SELECT opened_at, close FROM candles")
            await archived.execute("CREATE TABLE closes (opened_at timestamptz, close numeric)")
            await archived.copy_records_to_table("closes", records=[tuple(row) for row in rows])
        with step("count them"):
            check(await archived.fetchval("SELECT count(*) FROM closes"), len(rows))
        await archived.close()
        await candles.close()
    metric("candles archived", len(rows))
    success("The archive is complete")


if __name__ == "__main__":
    asyncio.run(main())
