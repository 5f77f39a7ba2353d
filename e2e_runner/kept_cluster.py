"""The data of servers that a run kept: what there is of it, who else uses it, and by which programs it is served.

``EmbeddedServer.keep`` makes such a folder::

    FOLDER/
      data/          the cluster, of the user that the programs run as
      password       of its superuser; written last, so where it is, the rest is whole
      server.log     of the server that was last started on it
"""

import asyncio
import contextlib
import fcntl
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2e_runner import rundir
from e2e_runner.errors import SetupError, UsageError
from e2e_runner.fresh_cluster import VERSION, Installation, as_whom, identities
from e2e_runner.postgres import boot, cluster
from e2e_runner.postgres.binaries import Binaries, find_binaries
from e2e_runner.segments import PID_FILE, release_segments
from e2e_runner.server_host import CannotStart, ServerHost, why

_MAJOR = "PG_VERSION"  # the file of a cluster that says its major version
_PORT_LINE = 3  # of the pid file, counted from 0
_SEGMENT_LINE = 6
_ACCEPTED = (
    "give the folder that the note of a run with --keep-databases names: it has "
    f"{cluster.DATA}/ and {cluster.PASSWORD} in it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A server that was kept."""

    folder: Path  # absolute
    major: str  # "18", the version of the programs that can read it
    password: str = field(repr=False)

    @property
    def data(self) -> Path:
        """Its data."""
        return self.folder / cluster.DATA

    @property
    def log(self) -> Path:
        """Where its server writes."""
        return self.folder / "server.log"


def read_kept(folder: Path) -> Kept:
    """Read what a folder holds. Raises UsageError where that is no kept server, SetupError where it is shut."""
    try:
        if (folder / _MAJOR).is_file():
            remedy = _ACCEPTED
            if (folder.parent / cluster.PASSWORD).is_file():
                remedy = "give the folder above it, which has the password too"
            raise UsageError(f"{folder} is the data of a server alone", remedy=remedy)
        password = (folder / cluster.PASSWORD).read_text(encoding="ascii").strip()
        major = (folder / cluster.DATA / _MAJOR).read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise SetupError(
            f"{folder} cannot be read by this user: {error.strerror}",
            facts=(f"failed at: {error.filename}",),
            remedy="call it as the user whose run kept it, or as root",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{folder} holds no server that a run has kept",
            facts=(_what_is_there(folder),),
            remedy=_ACCEPTED,
        ) from error
    return Kept(folder=folder, major=major, password=password)


def _what_is_there(folder: Path) -> str:
    if not os.path.lexists(folder):
        return "there is no such folder; those of the oldest runs are removed (keep-runs)"
    if not folder.is_dir():
        return "it is no folder"
    if (folder / cluster.DATA / _MAJOR).is_file():
        return f"it has {cluster.DATA}/, and no {cluster.PASSWORD}: it was not kept to the end"
    found = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")  # noqa: PLR2004 - enough to tell
    return f"it has {shown}" if found else "it is empty"


@contextlib.contextmanager
def hold(kept: Kept) -> Iterator[None]:
    """Have a kept server for oneself for the length of the block. Raises SetupError while another has it.

    What a server that was killed has left there is removed, and the run's folder is kept from being so.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(kept.folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SetupError(
                f"{kept.folder} cannot be used: {error.strerror}",
                remedy="call it as the user whose run kept it, or as root",
            ) from error
        stack.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(kept) from error
        except OSError:
            pass  # a file system without locks: the server's own then has to do
        if not release_segments(kept.folder):
            raise _in_use(kept)
        if _names_a_segment(kept):
            # No process has it, so the server is dead, whoever may have got its pid.
            with contextlib.suppress(OSError):
                (kept.data / PID_FILE).unlink()
        stack.enter_context(rundir.spared(kept.folder))
        yield


def _in_use(kept: Kept) -> SetupError:
    lines = _pid_file(kept)
    fact = (
        f"it listens on port {lines[_PORT_LINE]}" if len(lines) > _PORT_LINE else "it is starting"
    )
    return SetupError(
        f"A server runs on {kept.folder} already",
        facts=(fact,),
        remedy="use that one, or end it first",
    )


def _names_a_segment(kept: Kept) -> bool:
    # Elsewhere nobody can tell whether a segment is in use.
    return _SYSTEM_TABLE.exists() and len(_pid_file(kept)) > _SEGMENT_LINE


_SYSTEM_TABLE = Path("/proc/sysvipc/shm")  # Linux


def _pid_file(kept: Kept) -> list[str]:
    with contextlib.suppress(OSError):
        return (kept.data / PID_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    return []


async def adopt(host: ServerHost, kept: Kept, environ: Mapping[str, str]) -> Installation:
    """Find the programs of its version, and who can run them on its data. Raises CannotStart.

    The data stays where it is. As root it may get another owner for that, where its own cannot
    get to it or to the programs.
    """
    found = find_binaries(environ)
    others: dict[str, None] = {}
    obstacles: dict[str, None] = {}
    try:
        owner = kept.data.stat()
        for identity in _identities(owner.st_uid, owner.st_gid):
            if os.geteuid() == 0 and _uid(identity) != 0:
                _open_for_passage(kept.folder)
            for binaries in found.binaries:
                version = await _version(host, binaries, identity, kept, obstacles)
                if version is None:
                    continue
                if not _is_of(version, kept.major):
                    others[f"found: {version} ({binaries.where})"] = None
                    continue
                if _uid(identity) != owner.st_uid:
                    await asyncio.to_thread(_give, kept.data, identity)
                return Installation(binaries=binaries, version=version, identity=identity)
    except OSError as error:
        raise CannotStart(
            f"{kept.folder} cannot be used ({error.strerror}: {error.filename})", advice=()
        ) from error
    raise CannotStart(
        f"{kept.folder} is served by PostgreSQL {kept.major} alone, which cannot be had here",
        facts=(*others, *obstacles) or (f"looked in {', '.join(found.looked_in)}",),
        advice=(
            f"Install PostgreSQL {kept.major}, or put its programs on PATH.",
            *(("Or move the folder to where everybody may go.",) if obstacles else ()),
        ),
    )


def _identities(uid: int, gid: int) -> tuple[str, ...]:
    """List as whom data of this owner can be served, best first. Raises CannotStart."""
    if os.geteuid() != 0:
        if uid != os.geteuid():
            raise CannotStart(
                f"its data belongs to {_name(uid)}",
                advice=("Call it as that user, or as root.",),
            )
        return identities()
    own = "namespace" if uid == 0 else f"{uid}:{gid}"
    usual = identities()
    if uid not in {0, *map(_uid, usual)}:
        return (own,)  # an ordinary user's, who would lose it
    return tuple(dict.fromkeys((own, *usual)))


async def _version(
    host: ServerHost, binaries: Binaries, identity: str, kept: Kept, obstacles: dict[str, None]
) -> str | None:
    """Give the version of programs that run beside the data; what keeps them from it goes to `obstacles`."""
    program = str(binaries.folder / "postgres")
    done = await host.run((program, "--version"), identity, folder=kept.folder)
    version = VERSION.search(done.output)
    if done.code == 0 and version is not None:
        return version[1]
    what = str(kept.folder) if done.code == boot.NO_FOLDER else str(binaries.folder)
    obstacles[f"{what}, {as_whom(identity)}: {why(done)}"] = None
    return None


def _is_of(version: str, major: str) -> bool:
    return version == major or version.startswith((f"{major}.", f"{major}beta", f"{major}rc"))


def _uid(identity: str) -> int:
    """Give the user that an identity is outside of any namespace."""
    return int(identity.partition(":")[0]) if ":" in identity else os.geteuid()


def _name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


def _open_for_passage(folder: Path) -> None:
    """Let others pass through a folder of root's, and see nothing of it. Raises OSError."""
    status = folder.stat()
    if status.st_uid == 0:
        folder.chmod(status.st_mode & 0o7777 | 0o011)


def _give(data: Path, identity: str) -> None:
    """Give the data to the user of an identity. Raises OSError."""
    uid, gid = (0, 0) if ":" not in identity else map(int, identity.split(":"))
    for _, folders, files, fd in os.fwalk(data):
        # By descriptor: its owner until now could put a link in the place of a folder meanwhile.
        for name in (*folders, *files):
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    os.chown(data, uid, gid, follow_symlinks=False)
