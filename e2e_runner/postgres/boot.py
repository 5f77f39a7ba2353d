"""What a server of our own is started by: become its user, unpack its cluster, exec the program.

Started as ``python -I -S -c "... main()" IDENTITY FOLDER IMAGE PROGRAM [ARGUMENT]...`` and held by a
keeper as any script is, so that a kill at any moment leaves nothing behind but files. IDENTITY is
``self``, ``UID:GID``, or ``namespace`` for a user namespace in which the caller is `nobody`; IMAGE, unless it is
empty, is unpacked into the folder ``data`` of FOLDER, which is entered before the program is. The exit
codes below say what failed, and the last line of stderr why.

The standard library alone, and little of it: every server that is started waits for these imports.
"""

# All of it here: the other user may not be able to read this one's Python.
import ctypes
import os
import sys

from e2e_runner.postgres.image import NoImageError, unpack

TYPE_CHECKING = False  # the module `typing` would cost more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import NoReturn

NO_COPY = 101  # exit code: the cluster could not be unpacked
NO_IDENTITY = 102  # exit code: this user cannot be had here
NO_FOLDER = 103  # exit code: this user may not enter the folder
NO_PROGRAM = 104  # exit code: this user may not run the program

NOBODY = 65534

_CLONE_NEWUSER = 0x1000_0000
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9  # the module `signal` would cost a millisecond


def boot_command(
    argv: "Sequence[str]", *, identity: str, folder: "Path", image: "Path | None" = None
) -> tuple[str, ...]:
    """Give the command that runs `argv` in `folder` as `identity`, with `image` unpacked before."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - see above
    code = (
        f"import sys; sys.path[:] = [{package!r}, *sys.path]; "
        "from e2e_runner.postgres.boot import main; main()"
    )
    return (
        *(sys.executable, "-I", "-S", "-c", code),
        *(identity, str(folder), str(image or ""), *argv),
    )


def main() -> "NoReturn":
    """Do as the command line says."""
    identity, folder, image, *argv = sys.argv[1:]
    parent = os.getppid()
    try:
        # Opened first: the other user may not read what lies in the cache of this one.
        source = open(image, "rb") if image else None  # noqa: PTH123, SIM115 - exec closes it
    except OSError as error:
        _fail(NO_COPY, error)
    _attempt(NO_IDENTITY, lambda: _become(identity))
    if sys.platform == "linux":
        _die_with(parent)
    _attempt(NO_FOLDER, lambda: os.chdir(folder))
    if source is not None:
        try:
            unpack(source, f"{folder}/data")
        except (OSError, NoImageError) as error:
            _fail(NO_COPY, error)
        os.chdir(folder)
    os.umask(0o077)
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted
    except OSError as error:
        error.filename = argv[0]
        _fail(NO_PROGRAM, error)


def _attempt(code: int, step: "Callable[[], object]") -> None:
    try:
        step()
    except OSError as error:
        _fail(code, error)


def _fail(code: int, error: Exception) -> "NoReturn":
    text = str(error)
    if isinstance(error, OSError):
        text = str(error.strerror) + (f": {error.filename}" if error.filename else "")
    os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    os._exit(code)


def _die_with(parent: int) -> None:
    """Have this process die when its keeper does; a change of user takes that back."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(NO_IDENTITY)


def _become(identity: str) -> None:
    match identity:
        case "self":
            return
        case "namespace":
            _enter_namespace()
        case _:
            uid, gid = map(int, identity.split(":"))
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)


def _enter_namespace() -> None:
    """Be `nobody` in a user namespace, and the caller outside of it. Raises OSError."""
    if sys.platform != "linux":
        raise OSError(0, "only Linux has user namespaces")
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare came with Python 3.12
    if libc.unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"user namespaces are refused ({os.strerror(number)})")
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as opened:  # noqa: PTH123 - see above
            opened.write(text)
