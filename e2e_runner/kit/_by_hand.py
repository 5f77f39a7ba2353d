"""Databases with no runner around: on the server that is configured, else on one that is brought."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from e2e_runner import handover
from e2e_runner.addresses import without_application
from e2e_runner.config import Resolved, resolve
from e2e_runner.databases import Databases, NoDatabase
from e2e_runner.discovery import make_plan
from e2e_runner.errors import E2ERunError
from e2e_runner.kit._environment import environment
from e2e_runner.kit._handed import Given
from e2e_runner.kit._host import hosted
from e2e_runner.kit._shared import Shared
from e2e_runner.kit._warnings import warn
from e2e_runner.kit.isolation import DatabasesUnavailable, require_no_misspelling
from e2e_runner.model import DatabaseDefinition, Example, ExampleSettings, Plan, PostgresMode
from e2e_runner.stop import Stop
from e2e_runner.wants import definitions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Project:
    """What the open blocks of a script share: a server each, or a part of one."""

    databases: Databases
    script: Example
    defined: Mapping[str, DatabaseDefinition]


async def obtain(names: Sequence[str], stack: contextlib.AsyncExitStack) -> Given:
    """Make databases that last until the end of `stack`. Raises DatabasesUnavailable."""
    if "E2E_RUN" in os.environ:
        raise DatabasesUnavailable(
            "This run gives the script no PostgreSQL, so that no databases can be made.",
            facts=("It was turned off, or nothing has told the run that the script wants it.",),
            remedy="leave out --postgres off (E2E_RUN_POSTGRES, `url` of [tool.e2e-run.postgres]), "
            "and write `postgres = true` into the script's [tool.e2e-run] metadata.",
        )
    try:
        project = await stack.enter_async_context(_project.hold())
        script = project.script
        if names:
            require_no_misspelling(names, project.defined)
            wanted = [project.defined.get(name, DatabaseDefinition(name=name)) for name in names]
            settings = replace(script.settings, databases=tuple(wanted))
            script = replace(script, settings=settings, companions=())
        grant = await project.databases.give(script)
        if grant is None:
            raise AssertionError("a script that wants PostgreSQL is given it")
        stack.push_async_callback(project.databases.release, grant, keep=None)
    except NoDatabase as error:
        raise DatabasesUnavailable(
            f"Databases cannot be made: {error}", facts=error.facts, remedy=" ".join(error.advice)
        ) from None
    except E2ERunError as error:
        raise DatabasesUnavailable(str(error)) from None
    told = dict(grant.environment)
    handed = handover.decode(told.pop(handover.VARIABLE))
    return Given(
        address=handed.address,
        databases={
            each.definition.name: each.database
            for each in handover.choose(handed, names)
            if each.database is not None
        },
        environment=told,
    )


async def _open(stack: contextlib.AsyncExitStack) -> _Project:
    """Find the configuration as the runner does, and have what it gives scripts. Raises E2ERunError."""
    environ = environment.without_layers()
    file = _script_file()
    resolved = _resolved(file, environ)
    script = None if file is None else _example(resolved)
    run = resolved.run
    if run.postgres.mode is PostgresMode.OFF or (script and script.settings.postgres is False):
        raise DatabasesUnavailable(
            "The configuration wants no PostgreSQL, so that no databases can be made.",
            remedy='take out `postgres = false` (or E2E_RUN_POSTGRES=off, or `url = "off"` of '
            "[tool.e2e-run.postgres]), or the variables of another server from the script's `env`.",
        )
    script = script or _without_file(run.postgres.databases)
    script = replace(script, settings=replace(script.settings, postgres=True))
    own = definitions_of(script)
    withheld = without_application(environ, run.postgres, own)
    # Beneath the blocks: an application that finds PGHOSTADDR or PGSERVICE goes to another server.
    stack.enter_context(environment.layer(dict.fromkeys(withheld.names)))
    host = await stack.enter_async_context(hosted())
    databases = await stack.enter_async_context(
        Databases(
            run,
            Plan(examples=(script,)),
            supervisor=host.supervisor,
            run_dir=host.run_dir,
            environ=withheld.environ,
            stop=Stop(),
            warn=warn,
        )
    )
    defined = {each.name: each for each in (*run.postgres.databases, *own)}
    return _Project(databases=databases, script=script, defined=defined)


_project = Shared(_open)


def _script_file() -> Path | None:
    """Find the file of the script that is running; None for one that has none, as ``python -c``."""
    name = getattr(sys.modules.get("__main__"), "__file__", None)
    with contextlib.suppress(OSError):
        if name and (file := Path(name).absolute()).is_file():
            return file
    return None


def _resolved(file: Path | None, environ: Mapping[str, str]) -> Resolved:
    try:
        cwd = Path.cwd()
    except OSError:  # it was removed
        cwd = file.parent if file else Path("/")
    return resolve({}, [str(file or cwd)], environ, cwd)


def _example(resolved: Resolved) -> Example | None:
    """Resolve the settings of the script, which is all that is searched. Raises DatabasesUnavailable."""
    plan = make_plan(resolved)
    for message in plan.warnings:
        warn(message)
    found = [*plan.examples, *(each.example for each in plan.deselected)]
    if not found:
        return None
    if found[0].problems:
        raise DatabasesUnavailable("\n".join(each.message for each in found[0].problems))
    return found[0]


def _without_file(definitions: tuple[DatabaseDefinition, ...]) -> Example:
    """Stand in for a script that has no file, which gets what every script gets."""
    return Example(
        path="",
        file=Path(),
        argv=(),
        settings=ExampleSettings(
            timeout=0,
            grace=0,
            ports=(),
            tags=(),
            env={},
            args=(),
            stdin=None,
            cwd=Path(),
            serve=None,
            needs=(),
            skip=None,
            expect_exit=0,
            interpreter=(),
            databases=definitions,
        ),
    )
