"""A small runner for the tests: starts a server of our own, says where it is, and waits for the end of stdin.

Arguments: the state folder, a containment tier ("" for the best), and the folder in memory. A line of
JSON on stdout tells each stage.
"""

import asyncio
import contextlib
import json
import os
import sys
import uuid
from pathlib import Path

from e2e_runner.embedded import CannotStart, EmbeddedServers
from e2e_runner.model import Containment
from e2e_runner.rundir import dead_runs, forget, open_run
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def main(state: Path, tier: str, memory: Path) -> None:
    for dead in dead_runs(state):
        forget(state, dead)
    with contextlib.closing(Spawner()) as spawner, open_run(state, uuid.uuid4().hex) as run_dir:
        async with (
            Supervisor.open(
                spawner,
                wanted=Containment(tier) if tier else None,
                run_id=run_dir.id,
                scratch=run_dir.scratch,
                log=run_dir.spawner_log,
            ) as supervisor,
            EmbeddedServers.open(supervisor, run_dir, environ=os.environ, memory=memory) as servers,
        ):
            if supervisor.cgroups is not None:
                run_dir.note_cgroup(supervisor.cgroups)
            say(stage="open", spawner=spawner.process.pid, scratch=str(run_dir.scratch))
            try:
                server = await servers.start()
            except CannotStart as error:
                say(stage="cannot", why=str(error), advice=error.advice)
                return
            say(
                stage="ready",
                version=servers.version,
                where=servers.where,
                port=server.address.port,
                password=server.address.password,
                sockets=server.admin.host,
                data=str(server.data),
            )
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
