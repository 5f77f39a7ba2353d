"""Further databases on the server of the run, beside those that it has made for the script."""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from e2e_runner.databases import with_interpreter
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


async def make(
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
            log_stays=False,
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
