# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["bots"]
# timeout = "30s"
# ///
"""A trader's bot: create it, start and stop it, delete it; others neither see nor touch it."""

import asyncio
from typing import Any

import httpx
from demo_data import ADMIN, OTHER_TRADER, SERVICE, TRADER, VIEWER, login

from e2e_runner.kit import (
    api_response,
    check,
    databases,
    section,
    serve,
    step,
    success,
    unique_name,
)


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv"),
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        client.headers = await login(client, TRADER)
        bot = await create(client)
        await start_and_stop(client, bot)
        await keep_others_away(client, bot)
        await delete(client, bot)
    success("A bot obeys its owner, and only its owner")


async def create(client: httpx.AsyncClient) -> dict[str, Any]:
    """Create a bot; give it."""
    section("A new bot")
    new = {"name": unique_name("grid"), "exchange": "kestrel", "symbol": "BTC-USDT"}
    with step("create it"):
        bot: dict[str, Any] = api_response(await client.post("/bots", json=new), 201).json()
        check(bot, {**bot, **new, "strategy": "grid", "status": "stopped"})
    with step("find it among your own"):
        mine = api_response(await client.get("/bots"), 200).json()["items"]
        check(bot in mine, why="it was just created")
        check(
            {each["owner_id"] for each in mine}, {bot["owner_id"]}, why="only your own are listed"
        )
    with step("change its strategy"):
        change = {"strategy": "momentum"}
        changed = api_response(await client.patch(f"/bots/{bot['id']}", json=change), 200).json()
        bot |= change
        check(changed, bot)
    with step("no second one of that name, none for what is not traded, no unknown strategy"):
        api_response(await client.post("/bots", json=new), 409)
        api_response(await client.post("/bots", json={**new, "exchange": "atlantis"}), 422)
        api_response(await client.post("/bots", json={**new, "symbol": "TULIP-USDT"}), 422)
        api_response(await client.post("/bots", json={**new, "strategy": "luck"}), 422)
    return bot


async def start_and_stop(client: httpx.AsyncClient, bot: dict[str, Any]) -> None:
    """Switch it on and off, once each."""
    section("Start and stop")
    path = f"/bots/{bot['id']}"
    with step("start it, once"):
        started = api_response(await client.post(f"{path}/start"), 200).json()
        check(started, {**bot, "status": "running"})
        api_response(await client.post(f"{path}/start"), 409)
    with step("it is listed as running"):
        running = api_response(await client.get("/bots", params={"status": "running"}), 200).json()
        check(running["items"], [started])
    with step("a running bot is not deleted"):
        api_response(await client.delete(path), 409)
    with step("of two who stop it at once, one is told that it is stopped"):
        answers = await asyncio.gather(*(client.post(f"{path}/stop") for _ in range(2)))
        check(sorted(answer.status_code for answer in answers), [200, 409])


async def keep_others_away(client: httpx.AsyncClient, bot: dict[str, Any]) -> None:
    """Try what others may not do."""
    section("Others")
    path = f"/bots/{bot['id']}"
    with step("another trader does not even learn that it exists"):
        other = await login(client, OTHER_TRADER)
        api_response(await client.get(path, headers=other), 404)
        api_response(await client.post(f"{path}/start", headers=other), 404)
        api_response(await client.delete(path, headers=other), 404)
        theirs = api_response(await client.get("/bots", headers=other), 200).json()["items"]
        check(all(each["owner_id"] != bot["owner_id"] for each in theirs))
    with step("a viewer creates and starts none"):
        viewer = await login(client, VIEWER)
        new = {"name": "mine", "exchange": "kestrel", "symbol": "BTC-USDT"}
        api_response(await client.post("/bots", headers=viewer, json=new), 403)
        api_response(await client.post(f"{path}/start", headers=viewer), 403)
    with step("an admin sees everybody's"):
        admin = await login(client, ADMIN)
        every = api_response(await client.get("/bots", headers=admin), 200).json()["items"]
        check(len({each["owner_id"] for each in every}) > 1, why="two traders have bots")


async def delete(client: httpx.AsyncClient, bot: dict[str, Any]) -> None:
    """Delete the bot; it is gone."""
    section("The end")
    path = f"/bots/{bot['id']}"
    with step("delete it"):
        api_response(await client.delete(path), 204)
        api_response(await client.get(path), 404)


if __name__ == "__main__":
    asyncio.run(main())
