"""Clusters, which are what PostgreSQL calls a server's data, and the cache of the one that others are copies of.

The cache lies in the user's cache folder and holds an entry for each version, installation and kind of
owner::

    e2e-run/postgres/
      15.18-self-0a1b2c3d4e5f          an image, see `image`
      15.18-self-0a1b2c3d4e5f.lock     held by flock(2) while the image is made
      15.18-self-0a1b2c3d4e5f.new      being made; left by a run that was killed, and replaced by the next
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import secrets
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from e2e_runner.postgres.image import NoImageError, pack, read_head

SUPERUSER = "postgres"
DATA = "data"
IMAGE = "image"
PASSWORD = "password"  # noqa: S105 - the name of a file

_UNUSED = 30 * 86400.0  # seconds after which an entry that nobody used is removed

# In the cluster's own file, so that ALTER SYSTEM works in an example as it does on any server.
_SETTINGS = {
    # Nothing has to outlive a crash of the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "16MB",
    "max_connections": "100",
    # Not in /dev/shm, where a server that was killed would leave it.
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": "off",
    "log_destination": "stderr",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A cluster that was shut down, as an image that servers start with copies of."""

    image: Path
    password: str = field(repr=False)  # of the superuser, over TCP
    size: int  # bytes


def initdb_command(binaries: Path, data: Path, password_file: Path) -> tuple[str, ...]:
    """Give the command that makes a cluster.

    Its socket lets everybody in: it lies in a folder that others cannot enter. Over TCP any user of the
    machine could knock, and a superuser may run programs, so that takes the password.
    """
    return (
        *(str(binaries / "initdb"), "-D", str(data), "-U", SUPERUSER),
        *("--pwfile", str(password_file), "--auth-local=trust", "--auth-host=scram-sha-256"),
        *("-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions", "--wal-segsize=1"),
    )


def server_command(
    binaries: Path, data: Path, *, port: int, sockets: Path, hba: Path | None = None
) -> tuple[str, ...]:
    """Give the command that serves a cluster on 127.0.0.1 and on a Unix socket in `sockets`.

    With `hba`, which says who is let in, the network is one of its own, and all of localhost is served.
    """
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1" if hba is None else "127.0.0.1,::1",
        # A list, in which quotes keep a comma from parting a name.
        "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
    }
    if hba is not None:
        options["hba_file"] = str(hba)
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return (str(binaries / "postgres"), "-D", str(data), *words)


def server_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of PostgreSQL's programs, which the caller's settings do not change."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: environ[name] for name in kept if name in environ} | {"LC_ALL": "C", "TZ": "UTC"}


def socket_file(sockets: Path, port: int) -> Path:
    """Name the socket that a server makes in `sockets`."""
    return sockets / f".s.PGSQL.{port}"


def new_password() -> str:
    """Make a password that needs no quoting anywhere."""
    return secrets.token_hex(16)


def write_secret(file: Path, text: str) -> None:
    """Write one line for its owner alone to read; raises OSError."""
    file.touch(mode=0o600)
    file.write_text(text + "\n", encoding="ascii")


def add_settings(data: Path) -> None:
    """Complete the settings of a fresh cluster; raises OSError."""
    lines = [f"{name} = '{value}'\n" for name, value in _SETTINGS.items()]
    # The folder may be another user's, who could have put a link or a pipe there.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    path = data / "postgresql.conf"
    with os.fdopen(os.open(path, flags), "a", encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(errno.EINVAL, "it is no file of its own", str(path))
        file.write("\n# e2e-run: for tests, which nothing has to outlive\n" + "".join(lines))


def write_image(data: Path, image: Path, *, version: str, password: str) -> Template:
    """Make the image of a cluster that was shut down, for its owner alone. Raises OSError, NoImageError."""
    fd = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as output:
        pack(str(data), output, version=version, password=password)
        size = output.tell()
    return Template(image=image, password=password, size=size)


def read_image(image: Path, version: str) -> Template | None:
    """Give a cluster by its image; None when that is not whole, or not of this version."""
    try:
        with image.open("rb") as file:
            made_by, password, _ = read_head(file)
            size = os.fstat(file.fileno()).st_size
    except (OSError, NoImageError):
        return None
    return Template(image=image, password=password, size=size) if made_by == version else None


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Name the folder of this user's cached clusters."""
    given = Path(environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "e2e-run" / "postgres"
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return _home(environ) / caches / "e2e-run" / "postgres"


def _home(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HOME", ""))
    with contextlib.suppress(OSError):
        # Under sudo it may be another user's, who would not get rid of root's files there.
        if home.is_absolute() and home.stat().st_uid == os.geteuid():
            return home
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return home if home.is_absolute() else Path("/nonexistent")


class Cache:
    """The cached clusters of one user. Where the folder cannot be used, nothing is ever found in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def key(binaries: Path, version: str, identity: str) -> str:
        """Name the entry for an installation, which differs after an upgrade in the same place."""
        facts: list[object] = [str(binaries), identity, *_SETTINGS.items()]
        for name in ("postgres", "initdb"):
            status = (binaries / name).stat()
            facts += [status.st_size, status.st_mtime_ns, status.st_ino]
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
        return f"{version}-{identity.partition(':')[0]}-{digest}"

    def find(self, key: str, version: str) -> Template | None:
        """Give the cluster of an entry, when it is there, whole, and nobody else could change it."""
        if not self._is_ours():
            return None
        template = read_image(self._folder / key, version)
        if template is not None:
            with contextlib.suppress(OSError):
                os.utime(self._folder / key)  # which says that it is in use
        return template

    def try_lock(self, key: str) -> "contextlib.ExitStack | None":
        """Take the right to make an entry, until the stack is closed; None while another run has it.

        Raises OSError when the cache cannot be used.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._is_ours():
            raise PermissionError(0, "others may change it", str(self._folder))
        with contextlib.ExitStack() as stack:
            fd = os.open(self._folder / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return stack.pop_all()

    def publish(self, key: str, data: Path, *, version: str, password: str) -> Template | None:
        """Make an entry of a cluster; None when there is no room. Its maker holds the lock."""
        fresh = self._folder / f"{key}.new"
        try:
            made = write_image(data, fresh, version=version, password=password)
            fresh.replace(self._folder / key)
        except (OSError, NoImageError):
            with contextlib.suppress(OSError):
                fresh.unlink()
            return None
        with contextlib.suppress(OSError):
            self._remove_unused(time.time())
        return replace(made, image=self._folder / key)

    def _is_ours(self) -> bool:
        try:
            status = self._folder.stat()
        except OSError:
            return False
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _remove_unused(self, now: float) -> None:
        for entry in self._folder.iterdir():
            if entry.suffix == ".lock" or now - entry.stat().st_mtime < _UNUSED:
                continue
            with contextlib.ExitStack() as stack:
                lock = self.try_lock(entry.name.removesuffix(".new"))
                if lock is not None:
                    stack.enter_context(lock)
                    entry.unlink()


def tail(text: str, lines: int = 5) -> Sequence[str]:
    """Give the last lines that say something."""
    return [line for line in text.splitlines() if line.strip()][-lines:]
