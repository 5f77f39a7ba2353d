# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg", "e2e-runner"]
#
# [tool.e2e-run]
# databases = ["orm"]
# timeout = "20s"
# ///
"""Sign up a trader, by an e-mail that somebody has already: `unique_name` would make a new one."""

import asyncio

import asyncpg

from e2e_runner.kit import check, databases, section, step, success


async def main() -> None:
    """Run the example."""
    async with databases("orm") as isolated:
        users = await asyncpg.connect(isolated["orm"].url)
        try:
            section("Sign up")
            with step("count the traders"):
                before = await users.fetchval("SELECT count(*) FROM users WHERE role = 'trader'")
            with step("sign up Tina"):
                await users.execute(
                    "INSERT INTO users (email, name, role, password_hash)"
                    " VALUES ('tina@demo.example', 'Tina', 'trader', 'none')"
                )
            with step("there is one more"):
                after = await users.fetchval("SELECT count(*) FROM users WHERE role = 'trader'")
                check(after, before + 1)
        finally:
            await users.close()
    success("Tina may trade")


if __name__ == "__main__":
    asyncio.run(main())
