"""Sweeps a server: looks, and later drops what was decided, after another look at each database."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from e2e_runner.errors import SetupError
from e2e_runner.model import DatabaseFacts, ServerAddress, ServerState
from e2e_runner.postgres.connection import (
    DRIVER_ERRORS,
    Connection,
    ServerFacts,
    Unreachable,
    connect,
    connected,
    describe,
)
from e2e_runner.postgres.drop import PATIENCE, DropOutcome, drop_database, drop_role
from e2e_runner.postgres.survey import SURVEY_PATIENCE, busy_roles, sizes, survey
from e2e_runner.stop import Stop
from e2e_runner.sweep_plan import (
    Candidate,
    Criteria,
    Dropping,
    Spared,
    SweepKind,
    SweepOutcome,
    SweepPlan,
    SweepStep,
    Swept,
    idle_roles,
    is_of_a_run,
    judge,
    plan_sweep,
)

MAINTENANCE = "postgres"
# Concurrent drops share the checkpoints that each needs: 32 take two thirds of the time of 16.
MOST_CONNECTIONS = 32
_MEASURED_SPARED = 50
# Seconds between the first and the last look for a lease: a live run whose session was ended takes
# its lease again at once, and after a crash of the server, which forgets all leases, a little later.
_LEASE_BACK = 0.5
_LEASE_BACK_AFTER_CRASH = 1.5
_RECENT_CRASH = 60.0  # seconds
_GOODBYE = 3.0  # seconds
_MOST_HUNG = 3  # drops in a row without an answer, after which the server is taken to be hung
_OUTCOMES = {
    DropOutcome.DROPPED: SweepOutcome.DROPPED,
    DropOutcome.GONE: SweepOutcome.GONE,
    DropOutcome.FAILED: SweepOutcome.FAILED,
}

# Seconds since the server started or came back from a crash, which starts its helpers anew. Null
# for users who are not shown them.
_UP_FOR = """
    SELECT extract(epoch FROM now() - backend_start)::float8
      FROM pg_stat_activity WHERE backend_type = 'checkpointer'
"""

Emit = Callable[[SweepStep], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a first look at a server found, and what is to be done."""

    address: ServerAddress
    facts: ServerFacts
    database: str  # that we are connected to while we sweep
    criteria: Criteria  # with the names that the connections are to
    plan: SweepPlan
    at: float  # when it was made, on the monotonic clock
    lease_back: float  # seconds after which a live run has its lease again


async def look(address: ServerAddress, criteria: Criteria) -> Survey:
    """Look at a server and decide what may go; sizes are known of what is listed, where allowed.

    Raises SetupError for a server that cannot be reached or swept.
    """
    try:
        async with _maintenance(address) as (connection, database):
            async with asyncio.timeout(SURVEY_PATIENCE):
                facts = await describe(connection)
            await _refuse_unfit(connection, address, facts)
            criteria = replace(
                criteria,
                connected=criteria.connected | {database, address.database},
                user=facts.user,
            )
            plan = plan_sweep(await survey(connection), criteria)
            plan = await _measured(connection, plan)
            up = await connection.fetchval(_UP_FOR)
    except Unreachable as error:
        raise _unreachable(address, str(error)) from error
    except TimeoutError as error:
        raise SetupError(
            f"{address} does not say what it holds",
            facts=(str(error) or f"no answer within {SURVEY_PATIENCE:g} s",),
            remedy="look in pg_stat_activity and pg_locks for who holds a lock on its catalogs, and "
            "sweep again once it is gone",
        ) from error
    except DRIVER_ERRORS as error:
        raise _unreachable(address, str(error) or type(error).__name__) from error
    return Survey(
        address=address,
        facts=facts,
        database=database,
        criteria=criteria,
        plan=plan,
        at=time.monotonic(),
        lease_back=_LEASE_BACK if (up or 0.0) > _RECENT_CRASH else _LEASE_BACK_AFTER_CRASH,
    )


async def drop(
    found: Survey, emit: Emit, stop: Stop, *, patience: float = PATIENCE
) -> tuple[Swept, ...]:
    """Drop what a survey decided, best-effort and concurrently; gives a result for each.

    Each database is looked at again right before its drop. A first request to stop lets the drops
    under way finish, a second one breaks them off. `patience` is that of one drop, in seconds.
    """
    sweep = _Sweep(found=found, emit=emit, stop=stop, patience=patience)
    await sweep.run()
    return tuple(sweep.results)


@dataclass(slots=True, kw_only=True)
class _Sweep:
    found: Survey
    emit: Emit
    stop: Stop
    patience: float
    waiting: deque[Candidate] = field(init=False)
    checks: "_Checks" = field(init=False)
    results: list[Swept] = field(default_factory=list)
    trouble: str = ""  # why a worker gave up
    under_way: set[str] = field(default_factory=set)  # names of databases
    hung: int = 0  # drops in a row without an answer

    def __post_init__(self) -> None:
        self.waiting = deque(self.found.plan.candidates)
        self.checks = _Checks(self.found)

    async def run(self) -> None:
        work = asyncio.create_task(self._all())
        await asyncio.wait({work, self.stop.now}, return_when=asyncio.FIRST_COMPLETED)
        work.cancel()  # says nothing to what is done
        with contextlib.suppress(asyncio.CancelledError):
            await work
        self._account()

    async def _all(self) -> None:
        plan = self.found.plan
        if plan.roles or any(is_of_a_run(each.database) for each in plan.candidates):
            left = self.found.at + self.found.lease_back - time.monotonic()
            await asyncio.wait([self.stop.asked], timeout=max(left, 0.0))
        async with self.checks, asyncio.TaskGroup() as group:
            for _ in range(_connections(len(self.waiting), self.found.facts.free_connections)):
                group.create_task(self._work())
        if plan.roles and not self.waiting and not self.stop.asked.done():
            await self._roles()

    async def _work(self) -> None:
        """Drop one database after the other, over a connection of this worker's own."""
        connection: Connection | None = None
        try:
            while self.waiting and not self.stop.asked.done() and self.hung < _MOST_HUNG:
                if connection is None or connection.is_closed():
                    try:
                        connection = await connect(self.found.address, database=self.found.database)
                    except Unreachable as error:
                        self.trouble = str(error)
                        return  # the others, if there are any, have enough to do
                    if not self.waiting:  # others have emptied it meanwhile
                        return
                candidate = self.waiting.popleft()
                self._end(await self._one(connection, candidate))
        finally:
            if connection is not None:
                # Waits for the cancelling of a drop that was broken off: the server would go on
                # with it otherwise.
                with contextlib.suppress(*DRIVER_ERRORS):
                    await connection.close(timeout=_GOODBYE)

    async def _one(self, connection: Connection, candidate: Candidate) -> Swept:
        name = candidate.database.name
        self.under_way.add(name)
        self.emit(Dropping(kind=SweepKind.DATABASE, name=name))

        def swept(outcome: SweepOutcome, reason: str, seconds: float = 0.0) -> Swept:
            return Swept(
                kind=SweepKind.DATABASE, name=name, outcome=outcome, reason=reason, seconds=seconds
            )

        try:
            async with asyncio.timeout(self.patience):
                now = await self.checks.look(candidate.database.oid)
        except (Unreachable, *DRIVER_ERRORS) as error:
            if isinstance(error, TimeoutError):
                self.hung += 1
            words = str(error) or f"no answer within {self.patience:g} s"
            return swept(SweepOutcome.FAILED, f"it could not be looked at again: {words}")
        if obstacle := _changed(candidate, now, self.found.criteria):
            return swept(*obstacle)
        result = await drop_database(
            connection,
            name,
            oid=candidate.database.oid,
            force=self.found.criteria.force,
            patience=self.patience,
        )
        self.hung = self.hung + 1 if result.timed_out else 0
        return swept(_OUTCOMES[result.outcome], result.reason, result.seconds)

    async def _roles(self) -> None:
        """Drop the roles that own nothing any more, now that the databases are through."""
        with contextlib.suppress(Unreachable, *DRIVER_ERRORS):
            async with connected(self.found.address, database=self.found.database) as connection:
                state = await survey(connection)
                force = self.found.criteria.force
                idle = set(idle_roles(state, state.databases, force=force))
                idle &= set(self.found.plan.roles)
                busy = await busy_roles(connection, idle)
                for name in self.found.plan.roles:
                    if self.stop.asked.done():
                        return
                    self._end(await self._role(connection, name, state, idle, busy))

    async def _role(
        self,
        connection: Connection,
        name: str,
        state: ServerState,
        idle: set[str],
        busy: frozenset[str],
    ) -> Swept:
        def swept(outcome: SweepOutcome, reason: str = "", seconds: float = 0.0) -> Swept:
            return Swept(
                kind=SweepKind.ROLE, name=name, outcome=outcome, reason=reason, seconds=seconds
            )

        if name not in state.roles:
            return swept(SweepOutcome.GONE)
        if name not in idle:
            return swept(SweepOutcome.SPARED, "it owns a database, or its run is alive")
        if name in busy:
            return swept(SweepOutcome.SPARED, "it has sessions")
        self.emit(Dropping(kind=SweepKind.ROLE, name=name))
        result = await drop_role(connection, name, patience=self.patience)
        if result.still_owns:
            return swept(SweepOutcome.SPARED, result.reason, result.seconds)
        return swept(_OUTCOMES[result.outcome], result.reason, result.seconds)

    def _end(self, result: Swept) -> None:
        self.results.append(result)
        self.emit(result)

    def _account(self) -> None:
        """Say of everything without a result why there is none."""
        plan = self.found.plan
        ended = {(each.kind, each.name) for each in self.results}
        wanted = [(SweepKind.DATABASE, each.database.name) for each in plan.candidates]
        wanted += [(SweepKind.ROLE, role) for role in plan.roles]
        for kind, name in wanted:
            if (kind, name) in ended:
                continue
            outcome, reason = self._unended(name)
            self._end(Swept(kind=kind, name=name, outcome=outcome, reason=reason))

    def _unended(self, name: str) -> tuple[SweepOutcome, str]:
        if name in self.under_way:
            return SweepOutcome.LEFT, "its drop was broken off"
        if self.stop.asked.done():
            return SweepOutcome.LEFT, "interrupted"
        if self.hung:
            return SweepOutcome.FAILED, "not tried: the server does not answer drops any more"
        words = self.trouble or "the server was lost"
        return SweepOutcome.FAILED, f"not tried: {words}"


class _Checks:
    """Looks at databases once more, over one connection; who asks meanwhile shares the next look.

    A connection that looks for the first time has to read the server's catalogues, which takes as
    long as a drop; so the connections that drop do not look.
    """

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._connection: Connection | None = None
        self._asked: dict[int, asyncio.Future[ServerState]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        """Connect later, when somebody asks."""

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._connection is not None:
            with contextlib.suppress(*DRIVER_ERRORS):
                await self._connection.close(timeout=_GOODBYE)

    async def look(self, oid: int) -> ServerState:
        """See a database, as it is after this was called; no database when it is gone.

        Raises Unreachable, or what is in `DRIVER_ERRORS`.
        """
        answer = self._asked.setdefault(oid, asyncio.get_running_loop().create_future())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer())
        return await answer

    async def _answer(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                state = await self._look_at(asked)
            except (Unreachable, *DRIVER_ERRORS) as error:
                for answer in asked.values():
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for oid, answer in asked.items():
                if not answer.done():  # whoever asked may have lost patience
                    some = tuple(each for each in state.databases if each.oid == oid)
                    answer.set_result(replace(state, databases=some))

    async def _look_at(self, oids: Iterable[int]) -> ServerState:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._found.address, database=self._found.database)
        return await survey(self._connection, only=list(oids))


def _changed(
    candidate: Candidate, now: ServerState, criteria: Criteria
) -> tuple[SweepOutcome, str] | None:
    """Say what became of a candidate since it was listed; None when it may go as it is."""
    if not now.databases:
        return SweepOutcome.GONE, ""
    fresh = now.databases[0]
    if fresh.name != candidate.database.name:
        return SweepOutcome.SPARED, f"it was renamed to {fresh.name}"
    match judge(fresh, now, criteria):
        case Candidate():
            return None
        case Spared(why=why):
            return SweepOutcome.SPARED, f"it changed since it was listed: {why}"
        case None:
            return SweepOutcome.SPARED, "it changed since it was listed: no rule names it any more"


def _connections(candidates: int, free: int) -> int:
    """Choose how many connections to use: half of what is free at most."""
    return max(1, min(MOST_CONNECTIONS, candidates, free // 2))


@contextlib.asynccontextmanager
async def _maintenance(
    address: ServerAddress,
) -> AsyncIterator[tuple[Connection, str]]:
    """Connect to the database that is nobody's, else to the one of the address."""
    try:
        connection, database = await connect(address, database=MAINTENANCE), MAINTENANCE
    except Unreachable:
        if address.database == MAINTENANCE:
            raise
        connection, database = await connect(address), address.database
    try:
        yield connection, database
    finally:
        connection.terminate()


async def _refuse_unfit(connection: Connection, address: ServerAddress, facts: ServerFacts) -> None:
    if facts.pooled:
        raise SetupError(
            f"{address} is a connection pooler, such as PgBouncer: "
            "what a live run uses cannot be told through it, so nothing is swept",
            remedy="name the server itself, with a user that may drop: postgres.admin-url in the "
            "configuration, or --postgres URL",
        )
    if facts.read_only:
        standby = await connection.fetchval("SELECT pg_is_in_recovery()")
        raise SetupError(
            f"{address} is a standby: it can only be read"
            if standby
            else f"{address} is read-only: default_transaction_read_only is on",
            facts=(f"PostgreSQL {facts.version}",),
            remedy="name the primary server" if standby else "name a user who may write",
        )


async def _measured(connection: Connection, plan: SweepPlan) -> SweepPlan:
    listed = [each.database.oid for each in plan.candidates]
    listed += [each.database.oid for each in plan.spared[:_MEASURED_SPARED]]
    known = await sizes(connection, listed)

    candidates = [replace(each, database=_sized(each.database, known)) for each in plan.candidates]
    spared = [replace(each, database=_sized(each.database, known)) for each in plan.spared]
    return replace(plan, candidates=tuple(candidates), spared=tuple(spared))


def _sized(database: DatabaseFacts, known: Mapping[int, int]) -> DatabaseFacts:
    return replace(database, size=known.get(database.oid))


def _unreachable(address: ServerAddress, words: str) -> SetupError:
    return SetupError(
        "The PostgreSQL server cannot be reached",
        facts=(words.removeprefix(f"{address}: "),),
        remedy="start it, or name another one: --postgres URL",
    )
