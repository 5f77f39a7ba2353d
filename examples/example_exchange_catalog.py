# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt"]
#
# [tool.e2e-run]
# tags = ["catalog"]
# timeout = "30s"
# ///
"""The catalog of exchanges, with the service in this very process.

The service reads its settings when it is imported, so the import comes after the databases are made
and their names are in the environment. Requests are handed to the application without a server: this
shows its routes and its SQL on a real PostgreSQL, but neither uvicorn nor a socket. It needs no port.
"""

import asyncio
import os

import httpx
from demo_data import ADMIN, SERVICE, VIEWER, login

from e2e_runner.kit import (
    api_response,
    check,
    databases,
    section,
    step,
    success,
    unique_name,
)


async def main() -> None:
    """Run the example."""
    async with databases("orm", "ohlcv"):
        os.environ.update(SERVICE)
        from demo_api.main import app  # not before: it would look for databases that are not there

        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://in-process"
            ) as client,
        ):
            await browse(client)
            await edit(client)
    success("The catalog can be browsed by all, and edited by admins")


async def browse(client: httpx.AsyncClient) -> None:
    """Look for exchanges as somebody who may only look."""
    section("Browse")
    client.headers = await login(client, VIEWER)
    with step("all, in pages"):
        first = await slugs(client, limit=4)
        second = await slugs(client, limit=4, offset=4)
        check(first + second, ["borealis", "harbour", "kestrel", "meridian", "pampero", "zephyr"])
    with step("those of a kind, those that trade a symbol, both"):
        check(await slugs(client, kind="futures"), ["meridian", "pampero"])
        check(await slugs(client, symbol="BTC-USDT"), ["harbour", "kestrel", "meridian"])
        check(await slugs(client, symbol="BTC-USDT", kind="spot"), ["harbour", "kestrel"])
        check(await slugs(client, active=False), ["zephyr"])
    with step("one, with its symbols"):
        exchange = api_response(await client.get("/exchanges/borealis"), 200).json()
        check(exchange["symbols"], ["BTC-EUR", "ETH-EUR"])
    with step("none that does not exist, no kind that is none, no page that is too long"):
        api_response(await client.get("/exchanges/atlantis"), 404)
        api_response(await client.get("/exchanges", params={"kind": "casino"}), 422)
        api_response(await client.get("/exchanges", params={"limit": 1000}), 422)
    with step("nothing at all without logging in"):
        api_response(await client.get("/exchanges", headers={"Authorization": ""}), 401)


async def edit(client: httpx.AsyncClient) -> None:
    """Add and change an exchange as an admin."""
    section("Edit")
    slug = unique_name("exchange")
    new = {"slug": slug, "name": "Nova", "kind": "spot", "symbols": ["BTC-USDT"]}
    with step("a viewer may not"):
        api_response(await client.post("/exchanges", json=new), 403)
    client.headers = await login(client, ADMIN)
    with step("add one, once"):
        added = api_response(await client.post("/exchanges", json=new), 201).json()
        check(added, {**new, "active": True})
        api_response(await client.post("/exchanges", json=new), 409)
    with step("close it, and list one more symbol"):
        change = {"active": False, "symbols": ["ADA-USDT", "BTC-USDT"]}
        changed = api_response(await client.patch(f"/exchanges/{slug}", json=change), 200).json()
        check(changed, {**added, "active": False, "symbols": ["ADA-USDT", "BTC-USDT"]})
    with step("find it where it belongs now"):
        check(await slugs(client, symbol="ADA-USDT"), [slug])
        check(await slugs(client, active=False), [slug, "zephyr"])
    with step("what does not exist is not changed"):
        api_response(await client.patch("/exchanges/atlantis", json=change), 404)


async def slugs(client: httpx.AsyncClient, **wanted: str | int) -> list[str]:
    """List exchanges by their short names."""
    page = api_response(await client.get("/exchanges", params=wanted), 200).json()
    return [exchange["slug"] for exchange in page["items"]]


if __name__ == "__main__":
    asyncio.run(main())
