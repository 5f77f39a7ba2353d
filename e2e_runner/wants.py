"""Which examples want PostgreSQL, and what they get. Pure."""

from e2e_runner.discovery.postgres import wants_postgres
from e2e_runner.model import (
    DatabaseDefinition,
    Example,
    Plan,
    PostgresMode,
    PostgresScope,
    PostgresSettings,
)
from e2e_runner.text import plural


def definitions_of(example: Example) -> tuple[DatabaseDefinition, ...]:
    """List the databases that an example and its companions are given, each name once."""
    by_name = {each.name: each for each in example.settings.databases}
    for companion in example.companions:
        for each in definitions_of(companion):
            by_name.setdefault(each.name, each)
    return tuple(by_name.values())


def postgres_words(plan: Plan, settings: PostgresSettings) -> str:
    """Say what the examples that want PostgreSQL get; empty when none wants it."""
    wanting = sum(1 for example in plan.examples if wants_postgres(example))
    if not wanting:
        return ""
    many = plural(wanting, "example")
    if settings.mode is PostgresMode.OFF:
        return f"off, though {many} would use it"
    if settings.url is not None:
        return f"{settings.url}, for {many}"
    if settings.scope is PostgresScope.RUN:
        return f"embedded, one server for {many}"
    return f"embedded, a server for each of {many}" if wanting > 1 else "embedded, for 1 example"
