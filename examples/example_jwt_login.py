# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner", "fastapi", "httpx", "pyjwt", "uvicorn"]
#
# [tool.e2e-run]
# ports = [8000]
# tags = ["auth"]
# timeout = "30s"
# ///
"""Log in with an e-mail and a password, use the token, and see that bad ones are turned away."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import jwt
from demo_data import SERVICE, TRADER, login

from e2e_runner.kit import api_response, check, databases, section, serve, step, success


async def main() -> None:
    """Run the example."""
    async with (
        databases("orm", "ohlcv"),
        serve("demo_api.main:app", port=8000, ready="/health", env=SERVICE) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        await get_a_token(client)
        await use_the_token(client)
        await try_bad_tokens(client)
    success("Only who logs in gets in")


async def get_a_token(client: httpx.AsyncClient) -> None:
    """Get nothing for wrong credentials, and a token for the right ones."""
    section("Credentials")
    with step("a wrong password and an unknown e-mail get the same answer"):
        wrong = {"email": TRADER.email, "password": "guess"}
        unknown = {"email": "nobody@demo.example", "password": TRADER.password}
        answers = [await client.post("/auth/login", json=body) for body in (wrong, unknown)]
        details = [api_response(answer, 401).json() for answer in answers]
        check(details[0], details[1], why="else one could find out who has an account")
    with step("what is no e-mail is refused before anybody is looked up"):
        body = {"email": "tina", "password": TRADER.password}
        api_response(await client.post("/auth/login", json=body), 422)
    with step("the right password gets a token, however the e-mail is spelt"):
        body = {"email": TRADER.email.upper(), "password": TRADER.password}
        token = api_response(await client.post("/auth/login", json=body), 200).json()
        check(token["token_type"], "bearer")
        check(token["expires_in"] > 0, why="it must not have expired already")


async def use_the_token(client: httpx.AsyncClient) -> None:
    """Ask who we are, with the token and without."""
    section("The token")
    with step("ask who we are"):
        headers = await login(client, TRADER)
        me = api_response(await client.get("/users/me", headers=headers), 200).json()
        check((me["email"], me["role"]), (TRADER.email, "trader"))
        check("password_hash" not in me, why="nobody else is to see it")
    with step("ask without it"):
        refusal = api_response(await client.get("/users/me"), 401)
        check(refusal.headers["WWW-Authenticate"], "Bearer")


async def try_bad_tokens(client: httpx.AsyncClient) -> None:
    """Show tokens that the service must not believe."""
    section("Tokens that are none")
    now = datetime.now(UTC)
    soon, before = now + timedelta(hours=1), now - timedelta(hours=1)
    secret = SERVICE["JWT_SECRET"]
    await turned_away(client, "signed by somebody else", sign(exp=soon, key="x" * len(secret)))
    await turned_away(client, "expired", sign(exp=before, key=secret))
    await turned_away(client, "of a user who does not exist", sign("0", exp=soon, key=secret))
    await turned_away(client, "not a token at all", "open sesame")
    with step("one that we sign with the service's own key is believed"):
        # Else the refusals above could have another reason.
        headers = {"Authorization": f"Bearer {sign(exp=soon, key=secret)}"}
        api_response(await client.get("/users/me", headers=headers), 200)


async def turned_away(client: httpx.AsyncClient, what: str, token: str) -> None:
    """See that a token gets 401."""
    with step(f"one that is {what}"):
        headers = {"Authorization": f"Bearer {token}"}
        api_response(await client.get("/users/me", headers=headers), 401)


def sign(subject: str = "1", *, exp: datetime, key: str) -> str:
    """Make a token as the service does."""
    return jwt.encode({"iss": "demo-api", "sub": subject, "exp": exp}, key, algorithm="HS256")


if __name__ == "__main__":
    asyncio.run(main())
