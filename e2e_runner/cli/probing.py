"""What the system allows: found out as a run does it, by setting it up."""

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from e2e_runner.cli.listing import Machine
from e2e_runner.engine import jobs_here
from e2e_runner.model import Plan, PostgresMode, RunSettings
from e2e_runner.postgres.binaries import find_binaries
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner
from e2e_runner.wants import postgres_words


def probe(plan: Plan, run: RunSettings) -> Machine:
    """Find out how processes are held, networks had and PostgreSQL given, and how many jobs there are.

    Raises SetupError when the tier that was asked for cannot be had, naming why.
    """
    # Below the temporary folder: what only lists a project writes nothing into it.
    with tempfile.TemporaryDirectory(prefix="e2e-run-") as folder:
        scratch = Path(folder, "scratch")
        scratch.mkdir()
        with contextlib.closing(Spawner()) as spawner:
            return asyncio.run(_probe(spawner, plan, run, scratch, Path(folder, "log")))


async def _probe(
    spawner: Spawner, plan: Plan, run: RunSettings, scratch: Path, log: Path
) -> Machine:
    async with Supervisor.open(
        spawner, wanted=run.containment, run_id="probe", scratch=scratch, log=log, networks=True
    ) as supervisor:
        return Machine(
            processes=supervisor.tier,
            process_notes=supervisor.notes,
            network=supervisor.networks.tier,
            network_notes=supervisor.networks.notes,
            jobs=jobs_here(plan, run),
            postgres=_postgres(plan, run),
        )


def _postgres(plan: Plan, run: RunSettings) -> str:
    """Say what the examples that want PostgreSQL get, and by which programs; empty when none does."""
    words = postgres_words(plan, run.postgres)
    if not words or run.postgres.mode is PostgresMode.OFF or run.postgres.url is not None:
        return words
    found = find_binaries(os.environ)
    if not found.binaries:
        return f"{words}; they will be blocked, as no PostgreSQL server is installed here"
    return f"{words}, {found.binaries[0].where} ({found.binaries[0].folder})"
