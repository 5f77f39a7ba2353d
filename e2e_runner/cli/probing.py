"""What the system allows: found out as a run does it, by setting it up."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

from e2e_runner.cli.listing import Tiers
from e2e_runner.model import Containment
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner


def probe(wanted: Containment | None) -> Tiers:
    """Find out how processes are held, and networks had, on this machine.

    Raises SetupError when the tier `wanted` cannot be had, naming why.
    """
    # Below the temporary folder: what only lists a project writes nothing into it.
    with tempfile.TemporaryDirectory(prefix="e2e-run-") as folder:
        scratch = Path(folder, "scratch")
        scratch.mkdir()
        with contextlib.closing(Spawner()) as spawner:
            return asyncio.run(_probe(spawner, wanted, scratch, Path(folder, "log")))


async def _probe(spawner: Spawner, wanted: Containment | None, scratch: Path, log: Path) -> Tiers:
    async with Supervisor.open(
        spawner, wanted=wanted, run_id="probe", scratch=scratch, log=log, networks=True
    ) as supervisor:
        return Tiers(
            processes=supervisor.tier,
            process_notes=supervisor.notes,
            network=supervisor.networks.tier,
            network_notes=supervisor.networks.notes,
        )
