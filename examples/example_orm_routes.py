# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["users"]
# timeout = "30s"
# ///
"""Look after users: create, read, update, list, delete; and who may not, and what is refused."""

import asyncio

import httpx
from demo_data import ADMIN, SERVICE, TRADER, Person, login

from e2e_runner.kit import (
    api_response,
    check,
    databases,
    metric,
    section,
    serve,
    step,
    success,
    unique_name,
)

PASSWORD = "correct horse battery staple"


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv"),
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        client.headers = await login(client, ADMIN)
        await live_and_die(client)
        await turn_pages(client)
        await refuse(client)
    success("Users are looked after")


async def live_and_die(client: httpx.AsyncClient) -> None:
    """Follow one user from the first day to the last."""
    section("A user")
    who = Person(email=f"{unique_name('trader')}@demo.example", password=PASSWORD)
    with step("create"):
        new = {"email": who.email, "name": "Nora", "password": who.password}
        user = api_response(await client.post("/users", json=new), 201).json()
        check(user, {"id": user["id"], "email": who.email, "name": "Nora", "role": "trader"})
        path = f"/users/{user['id']}"
    with step("read"):
        check(api_response(await client.get(path), 200).json(), user)
    with step("update"):
        changed = api_response(await client.patch(path, json={"name": "Nora B."}), 200).json()
        check(changed, {**user, "name": "Nora B."}, why="only the name was changed")
    with step("log in as that user"):
        theirs = await login(client, who)
    with step("delete"):
        api_response(await client.delete(path), 204)
        api_response(await client.get(path), 404)
        api_response(await client.delete(path), 404)
    with step("the token that is still valid opens nothing any more"):
        api_response(await client.get("/users/me", headers=theirs), 401)


async def turn_pages(client: httpx.AsyncClient) -> None:
    """List users in pages, and see each of them once."""
    section("The list")
    with step("create five users"):
        emails = [f"{unique_name('many')}@demo.example" for _ in range(5)]
        for email in emails:
            new = {"email": email, "name": "One of many", "password": PASSWORD, "role": "viewer"}
            api_response(await client.post("/users", json=new), 201)
    with step("read it page by page"):
        seen: list[str] = []
        total = 1
        while len(seen) < total:
            part = {"limit": 4, "offset": len(seen)}
            page = api_response(await client.get("/users", params=part), 200).json()
            check(len(page["items"]) in range(1, 5), why="a page is neither empty nor too long")
            seen += [user["email"] for user in page["items"]]
            total = page["total"]
        check(len(seen), len(set(seen)), why="nobody is listed twice")
        check(seen[-5:], emails, why="the newest come last, in the order of their creation")
    with step("ask beyond the end"):
        beyond = api_response(await client.get("/users", params={"offset": total}), 200).json()
        check((beyond["items"], beyond["total"]), ([], total))
    metric("users", total)


async def refuse(client: httpx.AsyncClient) -> None:
    """Ask for what must not be."""
    section("Refusals")
    new = {"email": f"{unique_name('twice')}@demo.example", "name": "Twin", "password": PASSWORD}
    with step("the same e-mail twice"):
        api_response(await client.post("/users", json=new), 201)
        api_response(await client.post("/users", json=new), 409)
        api_response(await client.post("/users", json={**new, "email": new["email"].upper()}), 409)
    with step("a password that is too short, a role and a number that nobody has"):
        api_response(await client.post("/users", json={**new, "password": "1234"}), 422)
        api_response(await client.post("/users", json={**new, "role": "king"}), 422)
        api_response(await client.get(f"/users/{2**63}"), 422)
    with step("a trader does not look after users"):
        theirs = await login(client, TRADER)
        api_response(await client.get("/users", headers=theirs), 403)
        api_response(await client.post("/users", headers=theirs, json=new), 403)
        api_response(await client.delete("/users/1", headers=theirs), 403)


if __name__ == "__main__":
    asyncio.run(main())
