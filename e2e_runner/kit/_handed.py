"""Databases under the runner: those that it has made for the script, and further ones beside them."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from e2e_runner import handover
from e2e_runner.addresses import variables
from e2e_runner.databases import with_interpreter
from e2e_runner.dbnames import database_names
from e2e_runner.handover import Handover, Prepared
from e2e_runner.kit._host import hosted
from e2e_runner.kit._warnings import warn
from e2e_runner.kit.isolation import DatabasesUnavailable
from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres.connection import Unreachable
from e2e_runner.postgres.fill import FillFailed, fill
from e2e_runner.postgres.private import drop_databases, make_database, way_in
from e2e_runner.programs import run_program

_MAINTENANCE = "postgres"  # from where databases are made and dropped, if it lets us in
_DROP_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a block has."""

    address: ServerAddress  # as whom to log in, and the first database
    databases: Mapping[str, str]  # by the names that the block asked for
    environment: Mapping[str, str]  # the variables that tell of it


async def obtain(names: Sequence[str], stack: contextlib.AsyncExitStack) -> Given:
    """Take what the run has made, or make more, until the end of `stack`. Raises DatabasesUnavailable."""
    try:
        handed = handover.decode(os.environ[handover.VARIABLE])
    except ValueError as error:
        raise DatabasesUnavailable(
            f"{handover.VARIABLE} cannot be read: {error}",
            remedy="leave it as the run has set it, or unset it and E2E_RUN",
        ) from None
    chosen = handover.choose(handed, names)
    taken = [each for each in chosen if _is_taken_now(each)]
    # Children inherit this, so that none of them takes what this process uses.
    marked = handover.with_taken(handed, [each.database for each in taken if each.database])
    os.environ[handover.VARIABLE] = handover.encode(marked)
    new = [each for each in chosen if each not in taken]
    made = database_names(
        f"{handed.base}_{secrets.token_hex(3)}", [each.definition for each in new]
    )
    if new:
        await _make(handed, new, made, stack)
    databases = {
        each.definition.name: made.get(each.definition.name) or each.database or ""
        for each in chosen
    }
    address = replace(handed.address, database=next(iter(databases.values())))
    definitions = [each.definition for each in chosen]
    return Given(
        address=address,
        databases=databases,
        environment=variables(address, databases, definitions, handed.env),
    )


def _is_taken_now(prepared: Prepared) -> bool:
    """Take the database that the run has made, unless some process of this script has it already."""
    if prepared.database is None or prepared.taken:
        return False
    folder = os.environ.get("TMPDIR")
    if not folder:
        return True
    # Processes beside this one have not inherited the mark, but the temporary folder of the script.
    digest = hashlib.sha256(prepared.database.encode()).hexdigest()[:16]
    try:
        Path(folder, f"e2e-run-taken-{digest}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # then the mark has to do
        return True
    return True


async def _make(
    handed: Handover,
    wanted: Sequence[Prepared],
    names: Mapping[str, str],
    stack: contextlib.AsyncExitStack,
) -> None:
    """Make databases on the run's server, for the end of `stack` to drop. Raises DatabasesUnavailable."""
    own = [each.database for each in handed.prepared if each.database is not None]
    try:
        admin = await way_in(handed.address, [_MAINTENANCE, *own])
        # First said, then done: what is broken off halfway is dropped too.
        stack.push_async_callback(_drop, admin, tuple(names.values()))
        for each in wanted:
            name = names[each.definition.name]
            await make_database(admin, name, template=each.template)
            if each.template is None:
                await _fill(handed, each.definition, replace(handed.address, database=name))
    except Unreachable as error:
        raise DatabasesUnavailable(
            f"A further database cannot be made on the run's server: {error}",
            remedy="see that the server runs and that its user may create databases; the first block "
            "that asks for a name needs no further one",
        ) from None
    except FillFailed as error:
        raise DatabasesUnavailable(f"A database cannot be filled: {error}") from None


async def _fill(handed: Handover, definition: DatabaseDefinition, address: ServerAddress) -> None:
    """Fill a database as its definition says. Raises FillFailed."""
    if not definition.template and not definition.command:
        return
    async with hosted() as host:
        await fill(
            address,
            definition,
            run_program=partial(run_program, host.supervisor),
            log=host.run_dir.own_file(f"fill-{secrets.token_hex(4)}.txt"),
            environment=with_interpreter(os.environ, handed.python),
            root=handed.root,
            env_mapping=handed.env,
            psql=handed.psql,
        )


async def _drop(admin: ServerAddress, names: Sequence[str]) -> None:
    """Drop databases; what stays is a warning."""
    stays = dict.fromkeys(names, "")
    for _ in range(_DROP_ATTEMPTS):
        try:
            stays = await drop_databases(admin, tuple(stays))
        except Unreachable as error:
            stays = dict.fromkeys(stays, str(error))
        if not stays:
            return
    for name, why in stays.items():
        warn(f"database {name} stays: {why}")
