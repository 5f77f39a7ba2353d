"""The ports of an example: claimed before it starts, inspected after it has ended."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

from e2e_runner import ports, text
from e2e_runner.events import Phase
from e2e_runner.model import (
    Example,
    Leak,
    LeakedPort,
    OnPortConflict,
    Past,
    PortOwner,
)
from e2e_runner.probes import address_of, is_this_machine
from e2e_runner.rundir import is_live
from e2e_runner.script import Surroundings
from e2e_runner.verdict import Blocked

PORT_IN_USE = "port-in-use"

_POLL = 0.1  # seconds between looks at a taken port: the system has no event for "free again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What became of a claim; neither `blocked` nor `skipped`: go on."""

    blocked: Blocked | None = None
    skipped: str | None = None  # the reason
    advice: tuple[str, ...] = ()


class PortClaims:
    """Looks after the ports of one attempt."""

    def __init__(
        self,
        example: Example,
        around: Surroundings,
        *,
        past: Past,
        wanted: Collection[int],
        phase: Callable[[Phase, str], None],
        warn: Callable[[str], None],
    ) -> None:
        """Note what an example may need; `past` is what earlier runs tell of it.

        `wanted` ports must be free, besides those that it says.
        """
        self._example = example
        self._wanted = wanted
        self._past = past
        self._around = around
        self._phase = phase
        self._warn = warn
        self._known: set[int] = set()
        self._taken_before: set[int] = set()
        self._earlier = partial(
            ports.earlier_run,
            project=str(around.run.root),
            is_live=partial(is_live, around.run.state_dir),
        )

    async def claim(self) -> Claim:
        """See whether the ports that the example needs are free, and do what the settings say."""
        needed = tuple(dict.fromkeys([*needed_ports(self._example), *self._wanted]))
        self._known = {*needed, *self._example.ports, *self._past.ports}
        if not self._known:
            return Claim()
        taken = self._taken(self._known)
        if self._around.run.free_ports and taken:
            await self._free(taken)
            taken = self._taken(self._known)
        in_the_way = [owner for port in needed for owner in taken.get(port, ())]
        if not in_the_way:
            for owners in taken.values():
                if how := self._may_want(owners[0].port):
                    self._warn(f"{_describe(owners[0])}; {how}")
        policy = self._around.run.on_port_conflict
        waited = ""
        if in_the_way and policy is OnPortConflict.SKIP:
            return Claim(skipped=_describe(in_the_way[0]))
        if in_the_way and policy is OnPortConflict.WAIT:
            begin = self._around.clock()
            in_the_way = await self._wait(needed, in_the_way)
            waited = f"; waited {_span(self._around.clock() - begin, self._example)}"
        self._taken_before = set(self._taken(self._known))
        if not in_the_way:
            return Claim()
        return Claim(
            blocked=Blocked(
                cause=PORT_IN_USE,
                reason="; ".join(dict.fromkeys(map(_describe, in_the_way))) + waited,
            ),
            advice=tuple(dict.fromkeys(ports.advice(owner, policy=policy) for owner in in_the_way)),
        )

    def _may_want(self, port: int) -> str:
        """Say why the example may want a port for itself; empty where it is a service that it uses."""
        if port in self._past.ports:
            return "it listened on that port in earlier runs"
        uses = {each.port for each in self._example.settings.reach}
        # What passed without listening there does not need to.
        return "" if self._past.observed or port in uses else "its source mentions that port"

    def seen(self, listening: Iterable[int]) -> None:
        """Note ports that the example was seen to listen on."""
        self._known.update(listening)

    def left_behind(self, named: Iterable[Leak]) -> list[LeakedPort]:
        """List the ports listened on now that were free before, but for those `named` already."""
        suspects = self._known - self._taken_before
        suspects -= {leak.port for leak in named if isinstance(leak, LeakedPort)}
        return [
            LeakedPort(port=port, owner=_holder(listeners[0]))
            for port, owners in (ports.taken(suspects) if suspects else {}).items()
            # Without an address it only waits for its last connection to fade.
            if (listeners := [each for each in owners if each.addresses and self._may_be_own(each)])
        ]

    def _may_be_own(self, owner: PortOwner) -> bool:
        """Tell whether a listener may be of this example, and is not of one beside it."""
        told = ports.started_for(owner.process.pid) if owner.process else None
        if told is None:
            return True
        run_id, path = told
        if run_id != self._around.info.id:
            # Of a run that the example made itself, where that is over; else of one beside this.
            return not is_live(self._around.run.state_dir, run_id)
        return path in {part.path for part in (self._example, *self._example.companions)}

    def name_owners(self, port: str | None) -> list[str]:
        """Say who holds the port that the output complained about, else those of the example."""
        wanted = {int(port)} if port and port.isdecimal() else set(self._example.ports)
        owners = self._taken(port for port in wanted if 0 < port < 2**16).values()
        return [f"{_describe(each[0])}. {ports.advice(each[0], policy=None)}" for each in owners]

    def _taken(self, wanted: Iterable[int]) -> dict[int, tuple[PortOwner, ...]]:
        return ports.taken(wanted, earlier=self._earlier)

    async def _wait(self, needed: tuple[int, ...], in_the_way: list[PortOwner]) -> list[PortOwner]:
        deadline = self._around.clock() + self._example.settings.timeout
        self._phase(Phase.WAITING_FOR_PORT, _describe(in_the_way[0]))
        while in_the_way and self._around.clock() < deadline:
            done, _ = await asyncio.wait([self._around.stop.asked], timeout=_POLL)
            if done:
                break
            in_the_way = [owner for owners in self._taken(needed).values() for owner in owners]
        return in_the_way

    async def _free(self, taken: dict[int, tuple[PortOwner, ...]]) -> None:
        for owner in (owner for owners in taken.values() for owner in owners):
            if owner.earlier_run is not None and owner.process is not None:
                outcome = await ports.stop_leftover(
                    owner, earlier=self._earlier, grace=self._example.settings.grace
                )
                self._warn(f"{_describe(owner)}: {outcome.value}")


def needed_ports(example: Example) -> tuple[int, ...]:
    """List the ports that must be free: declared ones, and those that answer for readiness.

    Without the latter, a stranger on the port could make a server look ready.
    """
    needed: list[int] = []
    for part in (example, *example.companions):
        needed.extend(part.settings.ports)
        address = address_of(part.settings.serve)
        if address is not None and is_this_machine(address[0]):
            needed.append(address[1])
    return tuple(dict.fromkeys(needed))


def _describe(owner: PortOwner) -> str:
    return ports.describe(owner, time.time())


def _holder(owner: PortOwner) -> str:
    shown = ports.holder_words(owner, time.time())
    return shown or (f"somebody: {owner.note}" if owner.note else "")


def _span(waited: float, example: Example) -> str:
    """Say how long an example waited: its limit where that was reached."""
    most = example.settings.timeout
    return text.limit(most) if waited >= most else text.duration(waited)
