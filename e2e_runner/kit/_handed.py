"""Databases under the runner: those that it has made for the script, and further ones beside them."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from e2e_runner import handover
from e2e_runner.addresses import variables
from e2e_runner.dbnames import database_names
from e2e_runner.handover import Prepared
from e2e_runner.kit.isolation import DatabasesUnavailable, require_no_misspelling
from e2e_runner.model import ServerAddress


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
    require_no_misspelling(names, [each.definition.name for each in handed.prepared])
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
        # Here and not above: what the run has made is there at once.
        from e2e_runner.kit._further import make

        await make(handed, new, made, stack)
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
