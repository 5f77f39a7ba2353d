"""Supervision apart from any run of a project, for a server or a script that somebody runs by hand.

What it needs on the disk lies in a folder of its own in the temporary folder, so that it is none of a
project's runs. Left by a call that was killed together with its helpers, such a folder is removed by
the next call of the same kind.
"""

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from e2e_runner import rundir
from e2e_runner.errors import SetupError
from e2e_runner.model import Containment
from e2e_runner.rundir import RunDir
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.containment import reclaim_cgroup
from e2e_runner.supervise.launch import Spawner
from e2e_runner.trees import remove_tree

_UNUSED = 60.0  # seconds that a folder may be empty: its call fills it at once


@contextlib.asynccontextmanager
async def supervised(
    spawner: Spawner, state: Path, *, wanted: Containment | None = None
) -> AsyncIterator[tuple[Supervisor, RunDir]]:
    """Supervise, with the folder `state` for what a run keeps, for the length of the block.

    `wanted` is the tier, None for the best that can be had. Raises SetupError.
    """
    with rundir.open_run(state, rundir.new_run_id(time.time())) as run_dir:
        async with Supervisor.open(
            spawner,
            wanted=wanted,
            run_id=run_dir.id,
            scratch=run_dir.scratch,
            log=run_dir.spawner_log,
        ) as supervisor:
            if supervisor.cgroups is not None:
                run_dir.note_cgroup(supervisor.cgroups)
            supervisor.remove_at_end(state)
            yield supervisor, run_dir


@contextlib.contextmanager
def state_folder(kind: str) -> Iterator[Path]:
    """Have a folder for the length of the block, and remove what dead calls of its `kind` left.

    Raises SetupError.
    """
    prefix = f"{rundir.PREFIX}{kind}-"
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            _remove_dead(left)
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise SetupError(
            f"The temporary folder {parent} cannot be used: {error.strerror}",
            remedy="make it writable and see that its disk has room, or name another by TMPDIR",
        ) from error
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            _remove_dead(folder)
        if not rundir.dead_runs(folder):
            remove_tree(folder)


def _remove_dead(folder: Path) -> None:
    """Remove the folder of a call that died, with what it had made elsewhere. Raises OSError."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    if time.time() - status.st_mtime > _UNUSED:
        with contextlib.suppress(OSError):
            folder.rmdir()  # of a call that was killed right after it had made it
    if give_back_dead(folder) and not rundir.dead_runs(folder):
        remove_tree(folder)


def give_back_dead(state: Path) -> int:
    """Give back what dead runs of a state folder had made elsewhere; gives how many there were."""
    dead = rundir.dead_runs(state)
    for run in dead:
        if run.cgroup is not None:
            reclaim_cgroup(run.cgroup, run.id)
        rundir.forget(state, run)
    return len(dead)
