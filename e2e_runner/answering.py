"""Whose answer it is: a server is ready when it answers itself, not when somebody on its port does."""

import os
import time
from collections.abc import Collection, Iterable

from e2e_runner import ports
from e2e_runner.model import PortOwner, Probe
from e2e_runner.probes import address_of, is_this_machine
from e2e_runner.supervise.child import Child

# Of those, other processes listen on their behalf, which nobody but root can see.
_CONTAINER_CLIENTS = ("docker", "podman", "nerdctl", "finch", "container")


def local_port(probe: Probe) -> int | None:
    """Give the port of this machine that a probe asks; None where it asks none."""
    address = address_of(probe)
    return address[1] if address is not None and is_this_machine(address[0]) else None


async def stranger(wanted: Iterable[int], child: Child) -> str:
    """Say who listens on one of the ports in a server's place, in words.

    Empty where it is the server, where nobody listens, and where the system does not let anybody
    tell: the listener is hidden, and runs as a user that the server has become, or for a container that
    the server is the client of.
    """
    own = await child.pids()
    if not own:
        return ""
    seen = {port for found in ports.listening_ports_of(own).values() for port in found}
    for owner in ports.owners(set(wanted) - seen):
        if owner.addresses and not _may_be_of(owner, own):
            return ports.describe(owner, time.time())
    return ""


def _may_be_of(owner: PortOwner, own: Collection[int]) -> bool:
    if "published by a container" in owner.note:
        return True
    if owner.process is not None:
        return owner.process.pid in own
    return any(_may_hide(pid, owner.uid) for pid in own)


def _may_hide(pid: int, uid: int | None) -> bool:
    """Tell whether a process may be, or stand for, a listener of user `uid` that is not visible."""
    info = ports.process_info(pid)
    if info is None:
        return False
    program = os.path.basename(info.command.partition(" ")[0])  # noqa: PTH119 - it need be no path
    if program.startswith(_CONTAINER_CLIENTS):
        return True
    # What runs as this user would be visible.
    return uid is not None and uid != os.geteuid() and info.uid == uid
