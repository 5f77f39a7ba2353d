"""Decides which databases of a server may be dropped, and which must stay. Pure.

A pattern with a ``*`` is a glob over the whole name, in which only ``*`` is special; one without is a
literal prefix. An entry of `protect` without a ``*`` is a whole name.

A pattern is refused when it matches a database of the server itself, or more than the limit, or,
unless a limit was given, all there are.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from e2e_runner.dbnames import MAX_NAME, is_given, lease_key, recognise, run_of_role, tokens_of
from e2e_runner.model import DatabaseFacts, ServerState
from e2e_runner.text import age as age_words
from e2e_runner.text import limit as limit_words
from e2e_runner.text import plural

DEFAULT_LIMIT = 100  # databases that one pattern may drop
UNLEASED_LIFE = 3600.0  # seconds that what a run without a lease made is taken to be in use
# The same where only the start of the run is known, by the clock of another machine.
UNLEASED_RUN = 24 * 3600.0

_BUILT_IN = "postgres"
_BUILT_IN_PREFIX = "template"
# The template of a run's databases, which the run itself has closed. No role of its owns it.
_TEMPLATE_OF_A_RUN = re.compile(r"test_e2e_\d{8}_\d{6}_[0-9a-f]{6}_r?0_t\d+", re.ASCII)
_FEW = 2  # foreign databases, from which on a pattern that matches all of them is suspicious


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What a person said of what may go."""

    patterns: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    connected: frozenset[str] = frozenset()  # names that the address or our connections are to
    force: bool = False  # sessions do not keep a database
    user: str = ""  # who sweeps
    older_than: float | None = None  # seconds
    limit: int | None = None  # per pattern; None: DEFAULT_LIMIT, and not all there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A database that may be dropped, and why it should be."""

    database: DatabaseFacts
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spared:
    """A database that would be a candidate, and why it stays."""

    database: DatabaseFacts
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep would do; with a `refusal` there are no candidates and no roles."""

    candidates: tuple[Candidate, ...] = ()
    spared: tuple[Spared, ...] = ()
    roles: tuple[str, ...] = ()  # that own no database once the candidates are gone
    refusal: str = ""
    remedy: str = ""


class SweepOutcome(StrEnum):
    """What became of a candidate."""

    DROPPED = "dropped"
    GONE = "gone"  # somebody else dropped it meanwhile
    SPARED = "spared"  # a last look before the drop found a reason to keep it
    FAILED = "failed"
    LEFT = "left"  # the sweep was interrupted before its turn


class SweepKind(StrEnum):
    """What is swept."""

    DATABASE = "database"
    ROLE = "role"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropping:
    """A sweep begins with a database or role."""

    kind: SweepKind
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A sweep is through with a database or role. `reason` is empty for what is dropped or gone."""

    kind: SweepKind
    name: str
    outcome: SweepOutcome
    reason: str = ""
    seconds: float = 0.0


SweepStep = Dropping | Swept


# --- patterns ------------------------------------------------------------------------------------


def matches(pattern: str, name: str) -> bool:
    """Say whether a pattern matches the name of a database.

    >>> matches("test_", "test_shop"), matches("test_", "testXshop"), matches("*_e2e_*", "a_e2e_b")
    (True, False, True)
    """
    if "*" not in pattern:
        return name.startswith(_clipped(pattern))
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last):
        return False
    if not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def protects(entry: str, name: str) -> bool:
    """Say whether an entry of `protect` covers a name."""
    return matches(entry, name) if "*" in entry else name == _clipped(entry)


def _clipped(name: str) -> str:
    """Cut a name to the bytes that the server keeps, never within a character."""
    return name.encode("utf-8", "surrogateescape")[:MAX_NAME].decode("utf-8", "ignore")


# --- the plan ------------------------------------------------------------------------------------


def plan_sweep(state: ServerState, criteria: Criteria) -> SweepPlan:
    """Decide what a sweep drops, and what it spares that a rule would have dropped."""
    judged = [judge(database, state, criteria) for database in state.databases]
    spared = tuple(each for each in judged if isinstance(each, Spared))
    for pattern in criteria.patterns:
        refused = _too_much(pattern, state, criteria)
        if refused:
            return SweepPlan(spared=spared, refusal=refused[0], remedy=refused[1])
    candidates = tuple(each for each in judged if isinstance(each, Candidate))
    leaving = {each.database.oid for each in candidates}
    staying = [each for each in state.databases if each.oid not in leaving]
    return SweepPlan(
        candidates=candidates,
        spared=spared,
        roles=idle_roles(state, staying, force=criteria.force),
    )


def judge(
    database: DatabaseFacts, state: ServerState, criteria: Criteria
) -> Candidate | Spared | None:
    """Decide on one database; None for one that no rule names."""
    why = _claim(database, criteria)
    if not why:
        return None
    if database.half_dropped:
        why += "; a drop of it was broken off"
    obstacle = _obstacle(database, state, criteria)
    if obstacle:
        return Spared(database=database, why=obstacle)
    return Candidate(database=database, why=why)


def is_of_a_run(database: DatabaseFacts) -> bool:
    """Say whether a lease tells if a database is in use."""
    origins = (recognise(database.name), recognise(database.owner))
    return any(made is not None and made.leased for made in origins)


def idle_roles(
    state: ServerState, databases: Iterable[DatabaseFacts], *, force: bool = False
) -> tuple[str, ...]:
    """Give the roles of runs that are over which own none of `databases`.

    A run with sessions may be one that lost its lease: it counts as alive, but with `force`.
    """
    owners = {database.owner for database in databases}
    return tuple(
        role
        for role in state.roles
        if role not in owners
        and (made := run_of_role(role)) is not None
        and lease_key(made.token) not in state.leases
        and (force or made.token not in state.busy)
    )


def sweep_exit_code(plan: SweepPlan, results: Sequence[Swept]) -> int:
    """Give the exit code: 0 when nothing is left that should go, 1 when something is, 2 if refused.

    Without results (``--dry-run``, or a person who said no), all that should go is left.
    """
    if plan.refusal:
        return 2
    ended = {(each.kind, each.name) for each in results if each.outcome not in _UNFINISHED}
    wanted = {(SweepKind.DATABASE, each.database.name) for each in plan.candidates}
    wanted |= {(SweepKind.ROLE, role) for role in plan.roles}
    failed = any(each.outcome in _UNFINISHED for each in results)
    return 1 if failed or wanted - ended else 0


_UNFINISHED = frozenset({SweepOutcome.FAILED, SweepOutcome.LEFT})


def _claim(database: DatabaseFacts, criteria: Criteria) -> str:
    """Say why a database should go, whatever may stand against it; empty when it should not."""
    if origin := _origin(database, criteria):
        return f"kept by --keep-databases; {origin}" if database.kept else origin
    found = next((each for each in criteria.patterns if matches(each, database.name)), None)
    return "" if found is None else f"matches {found}"


def _origin(database: DatabaseFacts, criteria: Criteria) -> str:
    """Say which run made a database; empty when none did, as far as name and owner tell.

    A name that merely contains the mark of a run may be that of a copy which somebody made.
    """
    made, owner = recognise(database.name), database.owner
    over = "its run is over" if made and made.leased else ""
    if run_of_role(owner) is not None:
        return over or "the run that owns it is over"
    if made is None or not (is_given(database.name) or owner == criteria.user):
        return ""
    whose = f"; it belongs to {owner}" if owner and owner != criteria.user else ""
    return f"{over or 'made by a run without a lease, long ago'}{whose}"


def _obstacle(database: DatabaseFacts, state: ServerState, criteria: Criteria) -> str:
    """Say why a database must stay; empty when nothing stands against its going."""
    reasons = (
        _untouchable(database, criteria),
        _alive(database, state),
        attached(database),
        _in_use(database, state, criteria),
        _too_young(database, state, criteria),
    )
    return next(filter(None, reasons), "")


def _untouchable(database: DatabaseFacts, criteria: Criteria) -> str:
    if _is_built_in(database):
        return "it belongs to the server itself"
    if database.is_template:
        return "it is marked as a template"
    entry = next((each for each in criteria.protect if protects(each, database.name)), None)
    if entry is not None:
        return "it is protected" if entry == database.name else f"it is protected by {entry}"
    if database.name in criteria.connected:
        return "it is the one that the address names, or that this sweep is connected to"
    try:
        database.name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return ""


def _alive(database: DatabaseFacts, state: ServerState) -> str:
    origins = (recognise(database.name), recognise(database.owner))
    # A name that was cut may have lost its mark of a lease: each token is asked for its lease.
    if any(made is not None and lease_key(made.token) in state.leases for made in origins):
        return "its run is alive"
    made, owner = origins
    leased = (made is not None and made.leased) or (owner is not None and owner.leased)
    if made is None or leased:
        return ""
    known = database.age is not None
    age = _age(database, state)
    if age is not None and age < (UNLEASED_LIFE if known else UNLEASED_RUN):
        until = "it is an hour old" if known else "its run began a day ago"
        return f"made by a run without a lease, which may be alive: it stays until {until}"
    return ""


def attached(database: DatabaseFacts) -> str:
    """Say what would be lost with a database, or would forbid its drop; empty for nothing."""
    if database.slots:
        return f"a replication slot needs it: {', '.join(database.slots)}"
    if database.subscriptions:
        return f"a subscription is in it: {', '.join(database.subscriptions)}"
    if database.prepared:
        return f"it has {plural(database.prepared, 'prepared transaction')}"
    return ""


def _in_use(database: DatabaseFacts, state: ServerState, criteria: Criteria) -> str:
    ours = run_of_role(database.owner) or _TEMPLATE_OF_A_RUN.fullmatch(database.name)
    if not database.allows_connections and not database.half_dropped and not ours:
        return "it allows no connections, which somebody decided"
    if database.sessions and not criteria.force:
        return f"it has {plural(database.sessions, 'session')}; --force ends them"
    if not criteria.force and tokens_of((database.name, database.owner)) & state.busy:
        return "its run has sessions elsewhere on the server, and may be alive; --force drops it"
    return ""


def _too_young(database: DatabaseFacts, state: ServerState, criteria: Criteria) -> str:
    if criteria.older_than is None:
        return ""
    age = _age(database, state)
    if age is None:
        return "its age is unknown, and --older-than was given"
    if age < criteria.older_than:
        return f"made {age_words(age)} ago, not {limit_words(criteria.older_than)}"
    return ""


def _age(database: DatabaseFacts, state: ServerState) -> float | None:
    """Give a database's age in seconds, where need be by the start of the run in its name."""
    if database.age is not None:
        return database.age
    made = recognise(database.name) or recognise(database.owner)
    return None if made is None else max(state.now - made.at, 0.0)


def _is_built_in(database: DatabaseFacts) -> bool:
    return database.name == _BUILT_IN or database.name.startswith(_BUILT_IN_PREFIX)


def _too_much(pattern: str, state: ServerState, criteria: Criteria) -> tuple[str, str] | None:
    """Say why a pattern matches too much, and the remedy; None when it does not."""
    foreign = [
        each
        for each in state.databases
        if not _is_built_in(each) and not each.is_template and not _origin(each, criteria)
    ]
    matched = [each for each in foreign if matches(pattern, each.name)]
    hit = [
        each
        for each in matched
        if not _untouchable(each, criteria) and not _too_young(each, state, criteria)
    ]
    count = plural(len(hit), "database")
    own = next(
        (
            each.name
            for each in state.databases
            if _is_built_in(each) and matches(pattern, each.name)
        ),
        None,
    )
    if own is not None:
        return (
            f"The pattern {pattern} matches {count}, and {own} too, which is the server's own",
            "name a narrower pattern",
        )
    most = DEFAULT_LIMIT if criteria.limit is None else criteria.limit
    remedy = (
        f"name a narrower pattern, or say that so many may go: --limit {len(hit)}; "
        "postgres.protect lists what must stay"
    )
    if len(hit) > most:
        return f"The pattern {pattern} matches {count}, and the limit is {most:,}", remedy
    # By name alone: that one of them is protected makes a pattern no narrower.
    if criteria.limit is None and hit and len(matched) == len(foreign) >= _FEW:
        said = f"The pattern {pattern} matches all {len(foreign):,} databases of this server"
        some = len(hit) < len(matched)
        return f"{said}, {len(hit):,} of which would go" if some else said, remedy
    return None
