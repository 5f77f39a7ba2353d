"""The examples of a run on their lanes: each lane makes one attempt after the other, as scheduled.

What may run beside what is decided by `schedule`, and what comes after an attempt by `turns`.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from e2e_runner import machine
from e2e_runner.attempt import Attempt, by_hand
from e2e_runner.events import AttemptFinished, ExampleFinished, ExampleStarted
from e2e_runner.hints import Rule
from e2e_runner.isolation import mode_for
from e2e_runner.model import Example, NetworkMode, Past, Plan, Result, RunSettings, Status
from e2e_runner.preflight import needed_ports
from e2e_runner.schedule import Schedule, Task, port_lock
from e2e_runner.script import Surroundings
from e2e_runner.stop import Stop
from e2e_runner.telling import Telling
from e2e_runner.turns import Turn, Turns
from e2e_runner.verdict import is_bad

INTERNAL = "e2e-run itself failed"

_LOOK_AGAIN = 0.5  # seconds; memory that is set free by others is no event
_NOTHING = Past()


class Tally:
    """The verdicts of a run, as they are told."""

    def __init__(self, plan: Plan, run: RunSettings, telling: Telling) -> None:
        """Begin with none."""
        self._open = {example.path: example for example in plan.examples}
        self._run = run
        self._telling = telling
        self.counts: dict[Status, int] = {}
        self.bad = 0

    @property
    def unfinished(self) -> tuple[Example, ...]:
        """The examples without a verdict, in the order of the plan."""
        return tuple(self._open.values())

    def finish(self, result: Result) -> None:
        """Take a verdict."""
        del self._open[result.path]
        self.counts[result.status] = self.counts.get(result.status, 0) + 1
        self.bad += is_bad(result.status, strict=self._run.strict)
        self._telling.emit_soon(ExampleFinished(at=self._telling.at(), result=result))

    def finish_unstarted(self, example: Example, reason: str) -> None:
        """Give a verdict on what was not run."""
        self.finish(
            Result(
                path=example.path,
                status=Status.NOT_RUN,
                reason=reason,
                tags=example.settings.tags,
                ports=example.ports,
                command=by_hand(example, self._run.root),
            )
        )


class Lanes:
    """Runs the examples of a plan, several at a time."""

    def __init__(
        self,
        plan: Plan,
        around: Surroundings,
        *,
        past: Mapping[str, Past],
        load_rules: Callable[[], tuple[Rule, ...]],
        telling: Telling,
        tally: Tally,
    ) -> None:
        """Note what is to be done; `past` is what earlier runs tell of the examples, by path."""
        self._around = around
        self._past = past
        self._load_rules = load_rules
        self._forbidden = tuple(re.compile(p, re.MULTILINE) for p in around.run.fail_on_output)
        self._telling = telling
        self._tally = tally
        self._turns: dict[str, Turns] = {}
        self._waiting: dict[str, Turn] = {}  # by key; the schedule knows when
        self._alone: deque[Turn] = deque()  # for the end, one by one
        self._alone_now = False
        self._doubtful: set[str] = set()  # failed, and have a retry to come
        self._running: dict[str, set[str]] = {}  # path -> what ran beside it by now
        self._prepared: dict[str, Attempt] = {}  # by key
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._memory: tuple[float, int | None] = (0.0, None)  # when, and how much
        firsts = [self._first(example) for example in plan.examples]
        self._schedule = Schedule(map(self._task, firsts), jobs=around.info.jobs)
        self._waiting.update((turn.key, turn) for turn in firsts)

    async def run(self) -> Exception | None:
        """Run them; an error of our own is handed back once every example has a verdict."""
        error: Exception | None = None
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(self._around.info.jobs):
                    lanes.create_task(self._work())
        except* Exception as group:  # noqa: BLE001 - whatever it is, the results so far must be told
            error = group
        why = INTERNAL if error is not None else self._why_ended()
        for example in self._tally.unfinished:
            verdict = self._turns[example.path].give_up()
            if verdict is not None:
                self._tally.finish(verdict)
            else:
                self._tally.finish_unstarted(example, why)
        return error

    # --- what comes next -------------------------------------------------------------------------

    def _first(self, example: Example) -> Turn:
        tier = self._around.info.network
        past = self._past.get(example.path, _NOTHING)
        turns = Turns(
            example,
            network=mode_for(example.settings, tier, past),
            repeat=self._around.run.repeat,
            known=past.observed,
        )
        self._turns[example.path] = turns
        return turns.first()

    def _task(self, turn: Turn) -> Task:
        example = turn.example
        past = self._past.get(example.path, _NOTHING)
        parts = (example, *example.companions)
        on_host = turn.network is NetworkMode.HOST
        # Nobody knows which ports it takes, and it would not be alone with them.
        unknown = on_host and self._around.run.jobs is None and not past.observed
        return Task(
            key=turn.key,
            duration=past.duration,
            failed=past.failed,
            weight=1 + len(example.companions),
            locks=frozenset(lock for part in parts for lock in part.settings.locks).union(
                map(port_lock, _ports(example, past).union(turn.ports) if on_host else ())
            ),
            exclusive=unknown or any(part.settings.exclusive for part in parts),
            memory=past.max_rss or 0,
        )

    async def _next_turn(self) -> Turn | None:
        """Wait for the next attempt to be made; None when there is none for this lane any more."""
        stop = self._around.stop
        while not self._is_over(stop):
            turn = self._choose()
            if turn is not None:
                return turn
            self._telling.flush()
            if not self._running:
                break
            either: list[asyncio.Future[Any]] = [self._changed, stop.asked]
            await asyncio.wait(
                either,
                timeout=_LOOK_AGAIN if self._waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
        self._telling.flush()
        return None

    def _choose(self) -> Turn | None:
        if self._alone_now:
            return None
        if not self._is_in_doubt():
            task = self._schedule.next(memory=self._available_memory())
            if task is not None:
                return self._waiting.pop(task.key)
        if self._running or not self._alone or (self._waiting and not self._is_in_doubt()):
            return None
        self._alone_now = True
        return self._alone.popleft()

    def _is_in_doubt(self) -> bool:
        """Tell whether the run is over unless an example passes that failed and is to be retried."""
        limit = self._limit()
        return limit is not None and self._tally.bad + len(self._doubtful) >= limit

    def _available_memory(self) -> int | None:
        if not self._running:
            return None
        now = self._around.clock()
        if now - self._memory[0] >= _LOOK_AGAIN / 2:
            self._memory = (now, machine.available_memory())
        return self._memory[1]

    def _has_changed(self) -> None:
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()

    # --- a lane ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        while (turn := await self._next_turn()) is not None:
            await self._make(turn)

    async def _make(self, turn: Turn) -> None:
        example = turn.example
        attempt = self._prepared.pop(turn.key, None) or self._attempt(turn)
        beside = set(self._running)
        for others in self._running.values():
            others.add(example.path)
        self._running[example.path] = beside
        self._telling.emit_soon(
            ExampleStarted(
                at=self._telling.at(),
                path=example.path,
                limit=example.settings.timeout,
                attempt=turn.number,
            )
        )
        try:
            result = await attempt.run()
        finally:
            del self._running[example.path]
            if self._alone_now:
                self._alone_now = False
            else:
                self._schedule.done(turn.key)
        self._doubtful.discard(example.path)
        self._take(turn, result, beside)
        self._has_changed()

    def _take(self, turn: Turn, result: Result, beside: Iterable[str]) -> None:
        turns = self._turns[turn.example.path]
        then = turns.after(turn, result, frozenset(beside))
        if isinstance(then, Result):
            self._tally.finish(then)
            return
        self._telling.emit_soon(
            AttemptFinished(
                at=self._telling.at(), number=turn.number, result=result, again=then.why
            )
        )
        if then.alone:
            self._alone.append(then)
        else:
            self._waiting[then.key] = then
            self._schedule.add(self._task(then))
        if turns.failed:
            self._doubtful.add(turn.example.path)

    def _prepare_next(self) -> None:
        """Do what can be done ahead for what comes next, now that nobody waits for it."""
        self._telling.flush()
        if self._is_over(self._around.stop) or len(self._prepared) >= self._around.info.jobs:
            return
        for task in self._schedule.peek(len(self._prepared) + 1):
            if task.key not in self._prepared:
                attempt = self._prepared[task.key] = self._attempt(self._waiting[task.key])
                attempt.prepare()
                return

    def _attempt(self, turn: Turn) -> Attempt:
        return Attempt(
            turn.example,
            self._around,
            network=turn.network,
            past=self._past.get(turn.example.path),
            wanted_ports=turn.ports,
            load_rules=self._load_rules,
            forbidden=self._forbidden,
            emit=self._telling.emit,
            since=self._telling.since,
            meanwhile=self._prepare_next,
        )

    # --- the end ---------------------------------------------------------------------------------

    def _limit(self) -> int | None:
        """Give how many examples that are not ok end the run."""
        return 1 if self._around.run.fail_fast else self._around.run.max_fail

    def _is_over(self, stop: Stop) -> bool:
        limit = self._limit()
        return stop.signal is not None or (limit is not None and self._tally.bad >= limit)

    def _why_ended(self) -> str:
        run, stop = self._around.run, self._around.stop
        if stop.signal is not None:
            return f"the run was ended by {stop.signal.name}"
        return "--fail-fast" if run.fail_fast else f"--max-fail {run.max_fail}"


def _ports(example: Example, past: Past) -> set[int]:
    """List the ports that an example may take of the machine's."""
    taken = {*needed_ports(example), *example.ports, *past.ports}
    return taken.union(*(companion.ports for companion in example.companions))
