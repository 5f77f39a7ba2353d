# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["health"]
# timeout = "30s"
# ///
"""Is the service well? Ask ``/health``, take a database away, and see that it says which one."""

import asyncio

import asyncpg
import httpx
from demo_data import SERVICE, TRADER, login

from e2e_runner.kit import api_response, check, databases, section, serve, step, success


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv") as isolated,
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        section("With both databases")
        with step("ask /health"):
            health = api_response(await client.get("/health"), 200).json()
            check(health["status"], "ok")
            check(health["databases"], {"orm": "ok", "ohlcv": "ok"})
        with step("ask for what does not exist"):
            api_response(await client.get("/no-such-path"), 404)

        section("Without the candles")
        with step("drop the OHLCV database while the service uses it"):
            # It is this example's own copy, so nobody else misses it.
            await drop(isolated["ohlcv"].name, by=isolated["orm"].url)
        with step("ask /health again"):
            health = api_response(await client.get("/health"), 503).json()
            check(health["status"], "unavailable")
            check(health["databases"]["orm"], "ok", why="only the candles are gone")
            check(health["databases"]["ohlcv"] != "ok", why="it is the one that was dropped")
        with step("log in all the same"):
            await login(client, TRADER)

    success("The service tells which database it misses")


async def drop(database: str, *, by: str) -> None:
    """Drop a database with the sessions in it, from another one of the same server."""
    connection = await asyncpg.connect(by)
    try:
        await connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
