"""The Linux system calls and /proc files that supervision needs and the standard library lacks."""

import ctypes
import os
import signal
import struct
from pathlib import Path

CLONE_PARENT = 0x0000_8000
CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
CLONE_INTO_CGROUP = 0x2_0000_0000

UID_MAP = "/proc/self/uid_map"

_SYS_CLONE3 = 435  # the same on every architecture (clone3(2), Linux 5.3)
_PR_SET_CHILD_SUBREAPER = 36
_CAP_SETGID = 6
_CAP_SETUID = 7
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_BIND = 0x1000
_MS_REC_SLAVE = 0x4000 | 0x8_0000

# PyDLL keeps the GIL: a forked child must come back holding it.
_libc = ctypes.PyDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def clone3(flags: int, cgroup_fd: int = 0) -> int:
    """Fork as the `CLONE_*` flags say: 0 in the child, its pid in the parent. Raises OSError.

    Unlike `os.fork` this runs none of Python's fork hooks, so only a single-threaded process may use
    it. It puts the child into a cgroup or into new namespaces from its first instruction.
    """
    # With CLONE_PARENT the child's end is told as the caller's own is, and nothing else is accepted.
    told_by = 0 if flags & CLONE_PARENT else signal.SIGCHLD
    args = struct.pack("11Q", flags, 0, 0, 0, told_by, 0, 0, 0, 0, 0, cgroup_fd)
    return _check(_libc.syscall(_SYS_CLONE3, args, len(args)), "clone3")


def become_subreaper() -> None:
    """Adopt the orphans among this process's descendants (prctl(2)). Raises OSError."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def unshare(flags: int) -> None:
    """Move into new namespaces, as the `CLONE_NEW*` flags say (unshare(2)). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Move into the namespace of a descriptor; `kind` is its `CLONE_NEW*` flag. Raises OSError."""
    _check(_libc.setns(fd, kind), "setns")


def namespace(kind: str) -> int:
    """Open this process's own namespace of a kind, such as "net". Raises OSError."""
    return os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def bind_file(source: bytes, target: bytes) -> None:
    """Show one file in the place of another, in this mount namespace only. Raises OSError."""
    _check(_libc.mount(b"none", b"/", None, _MS_REC_SLAVE, None), "mount")
    _check(_libc.mount(source, target, None, _MS_BIND, None), f"mount {os.fsdecode(target)}")


def mount_fresh_proc() -> None:
    """Mount a /proc that shows this PID namespace, in this mount namespace only. Raises OSError."""
    _check(_libc.mount(b"none", b"/", None, _MS_REC_SLAVE, None), "mount")
    _check(_libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None), "mount /proc")


def enter_user_namespace() -> None:
    """Move into a fresh user namespace that keeps every id it can: all, or the own ones. Raises OSError."""
    own, here = (os.geteuid(), os.getegid()), os.getpid()
    if not may_be_anybody():
        unshare(CLONE_NEWUSER)
        map_own_ids(*own)
        return
    told, telling = os.pipe()
    outside = os.fork()
    if outside == 0:
        code = 1
        try:
            os.close(telling)
            if os.read(told, 1):
                map_every_id(here)
                code = 0
        except OSError:
            pass  # which the exit code says
        finally:
            os._exit(code)
    try:
        os.close(told)
        unshare(CLONE_NEWUSER)
        os.write(telling, b"1")
    finally:
        os.close(telling)
        _, status = os.waitpid(outside, 0)
    if status != 0:
        map_own_ids(*own)


def may_be_anybody() -> bool:
    """Tell whether this process may take on any user and group id, as root may as a rule."""
    wanted = 1 << _CAP_SETUID | 1 << _CAP_SETGID
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    ):
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & wanted == wanted
    return False


def map_every_id(pid: int) -> None:
    """Keep every id that there is here in the fresh user namespace of another process.

    Only from outside of it, and by whoever may be anybody. Nothing is done where it fails at the first
    of two files (user_namespaces(7)). Raises OSError.
    """
    for name in ("uid_map", "gid_map"):
        ranges = map(str.split, Path(f"/proc/self/{name}").read_text(encoding="ascii").splitlines())
        text = "".join(f"{first} {first} {count}\n" for first, _, count in ranges)
        _write(f"/proc/{pid}/{name}", text)


def map_own_ids(uid: int, gid: int) -> None:
    """Keep the user's own ids alone in a fresh user namespace, from inside of it. Raises OSError."""
    _write("/proc/self/setgroups", "deny")
    _write(UID_MAP, f"{uid} {uid} 1\n")
    _write("/proc/self/gid_map", f"{gid} {gid} 1\n")


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="ascii")
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from error  # a failed write names no file


def parents() -> dict[int, int]:
    """Map each living process to its parent, from /proc; zombies are left out."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - hot loop
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - hot loop
                stat = file.read(512)
        except OSError:  # it ended while we were looking
            continue
        # The command name may hold anything, blanks and parentheses too; the last ")" ends it.
        fields = stat[stat.rindex(b")") + 2 :].split(None, 18)
        # A zombie with threads is a living process whose main thread has ended.
        if fields[0] not in b"ZX" or int(fields[17]) > 1:
            found[int(name)] = int(fields[1])
    return found


def descendants(root: int) -> list[int]:
    """List the living descendants of a process, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def own_cgroup() -> Path | None:
    """Find the folder of this process's own cgroup v2, also beside mounted v1 controllers."""
    try:
        memberships = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    within = next((line[3:] for line in memberships if line.startswith("0::")), None)
    if within is None:
        return None
    for line in mounts:
        fields, _, filesystem = line.partition(" - ")
        if filesystem.split(" ", 1)[0] == "cgroup2":
            mounted_root, mount_point = fields.split(" ")[3:5]
            if within == mounted_root or within.startswith(mounted_root.rstrip("/") + "/"):
                return Path(mount_point) / within[len(mounted_root.rstrip("/")) :].lstrip("/")
    return None
