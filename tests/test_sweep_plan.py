import hashlib
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_runner.dbnames import attempt_name, lease_key
from e2e_runner.model import DatabaseFacts, ServerState
from e2e_runner.sweep_plan import (
    Candidate,
    Criteria,
    Spared,
    SweepKind,
    SweepOutcome,
    SweepPlan,
    Swept,
    judge,
    matches,
    plan_sweep,
    protects,
    sweep_exit_code,
)

DEAD = "20261121_094345_0a1b2c"
LIVE = "20261121_094345_ffffff"
NOW = 1795255200.0  # 2026-11-21 10:00:00 UTC, 16 minutes and 15 seconds after the runs began
HOUR = 3600.0
MAY_LIVE = "made by a run without a lease, which may be alive: it stays until"


def database(name: str, **facts: object) -> DatabaseFacts:
    plain = DatabaseFacts(oid=hash(name) % 10**6, name=name, owner="maria", age=2 * HOUR)
    return replace(plain, **facts)  # type: ignore[arg-type]


def server(*databases: DatabaseFacts, roles: tuple[str, ...] = ()) -> ServerState:
    return ServerState(
        databases=databases, leases=frozenset({lease_key(LIVE), 42}), roles=roles, now=NOW
    )


def verdict(each: DatabaseFacts, criteria: Criteria | None = None) -> str:
    match judge(each, server(each), criteria or Criteria(user="maria")):
        case Candidate(why=why):
            return f"goes: {why}"
        case Spared(why=why):
            return f"stays: {why}"
        case None:
            return "not named"


# --- patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("test_", "test_a", True),
        ("test_", "testXa", False),  # _ and % are no wildcards
        ("test%", "test_a", False),
        ("test_?", "test_a", False),
        ("test_[a]", "test_a", False),
        ("test_*", "test_", True),
        ("*_e2e_*", "shop_e2e_1", True),
        ("*_e2e_*", "shop_e2eX1", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("a*b*c", "axbxc", True),
        ("a*b*c", "axcxb", False),
        ("test_*", "Test_a", False),
        ("test_*", "test_a\nb", True),
        ("x" * 80, "x" * 63, True),  # the server has cut the name
        ("é" * 40, "é" * 31, True),  # 62 bytes: never within a character
        ("*" * 60 + "z", "a" * 63, False),
    ],
)
def test_patterns(pattern: str, name: str, *, expected: bool) -> None:
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("shop", "shop", True),
        ("shop", "shop_test", False),
        ("shop*", "shop_test", True),
        ("x" * 80, "x" * 63, True),
        ("x" * 80, "x" * 62, False),
    ],
)
def test_what_is_protected(entry: str, name: str, *, expected: bool) -> None:
    assert protects(entry, name) is expected


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_globs_are_what_a_regular_expression_says(pattern: str, name: str) -> None:
    if "*" in pattern:
        expression = ".*".join(map(re.escape, pattern.split("*")))
        assert matches(pattern, name) is (re.fullmatch(expression, name) is not None)
    else:
        assert matches(pattern, name) is name.startswith(pattern)


# --- one database --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (database("shop"), "not named"),
        (database(attempt_name(DEAD, 1)), "goes: its run is over"),
        (database(attempt_name(DEAD, 1) + "_ohlcv", age=None), "goes: its run is over"),
        (database("shop", owner=attempt_name(DEAD, 1)), "goes: the run that owns it is over"),
        (database(attempt_name(LIVE, 1)), "stays: its run is alive"),
        (database("shop", owner=attempt_name(LIVE, 1)), "stays: its run is alive"),
        # The number was cut off with the end of a long name, or made without a lease on purpose.
        (database(f"shop_e2e_{LIVE}", age=9 * HOUR), "stays: its run is alive"),
        (database(f"shop_e2e_{DEAD}"), "goes: made by a run without a lease, long ago"),
        (
            database(f"shop_e2e_{DEAD}", age=1800),
            f"stays: {MAY_LIVE} it is an hour old",
        ),
        # A run may last long: its own age, by the clock of its machine, says little.
        (
            database("shop_e2e_20261120_104345_0a1b2c", age=None),
            f"stays: {MAY_LIVE} its run began a day ago",
        ),
        (
            database("shop_e2e_20261120_094345_0a1b2c", age=None),
            "goes: made by a run without a lease, long ago",
        ),
        (
            database(attempt_name(DEAD, 1), kept=True),
            "goes: kept by --keep-databases; its run is over",
        ),
        # Of another owner only what has the very form that runs give.
        (
            database(f"test_{attempt_name(DEAD, 1)}_x", owner="alice"),
            "goes: its run is over; it belongs to alice",
        ),
        (
            database(f"test_e2e_{DEAD}_7", owner="alice"),
            "goes: made by a run without a lease, long ago; it belongs to alice",
        ),
        (database(f"shop_e2e_{DEAD}_r3_for_bug_4711", owner="alice"), "not named"),
        (database(f"my_{attempt_name(DEAD, 1)}", owner="alice"), "not named"),
        (database(f"my_{attempt_name(DEAD, 1)}"), "goes: its run is over"),
        (database(f"shop_e2e_{DEAD}", owner="alice"), "not named"),
        (database("shop", owner=f"my_{attempt_name(DEAD, 1)}"), "not named"),
        (
            database(attempt_name(DEAD, 1), half_dropped=True),
            "goes: its run is over; a drop of it was broken off",
        ),
        (database(attempt_name(DEAD, 1), is_template=True), "stays: it is marked as a template"),
        (
            database(attempt_name(DEAD, 1), sessions=2),
            "stays: it has 2 sessions; --force ends them",
        ),
        (
            database(attempt_name(DEAD, 1), slots=("a", "b")),
            "stays: a replication slot needs it: a, b",
        ),
        (
            database(attempt_name(DEAD, 1), subscriptions=("sub",)),
            "stays: a subscription is in it: sub",
        ),
        (database(attempt_name(DEAD, 1), prepared=1), "stays: it has 1 prepared transaction"),
        (
            database(attempt_name(DEAD, 1), allows_connections=False),
            "stays: it allows no connections, which somebody decided",
        ),
        # What a run clones its databases from is closed by the run itself.
        (
            database(attempt_name(DEAD, 0) + "_t1", allows_connections=False),
            "goes: its run is over",
        ),
        (
            database(attempt_name(LIVE, 0) + "_t1", allows_connections=False),
            "stays: its run is alive",
        ),
        (
            database("shop", owner=attempt_name(DEAD, 1), allows_connections=False),
            "goes: the run that owns it is over",
        ),
        (
            database(attempt_name(DEAD, 1), allows_connections=False, half_dropped=True),
            "goes: its run is over; a drop of it was broken off",
        ),
    ],
)
def test_a_database_of_a_run(each: DatabaseFacts, expected: str) -> None:
    assert verdict(each) == expected


@pytest.mark.parametrize(
    ("each", "more", "expected"),
    [
        (database("test_a"), {}, "goes: matches test_*"),
        (database("test_a"), {"protect": ("test_a",)}, "stays: it is protected"),
        (database("test_a"), {"protect": ("*_a",)}, "stays: it is protected by *_a"),
        (
            database("test_a"),
            {"connected": frozenset({"test_a"})},
            "stays: it is the one that the address names, or that this sweep is connected to",
        ),
        (database("test_a", sessions=1), {"force": True}, "goes: matches test_*"),
        (
            database("test_a", slots=("s",)),
            {"force": True},
            "stays: a replication slot needs it: s",
        ),
        (database("test_a", age=5.0), {"older_than": 90.0}, "stays: made 5s ago, not 90s"),
        (
            database("test_a", age=None),
            {"older_than": 90.0},
            "stays: its age is unknown, and --older-than was given",
        ),
        (database("test_a", age=90.0), {"older_than": 90.0}, "goes: matches test_*"),
        (database("test_\udce9"), {}, "stays: its name is not valid UTF-8"),
        (
            database(f"test_e2e_{DEAD}", age=60.0),
            {},
            f"stays: {MAY_LIVE} it is an hour old",
        ),
        (database(attempt_name(LIVE, 1)), {"force": True}, "stays: its run is alive"),
        (database("postgres"), {"patterns": ("*",)}, "stays: it belongs to the server itself"),
        (database("template1"), {"patterns": ("*",)}, "stays: it belongs to the server itself"),
        (database("template_x"), {"patterns": ("*",)}, "stays: it belongs to the server itself"),
    ],
)
def test_a_database_that_a_pattern_matches(
    each: DatabaseFacts, more: dict[str, object], expected: str
) -> None:
    assert verdict(each, Criteria(**{"patterns": ("test_*",), **more})) == expected  # type: ignore[arg-type]


# --- what is too much ----------------------------------------------------------------------------


def test_a_pattern_beyond_the_limit_is_refused_as_a_whole() -> None:
    many = [database(f"test_{number}") for number in range(101)]
    plan = plan_sweep(
        server(*many, database("shop"), database(attempt_name(DEAD, 1))),
        Criteria(patterns=("test_",)),
    )
    assert plan.refusal == "The pattern test_ matches 101 databases, and the limit is 100"
    assert "--limit 101" in plan.remedy
    assert plan.candidates == ()
    assert plan.roles == ()
    allowed = plan_sweep(server(*many), Criteria(patterns=("test_",), limit=101))
    assert len(allowed.candidates) == 101
    at_limit = plan_sweep(server(*many[1:], database("shop")), Criteria(patterns=("test_",)))
    assert len(at_limit.candidates) == 100


def test_the_limit_is_for_each_pattern_and_not_for_dead_runs() -> None:
    dead = [database(f"{attempt_name(DEAD, 1)}_{number}") for number in range(300)]
    plan = plan_sweep(
        server(*dead, database("test_a"), database("more_b"), database("shop")),
        Criteria(patterns=("test_", "more_"), limit=1),
    )
    assert plan.refusal == ""
    assert len(plan.candidates) == 302


def test_what_the_rules_keep_anyway_does_not_count() -> None:
    young = [database(f"test_{number}", age=5.0) for number in range(101)]
    plan = plan_sweep(
        server(*young, database("test_old"), database("shop")),
        Criteria(patterns=("test_",), older_than=HOUR),
    )
    assert [each.database.name for each in plan.candidates] == ["test_old"]


def test_a_pattern_that_matches_everything_is_refused() -> None:
    state = server(database("postgres"), database("shop_dev"), database("shop_live"))
    plan = plan_sweep(state, Criteria(patterns=("shop_",)))
    assert plan.refusal == "The pattern shop_ matches all 2 databases of this server"
    assert plan.candidates == ()
    said = plan_sweep(state, Criteria(patterns=("shop_",), limit=2))
    assert len(said.candidates) == 2
    narrower = plan_sweep(state, Criteria(patterns=("shop_d",)))
    assert len(narrower.candidates) == 1
    for more in ({"protect": ("shop_live",)}, {"connected": frozenset({"shop_live"})}):
        one_stays = plan_sweep(state, Criteria(patterns=("shop_",), **more))
        assert one_stays.refusal == f"{plan.refusal}, 1 of which would go"
        assert one_stays.candidates == ()
    copy = database(f"shop_e2e_{DEAD}_r1", owner="alice")  # of nobody's run
    with_copy = plan_sweep(server(*state.databases, copy), Criteria(patterns=("shop_",)))
    assert with_copy.refusal == "The pattern shop_ matches all 3 databases of this server"
    alone = plan_sweep(server(database("shop_dev")), Criteria(patterns=("shop_",)))
    assert len(alone.candidates) == 1


@pytest.mark.parametrize("pattern", ["*", "**", "*e*", "temp*", "p*s", "postgres"])
def test_a_pattern_that_matches_the_servers_own_databases_is_refused(pattern: str) -> None:
    state = server(database("postgres"), database("template1", is_template=True), database("a"))
    plan = plan_sweep(state, Criteria(patterns=(pattern,), limit=1000))
    assert "which is the server's own" in plan.refusal
    assert plan.candidates == ()


# --- roles and the exit code ---------------------------------------------------------------------


def test_roles_go_when_they_own_nothing_that_stays() -> None:
    idle, owns, keeps, live = (attempt_name(DEAD, n) for n in (1, 2, 3, 4))
    live = attempt_name(LIVE, 4)
    plan = plan_sweep(
        server(
            database("a", owner=owns),
            database("b", owner=keeps, sessions=1),
            roles=(idle, owns, keeps, live, f"x_e2e_{DEAD}"),
        ),
        Criteria(),
    )
    assert plan.roles == (idle, owns)


def test_sessions_are_a_sign_of_life_of_a_run_that_lost_its_lease() -> None:
    role = attempt_name(DEAD, 1)
    theirs = [database(f"{role}_bars"), database("shop", owner=role)]
    state = replace(server(*theirs, roles=(role,)), busy=frozenset({DEAD}))
    plan = plan_sweep(state, Criteria())
    assert (plan.candidates, plan.roles) == ((), ())
    assert {each.why for each in plan.spared} == {
        "its run has sessions elsewhere on the server, and may be alive; --force drops it"
    }
    forced = plan_sweep(state, Criteria(force=True))
    assert [each.database for each in forced.candidates] == theirs
    assert forced.roles == (role,)
    leased = replace(state, leases=frozenset({lease_key(DEAD)}))
    assert plan_sweep(leased, Criteria(force=True)).candidates == ()


def test_roles_that_only_look_like_those_of_runs_stay() -> None:
    odd = (f"my_{attempt_name(DEAD, 1)}", f"e2e_{DEAD}_r1", f"test_e2e_{DEAD}_r1x")
    assert plan_sweep(server(roles=odd), Criteria(force=True)).roles == ()


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (SweepOutcome.DROPPED, 0),
        (SweepOutcome.GONE, 0),
        (SweepOutcome.SPARED, 0),
        (SweepOutcome.FAILED, 1),
        (SweepOutcome.LEFT, 1),
        (None, 1),
    ],
)
def test_the_exit_code(outcome: SweepOutcome | None, code: int) -> None:
    each = database("test_a")
    plan = SweepPlan(candidates=(Candidate(database=each, why=""),))
    result = outcome and Swept(kind=SweepKind.DATABASE, name="test_a", outcome=outcome)
    assert sweep_exit_code(plan, [result] if result else []) == code


def test_the_exit_code_without_candidates() -> None:
    assert sweep_exit_code(SweepPlan(), []) == 0
    assert sweep_exit_code(SweepPlan(refusal="too much"), []) == 2


# --- nothing that must stay ever goes ------------------------------------------------------------
# An oracle of its own: it shares no code with the plan, not even the reading of names.

TOKENS = [DEAD, LIVE, "20261120_000000_abcdef", "20261121_095959_123456"]
names = st.one_of(
    st.builds("test_e2e_{}_r{}".format, st.sampled_from(TOKENS), st.integers(0, 12)),
    st.builds("test_e2e_{}_r{}_ohlcv".format, st.sampled_from(TOKENS), st.integers(0, 12)),
    st.builds("test_e2e_{}_r0_t{}".format, st.sampled_from(TOKENS), st.integers(1, 3)),
    st.builds("shop_e2e_{}".format, st.sampled_from(TOKENS)),
    st.builds("shop_e2e_{}_r".format, st.sampled_from(TOKENS)),
    st.builds("shop_e2e_{}_r3_for_bug_4711".format, st.sampled_from(TOKENS)),
    st.builds("test_test_e2e_{}_{}".format, st.sampled_from(TOKENS), st.integers(0, 3)),
    st.builds("xe2e_{}_r1".format, st.sampled_from(TOKENS)),
    st.sampled_from(["postgres", "template0", "template1", "template_shop", "test_template"]),
    st.sampled_from(["shop", "shop_live", "test_a", "test_b", "tests", "test_e2e_2026", 'a"b\n']),
    st.text(max_size=8).filter(lambda name: "\0" not in name and name != ""),
)
owners = st.one_of(
    st.sampled_from(["maria", "postgres"]),
    st.builds("copy_e2e_{}_r1".format, st.sampled_from(TOKENS)),
    st.builds("test_e2e_{}_r{}".format, st.sampled_from(TOKENS), st.integers(0, 3)),
)
rarely = st.sampled_from([False] * 9 + [True])
facts = st.builds(
    DatabaseFacts,
    oid=st.integers(1, 2**32 - 1),
    name=names,
    owner=owners,
    is_template=rarely,
    allows_connections=rarely.map(lambda no: not no),
    half_dropped=rarely,
    sessions=st.sampled_from([0, 0, 0, 0, 1, 7]),
    slots=st.sampled_from([(), (), (), (), ("slot",)]),
    subscriptions=st.sampled_from([(), (), (), (), ("subscription",)]),
    prepared=st.sampled_from([0, 0, 0, 0, 1]),
    size=st.none(),
    age=st.one_of(st.none(), st.floats(0, 2 * 86400)),
)
states = st.builds(
    ServerState,
    databases=st.lists(facts, max_size=9, unique_by=lambda each: each.name).map(tuple),
    leases=st.sets(st.sampled_from(TOKENS)).map(
        lambda live: frozenset({lease_key(token) for token in live} | {7})
    ),
    roles=st.lists(owners, max_size=4, unique=True).map(tuple),
    busy=st.one_of(st.just(frozenset()), st.sets(st.sampled_from(TOKENS)).map(frozenset)),
    now=st.just(NOW),
)
patterns = st.lists(
    st.sampled_from(["test_*", "test_", "shop", "*_e2e_*", "*", "*o*", "shop_live", "a*"]),
    max_size=2,
).map(tuple)
criteria_ = st.builds(
    Criteria,
    patterns=patterns,
    protect=st.lists(st.sampled_from(["shop_live", "test_a", "*_ohlcv", "te"]), max_size=2).map(
        tuple
    ),
    connected=st.sets(st.sampled_from(["postgres", "shop", "test_b"])).map(frozenset),
    force=st.booleans(),
    user=st.sampled_from(["maria", "postgres", "alice"]),
    older_than=st.one_of(st.none(), st.floats(0, 2 * 86400)),
    limit=st.one_of(st.none(), st.integers(1, 5)),
)


def _expression(pattern: str, *, prefix: bool) -> str:
    body = "".join(".*" if char == "*" else re.escape(char) for char in pattern)
    return body + (".*" if prefix and "*" not in pattern else "")


def _hits(pattern: str, name: str, *, prefix: bool = True) -> bool:
    return re.fullmatch(f"(?s:{_expression(pattern, prefix=prefix)})", name) is not None


def _token(text: str) -> tuple[str, bool] | None:
    found = re.search(r"(?<![^_])e2e_(\d{8}_\d{6}_[0-9a-f]{6})((?:_r\d+)?)(?![^_])", text)
    return (found[1], found[2] != "") if found else None


def _key(token: str) -> int:
    whole = int(hashlib.sha256(f"e2e-run lease {token}".encode()).hexdigest()[:16], 16)
    return whole - 2**64 if whole >= 2**63 else whole


def _minutes_old(token: str) -> float:
    started = {DEAD: 975, LIVE: 975, TOKENS[2]: 122400, TOKENS[3]: 1}
    return started[token] / 60


def _is_role(owner: str) -> bool:
    return owner.startswith("test_e2e_")


def must_stay(each: DatabaseFacts, state: ServerState, criteria: Criteria) -> bool:
    tokens = [_token(each.name), _token(each.owner)]
    ours = _is_role(each.owner)
    age = each.age
    for token in tokens:
        if token is not None and age is None:
            age = _minutes_old(token[0]) * 60
    closed_by_us = tokens[0] is not None and re.search(r"_r0_t[123]$", each.name)
    unleased = tokens[0] is not None and not tokens[0][1] and not (tokens[1] or ("", ""))[1]
    return (
        each.name == "postgres"
        or each.name.startswith("template")
        or each.is_template
        or each.name in criteria.connected
        or any(_hits(entry, each.name, prefix=False) for entry in criteria.protect)
        or any(token is not None and _key(token[0]) in state.leases for token in tokens)
        or (unleased and age is not None and age < (3600 if each.age is not None else 86400))
        or (not criteria.force and any(token and token[0] in state.busy for token in tokens))
        or bool(each.slots or each.subscriptions or each.prepared)
        or (each.sessions > 0 and not criteria.force)
        or not (each.allows_connections or each.half_dropped or ours or closed_by_us)
        or (criteria.older_than is not None and (age is None or age < criteria.older_than))
    )


def is_named(each: DatabaseFacts, criteria: Criteria) -> bool:
    given = re.match(r"(test_)+e2e_\d{8}_\d{6}_[0-9a-f]{6}_r?\d+(_|$)", each.name) is not None
    return (
        (_token(each.name) is not None and (given or each.owner == criteria.user))
        or _is_role(each.owner)
        or any(_hits(pattern, each.name) for pattern in criteria.patterns)
    )


@settings(max_examples=400)
@given(states, criteria_)
def test_exactly_what_may_go_goes(state: ServerState, criteria: Criteria) -> None:
    plan = plan_sweep(state, criteria)
    going = {each.database.name for each in plan.candidates}
    staying = {each.database.name for each in plan.spared}
    forbidden = {each.name for each in state.databases if must_stay(each, state, criteria)}
    named = {each.name for each in state.databases if is_named(each, criteria)}
    assert going & forbidden == set()
    assert going <= named
    assert staying <= named
    if plan.refusal:
        assert going == set()
        assert plan.roles == ()
    else:
        assert going == named - forbidden
        assert staying == named & forbidden
        owned = {each.owner for each in state.databases if each.name not in going}
        live = {token for token in TOKENS if _key(token) in state.leases}
        for role in plan.roles:
            assert role not in owned
            assert role.startswith("test_e2e_")
            assert not any(token in role for token in live)
            assert criteria.force or not any(token in role for token in state.busy)


@settings(max_examples=300)
@given(states, criteria_)
def test_no_pattern_takes_too_much(state: ServerState, criteria: Criteria) -> None:
    plan = plan_sweep(state, criteria)
    assert all(each.why for each in plan.candidates)
    assert all(each.why for each in plan.spared)
    for pattern in criteria.patterns:
        hit = [
            each
            for each in plan.candidates
            if _hits(pattern, each.database.name)
            and _token(each.database.name) is None
            and _token(each.database.owner) is None
        ]
        assert len(hit) <= (criteria.limit or 100)
        if pattern == "*":
            assert plan.refusal or not any(each.name == "postgres" for each in state.databases)
