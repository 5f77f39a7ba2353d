"""Which example starts next: pure decisions, with no clock and no I/O.

The order, strongest first:

1. what failed last time, because its verdict is the one that is waited for;
2. what takes nobody knows how long, because it may be the longest of all;
3. the longest first. Those that share a lock cannot run at the same time, so they count as one long
   task, a *chain*: as long as all that wait for that lock together.

Ties keep the order in which the tasks were given. What runs alone comes last, where everything else
has ended anyway; if it failed last time it comes first of all.

What cannot start now is passed over by what can (*backfilling*). A task that has been passed over
`PATIENCE` times, or that failed last time and runs alone, is *reserved* for: nothing starts any more
that would delay it.
"""

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from types import MappingProxyType

PATIENCE = 8

# Linux begins to throw file caches away well before nothing is left, and then everything becomes slow;
# and it is about what a Python interpreter with a web framework takes twice.
MEMORY_RESERVE = 256 * 1024**2
# What a task takes as a rule was measured for its largest process alone.
MEMORY_MARGIN = 1.5

_FEW = 32
_RESERVED, _ALONE_FIRST, _FAILED, _UNKNOWN, _KNOWN, _ALONE_LAST = range(6)


def port_lock(port: int) -> str:
    """Name the lock of all that listen on `port` of the host."""
    return f"port:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to run."""

    key: str  # unique
    duration: float | None  # seconds that it takes as a rule; None: not known
    failed: bool = False  # last time
    weight: int = 1  # processors: itself and its companions
    locks: frozenset[str] = frozenset()  # no two that share one run at the same time
    exclusive: bool = False  # nothing beside it
    memory: int = 0  # bytes that it takes as a rule


_Key = tuple[int, float, float, int]  # the smallest comes first
_Member = tuple[int, float, int, Task]  # the largest comes first; never two with the same numbers


@dataclass(slots=True, kw_only=True, eq=False)
class _Group:
    """The waiting tasks with the same locks and weight: the first of them stands for all."""

    number: int
    locks: tuple[str, ...]
    weight: int
    alone: bool
    members: list[_Member] = field(default_factory=list)  # sorted, the first one last
    # Where its entry is; others of it, left behind, mean nothing.
    heap: "_Heap" = field(default_factory=list)
    key: _Key = (0, 0.0, 0.0, 0)  # of its entry
    passed: int = 0  # how often the first of them was passed over
    turn: int | None = None  # among those that are reserved for


_Heap = list[tuple[_Key, int, _Group]]


class _Look(Enum):
    """What is decided on a group that is looked at."""

    START = auto()
    PASS = auto()  # look at the next one
    AGAIN = auto()  # others became ready, or it is no more: look from the first one on
    WAIT = auto()  # nothing starts now


class Schedule:
    """Says what to start next. At most `jobs` of weight run; what is heavier counts as `jobs`.

    The same calls give the same answers.
    """

    # A group is in one heap. Either it is *ready*: nothing but room is known to be in its way. Or it
    # is *parked* at one lock that it cannot have now. When a lock becomes free, only the first of
    # those parked at it becomes ready, never all: so a call costs the same however many wait.

    def __init__(self, tasks: Iterable[Task], *, jobs: int) -> None:
        self._jobs = jobs
        self._room = jobs
        self._waiting: dict[str, Task] = {}
        self._running: dict[str, Task] = {}
        self._groups: dict[tuple[frozenset[str], int, bool], _Group] = {}
        self._group_of: dict[str, _Group] = {}  # for those that run
        self._wanting: dict[str, list[_Group]] = {}  # lock -> groups
        self._unstarted: dict[str, int] = {}  # lock -> nanoseconds of all that wait for it
        self._chains: dict[str, int] = {}  # the same, as the order knows it
        self._holders: dict[str, str] = {}  # lock -> key of what runs with it
        self._ready: dict[int, _Heap] = {}  # by weight
        self._parked: dict[str, _Heap] = {}  # by lock
        self._reserved: deque[tuple[int, _Group]] = deque()  # by turn; some have had theirs
        self._claims: dict[str, deque[_Group]] = {}  # lock -> whom it is reserved for, by turn
        self._turns = 0
        self._given = 0
        self._fresh = 0  # bytes that those will take that were started since something last ended
        for task in tasks:
            group, member = self._take_in(task)
            group.members.append(member)
        for group in self._groups.values():
            group.members.sort()
            self._make_ready(group)

    @property
    def running(self) -> Mapping[str, Task]:
        """What was started and has not ended, by key, in the order of the starts."""
        return MappingProxyType(self._running)

    @property
    def waiting(self) -> Mapping[str, Task]:
        """What was not started, by key, in the order in which it was given."""
        return MappingProxyType(self._waiting)

    def add(self, task: Task) -> None:
        """Let one more in. A key that waits or runs already is a ValueError."""
        group, member = self._take_in(task)
        insort(group.members, member)
        self._make_ready(group)
        for lock in group.locks:
            for other in self._wanting[lock]:
                if other is not group and other.members:
                    self._make_ready(other)  # their chain has become longer

    def next(self, *, memory: int | None = None) -> Task | None:
        """Give the task to start now, which runs from here on; None: nothing may start now.

        `memory` is what is available, in bytes; None: not known. Nothing starts beside others where it
        is less than half as much again as the task takes as a rule, or than `MEMORY_RESERVE`. What was
        started since something last ended counts as not having taken its memory yet.
        """
        look = _Look.AGAIN if self._room else _Look.WAIT
        while look is _Look.AGAIN:
            look = _Look.WAIT
            passed: list[_Group] = []
            for group in self._first_ready():
                look = self._look_at(group, memory)
                if look is _Look.START:
                    for each in passed:
                        self._pass_over(each)
                    return self._start(group)
                if look is not _Look.PASS:
                    break
                passed.append(group)
        return None

    def peek(self, count: int) -> list[Task]:
        """Give up to `count` tasks, those that will probably come next, in order."""
        found: dict[int, _Group] = {}
        for heap in (*self._ready.values(), *self._parked.values()):
            for group in _smallest(heap, count):
                found[group.number] = group
        soon = [
            (self._key(group, member), member[3])
            for group in sorted(found.values(), key=lambda group: group.key)[:count]
            for member in group.members[-count:]
        ]
        return [task for _, task in heapq.nsmallest(count, soon, key=lambda each: each[0])]

    def done(self, key: str) -> None:
        """Take note that a task ended: its locks and its room are free. KeyError: it does not run."""
        del self._running[key]
        group = self._group_of.pop(key)
        self._room += group.weight
        self._fresh = 0
        for lock in group.locks:
            del self._holders[lock]
        for lock in group.locks:
            self._unpark(lock)

    def remove_all(self) -> list[Task]:
        """Take out all that was not started, in the order in which it would have been."""
        left = [
            (self._key(group, member), member[3])
            for group in self._groups.values()
            for member in group.members
        ]
        for table in (
            *(self._waiting, self._groups, self._wanting, self._unstarted, self._chains),
            *(self._ready, self._parked, self._reserved, self._claims),
        ):
            table.clear()
        return [task for _, task in sorted(left, key=lambda each: each[0])]

    # --- the order -------------------------------------------------------------------------------

    def _take_in(self, task: Task) -> tuple[_Group, _Member]:
        if task.key in self._waiting or task.key in self._running:
            raise ValueError(f"a task {task.key!r} waits or runs already")
        # With one job everything runs alone, and the order is all that is to be decided.
        alone = task.exclusive and self._jobs > 1
        locks = frozenset[str]() if alone or self._jobs == 1 else task.locks
        weight = self._jobs if alone else min(max(task.weight, 1), self._jobs)
        group = self._groups.get((locks, weight, alone))
        if group is None:
            group = _Group(
                number=len(self._groups), locks=tuple(sorted(locks)), weight=weight, alone=alone
            )
            self._groups[locks, weight, alone] = group
            for lock in group.locks:
                self._wanting.setdefault(lock, []).append(group)
        for lock in group.locks:
            self._chains[lock] = self._unstarted.get(lock, 0) + _nanoseconds(task)
            self._unstarted[lock] = self._chains[lock]
        if alone:
            rank = _ALONE_FIRST if task.failed else _ALONE_LAST
        elif task.failed:
            rank = _FAILED
        else:
            rank = _UNKNOWN if task.duration is None else _KNOWN
        own = inf if task.duration is None else _nanoseconds(task)
        self._waiting[task.key] = task
        self._given += 1
        return group, (-rank, own, -self._given, task)

    def _shorten(self, lock: str, nanoseconds: int) -> None:
        self._unstarted[lock] -= nanoseconds
        # Each time, all who want the lock get new places. Of many it is enough to know how long their
        # chain is within a factor of two, or 10,000 tasks would change places 10,000 times.
        few = len(self._wanting[lock]) <= _FEW
        if few or 2 * self._unstarted[lock] <= self._chains[lock]:
            self._chains[lock] = self._unstarted[lock]

    def _key(self, group: _Group, member: _Member) -> _Key:
        rank, own, number, _ = member
        if group.turn is not None and member is group.members[-1]:
            return (_RESERVED, group.turn, 0, 0)
        chain = max([own, *(self._chains[lock] for lock in group.locks)])
        return (-rank, -chain, -own, -number)

    def _put(self, group: _Group, heap: _Heap) -> None:
        group.heap = heap
        group.key = self._key(group, group.members[-1])
        heapq.heappush(heap, (group.key, group.number, group))

    def _make_ready(self, group: _Group) -> None:
        self._put(group, self._ready.setdefault(group.weight, []))

    def _first(self, heap: _Heap) -> _Group | None:
        """Give the first of a heap, after what was left behind in front of it is thrown away."""
        while heap:
            key, _, group = heap[0]
            if group.heap is not heap or group.key != key:
                heapq.heappop(heap)
                continue
            now = self._key(group, group.members[-1])
            if now <= key:
                return group
            group.key = now  # its chain has become shorter
            heapq.heapreplace(heap, (now, group.number, group))
        return None

    def _first_ready(self) -> list[_Group]:
        """Give the first of each weight, in order."""
        firsts = [first for heap in self._ready.values() if (first := self._first(heap))]
        if len(firsts) > 1:
            firsts.sort(key=lambda group: group.key)
        return firsts

    # --- what is in the way ----------------------------------------------------------------------

    def _look_at(self, group: _Group, memory: int | None) -> _Look:
        """Decide on a group that is ready, when all before it in the order were passed over."""
        if (lock := self._in_the_way(group)) is not None:
            self._park(group, lock)
            return _Look.AGAIN
        if group.weight > self._room:
            if group.key[0] == _ALONE_FIRST:
                self._reserve(group)
            if group.turn is not None:
                return _Look.WAIT
            unparked = [self._unpark(lock) for lock in group.locks]
            return _Look.AGAIN if any(unparked) else _Look.PASS
        if self._delays_reserved(group):
            return _Look.PASS
        return _Look.START if self._has_memory(group.members[-1][3], memory) else _Look.WAIT

    def _in_the_way(self, group: _Group) -> str | None:
        """Give a lock that the group cannot have now."""
        for lock in group.locks:
            if lock in self._holders:
                return lock
            if (claims := self._claims.get(lock)) and claims[0] is not group:
                return lock
        return None

    def _park(self, group: _Group, lock: str) -> None:
        """Let a group, the first of its heap, wait for a lock, and others have what it leaves."""
        heapq.heappop(group.heap)
        self._put(group, self._parked.setdefault(lock, []))
        if len(group.locks) > 1:
            # One of its locks was free and another was not: that may go on and on by turns.
            self._pass_over(group)
            for other in group.locks:
                if other != lock:
                    self._unpark(other)

    def _unpark(self, lock: str) -> bool:
        """Make the first ready of those parked at a lock, if the lock can be had. Say whether."""
        heap = self._parked.get(lock)
        if not heap or lock in self._holders or (group := self._first(heap)) is None:
            return False
        if (claims := self._claims.get(lock)) and claims[0] is not group:
            return False
        heapq.heappop(heap)
        self._make_ready(group)
        return True

    def _pass_over(self, group: _Group) -> None:
        group.passed += 1
        if group.passed >= PATIENCE and group.turn is None:
            self._reserve(group)

    def _reserve(self, group: _Group) -> None:
        if group.turn is not None:
            return
        group.turn = self._turns
        self._turns += 1
        self._reserved.append((group.turn, group))
        for lock in group.locks:
            self._claims.setdefault(lock, deque()).append(group)
        self._put(group, group.heap)

    def _delays_reserved(self, group: _Group) -> bool:
        """Whether the start of a group would leave too little room for the first that is reserved for.

        That one has its room once those have ended whose locks it waits for.
        """
        while self._reserved and self._reserved[0][1].turn != self._reserved[0][0]:
            self._reserved.popleft()
        if not self._reserved or (first := self._reserved[0][1]) is group:
            return False
        before = {self._holders[lock] for lock in first.locks if lock in self._holders}
        room = self._room + sum(self._group_of[key].weight for key in before)
        return room - group.weight < first.weight

    def _has_memory(self, task: Task, memory: int | None) -> bool:
        if memory is None or not self._running:
            return True
        return memory - self._fresh >= max(MEMORY_RESERVE, task.memory * MEMORY_MARGIN)

    def _start(self, group: _Group) -> Task:
        """Start the first task of a group that is the first of its heap."""
        heapq.heappop(group.heap)
        group.heap = []
        group.passed = 0
        if group.turn is not None:
            group.turn = None
            for lock in group.locks:
                self._claims[lock].popleft()
        task = group.members.pop()[3]
        del self._waiting[task.key]
        self._running[task.key] = task
        self._group_of[task.key] = group
        self._room -= group.weight
        self._fresh += task.memory
        for lock in group.locks:
            self._shorten(lock, _nanoseconds(task))
            self._holders[lock] = task.key
        if group.members:
            if group.locks:
                self._put(group, self._parked.setdefault(group.locks[0], []))
            else:
                self._make_ready(group)
        return task


def _nanoseconds(task: Task) -> int:
    # Whole numbers, so that a sum is the same after parts were added and taken away.
    return 0 if task.duration is None else round(task.duration * 1_000_000_000)


def _smallest(heap: _Heap, count: int) -> list[_Group]:
    """Give up to `count` of the first groups of a heap, without a look at the others."""
    found: list[_Group] = []
    edge = [(heap[0], 0)] if heap else []
    while edge and len(found) < count:
        (key, _, group), place = heapq.heappop(edge)
        if group.heap is heap and group.key == key:
            found.append(group)
        for child in (2 * place + 1, 2 * place + 2):
            if child < len(heap):
                heapq.heappush(edge, (heap[child], child))
    return found
