# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi", "httpx", "pyjwt", "uvicorn", "websockets"]
#
# [tool.e2e-run]
# ports = [8000]
# timeout = "20s"
# ///
"""Log in with a name and password, use the token, and see that a bad one is turned away."""

import sys
from datetime import UTC, datetime, timedelta

import httpx
import jwt
from demo_server import PASSWORD, USERNAME, ServerError, check, check_status, demo_server

LOGIN = "/api/v1/auth/login"
ME = "/api/v1/users/me"


def log_in(client: httpx.Client) -> str:
    """Refuse a wrong password, take the right one; return the token."""
    wrong = client.post(LOGIN, json={"username": USERNAME, "password": "guess"})
    check_status(wrong, 401)
    print(f"A wrong password: {wrong.status_code}, {wrong.json()['detail']!r}.")

    response = client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD})
    check_status(response, 200)
    body = response.json()
    check(body["token_type"] == "bearer", f"not a bearer token: {body}")
    check(body["expires_in"] > 0, f"expired before it was used: {body}")
    print(f"The right one: a token that is valid for {body['expires_in']:g} seconds.")
    return str(body["access_token"])


def use_token(client: httpx.Client, token: str) -> None:
    """Ask who we are, with the token and without."""
    claims = jwt.decode(token, options={"verify_signature": False})
    check(claims["sub"] == USERNAME, f"the token names somebody else: {claims}")

    response = client.get(ME, headers={"Authorization": f"Bearer {token}"})
    check_status(response, 200)
    check(response.json() == {"id": 1, "username": USERNAME}, f"not us: {response.text}")
    print(f"GET {ME}: {response.json()}.")

    check_status(client.get(ME), 401)
    print("Without the token: 401.")


def forge_token(client: httpx.Client) -> None:
    """Sign a token with a key of our own; the service must not believe it."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    claims = {"iss": "demo-api", "sub": USERNAME, "exp": tomorrow}
    forged = jwt.encode(claims, "not the key of the service, but as long", algorithm="HS256")
    response = client.get(ME, headers={"Authorization": f"Bearer {forged}"})
    check_status(response, 401)
    print(f"A forged token: {response.status_code}, {response.json()['detail']!r}.")


def main() -> None:
    """Run the example."""
    with demo_server() as base_url, httpx.Client(base_url=base_url, trust_env=False) as client:
        token = log_in(client)
        use_token(client, token)
        forge_token(client)
    print("Login by token works.")


if __name__ == "__main__":
    try:
        main()
    except ServerError as error:
        sys.exit(f"error: {error}")
