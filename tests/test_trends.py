import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from past_runs import LETTERS, PATH, past_run, verdicts

from e2e_runner.model import NetworkMode, Past, ResultRecord, Status
from e2e_runner.trends import (
    Attention,
    Change,
    Standing,
    compare,
    is_flaky,
    is_timed,
    match_example,
    pace,
    pace_of,
    spread,
    spreads,
    standings,
    totals,
    trend,
)
from e2e_runner.verdict import is_bad

LETTER_STRINGS = st.text(alphabet="".join(LETTERS), max_size=40)
PATHS = ["examples/orders.py", "examples/users.py", "examples/users_bulk.py", "other/users.sh"]


def standing(
    letters: str, *, strict: bool = False, durations: list[float] | None = None
) -> Standing:
    (found,) = standings(verdicts(letters, durations=durations), strict=strict)
    return found


def noisy(median: float, count: int, *, seed: int = 1, part: float = 0.05) -> list[float]:
    """Draw durations that vary by `part` of their median."""
    draw = random.Random(seed)  # noqa: S311 - data
    return [median * draw.gauss(1, part) for _ in range(count)]


# --- durations -----------------------------------------------------------------------------------


def test_spread_is_the_standard_deviation_of_normal_values() -> None:
    assert spread(noisy(10.0, 2000)) == pytest.approx(0.5, rel=0.1)


def test_a_lasting_change_is_no_spread() -> None:
    steady, changed = noisy(10.0, 40), [*noisy(10.0, 20), *noisy(30.0, 20)]
    assert statistics.stdev(changed) > 9
    assert spread(changed) == pytest.approx(spread(steady) or 0, abs=1.0)


def test_few_durations_tell_no_spread() -> None:
    assert spread([1.0, 2.0, 3.0]) is None
    assert spread([1.0, 1.0, 1.0, 1.0]) == 0


@pytest.mark.parametrize(
    ("before", "after", "known", "told"),
    [
        (10.0, 11.9, 0.0, False),  # a fifth less a bit
        (10.0, 12.1, 0.0, True),
        (0.1, 0.29, 0.0, False),  # much, but under 0.2 s
        (0.1, 0.31, 0.0, True),
        (12.1, 10.0, 0.0, True),
        (1.0, 1.0, 0.0, False),
        (10.0, 14.9, None, False),  # nobody knows how much it varies: half less a bit
        (10.0, 15.1, None, True),
        (0.1, 0.59, None, False),  # much, but under 0.5 s
        (0.1, 0.61, None, True),
        (15.1, 10.0, None, True),
        (1.0, 2.0, 0.1, True),
        (1.0, 2.0, 0.5, False),  # it varies that much anyway
        (0.0, 5.0, None, False),  # of nothing there is no part
    ],
)
def test_a_change_of_pace_is_told_when_it_is_no_noise(
    before: float, after: float, known: float | None, *, told: bool
) -> None:
    found = pace([before], [after], spread=known)
    assert (found is not None) is told


def test_many_durations_make_a_small_change_certain() -> None:
    assert pace([1.0], [1.5], spread=0.2) is None
    found = pace([1.0] * 30, [1.5] * 10, spread=0.2)
    assert found is not None
    assert found.change == 0.5


def test_nothing_compares_with_nothing() -> None:
    assert pace([], [1.0]) is None
    assert pace([1.0], []) is None


@pytest.mark.parametrize(("count", "factor"), [(6, 2.0), (12, 1.5), (50, 1.5), (50, 0.5)])
def test_a_step_is_a_trend(count: int, factor: float) -> None:
    recent = min(count // 3, 10)
    found = trend([*noisy(2.0, count - recent), *noisy(2.0 * factor, recent, seed=2)])
    assert found is not None
    assert found.change == pytest.approx(factor - 1, abs=0.15)


def test_a_creeping_change_is_a_trend() -> None:
    values = [each * (1 + 0.02 * n) for n, each in enumerate(noisy(2.0, 40))]
    found = trend(values)
    assert found is not None
    assert found.change > 0.2


@pytest.mark.parametrize("part", [0.02, 0.1, 0.3])
def test_noise_is_seldom_a_trend(part: float) -> None:
    told = sum(trend(noisy(2.0, 30, seed=seed, part=part)) is not None for seed in range(300))
    assert told <= 6


def test_two_speeds_in_turn_are_no_trend() -> None:
    draw = random.Random(7)  # noqa: S311 - data
    told = sum(trend([draw.choice([1.0, 3.0]) for _ in range(30)]) is not None for _ in range(300))
    assert told <= 15


def test_one_slow_run_is_no_trend() -> None:
    assert trend([*noisy(2.0, 29), 20.0]) is None


def test_few_durations_are_no_trend() -> None:
    assert trend([1.0, 1.0, 1.0, 9.0, 9.0]) is None
    assert trend([1.0, 1.0, 1.0, 1.0, 9.0, 9.0]) is not None


def test_only_one_run_to_a_good_end_gives_a_duration() -> None:
    timed = {letter for letter in LETTERS if is_timed(verdicts(letter)[0])}
    assert timed == {"p", "s", "!"}
    (passed,) = verdicts("p")
    assert not is_timed(replace(passed, repeats=10))
    assert not is_timed(replace(passed, duration=0.0))


def test_spreads_are_told_by_path() -> None:
    orders = verdicts("ppppp", durations=[1.0, 1.1, 0.9, 1.2, 1.0])
    users = verdicts("pppff", path="users.py", durations=[1.0, 2.0, 3.0, 4.0, 5.0])
    found = spreads([*reversed(orders), *users])
    assert found == {PATH: spread([1.0, 1.1, 0.9, 1.2, 1.0])}


# --- one example over many runs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "flaky"),
    [
        ("pppp", False),
        ("ffff", False),
        ("pppf", False),
        ("fffp", False),
        ("ppffpp", False),  # broken and mended
        ("ppfppf", True),
        ("fpfp", True),
        ("pp~p", True),
        ("tbtb", False),  # not ok in several ways
        ("ps!p", False),
        ("", False),
    ],
)
def test_flaky(letters: str, *, flaky: bool) -> None:
    assert is_flaky(verdicts(letters), strict=False) is flaky


def test_leaks_count_as_not_ok_where_strict() -> None:
    assert is_flaky(verdicts("p!p!"), strict=True)
    assert standing("pp!", strict=True).attention is Attention.FAILING
    assert standing("pp!").attention is Attention.NONE


def test_repeats_that_pass_in_part_are_flaky() -> None:
    (failed,) = verdicts("f")
    assert is_flaky([replace(failed, repeats=10, repeats_passed=9)], strict=False)
    assert not is_flaky([replace(failed, repeats=10, repeats_passed=0)], strict=False)
    assert not is_flaky([replace(failed, repeats=10, repeats_passed=10)], strict=False)


def test_a_standing_sums_up() -> None:
    found = standing("ppfp-tn")
    assert [each.status.value for each in found.verdicts] == [
        *("passed", "passed", "failed", "passed", "timeout"),
    ]
    assert (found.bad, found.failure_rate, found.streak) == (2, 0.4, 1)
    assert found.flaky
    assert found.last.status is Status.TIMEOUT
    assert found.since is found.last
    assert found.attention is Attention.FAILING
    assert found.duration == 1.0


def test_a_streak_counts_one_verdict_alone() -> None:
    found = standing("pfftt")
    assert found.streak == 2
    assert found.since.run == verdicts("pfft")[3].run
    assert standing("~ps").streak == 2


def test_only_the_last_verdicts_count() -> None:
    (found,) = standings(verdicts("fffff" + "p" * 5 + "-----"), strict=False, window=5)
    assert found.bad == 0
    assert len(found.verdicts) == 5


def test_what_needs_attention_comes_first() -> None:
    slow = [1.0] * 8 + [2.0] * 4
    slower = [1.0] * 8 + [3.0] * 4
    results = [
        *verdicts("pppp", path="steady.py"),
        *verdicts("p" * 12, path="slow.py", durations=slow),
        *verdicts("p" * 12, path="slower.py", durations=slower),
        *verdicts("pfpfpp", path="flaky.py"),
        *verdicts("pfpfpfp", path="more_flaky.py"),
        *verdicts("pppf", path="fails.py"),
        *verdicts("pfff", path="fails_long.py"),
        *verdicts("---n", path="never.py"),
        *verdicts("p" * 12, path="faster.py", durations=slow[::-1]),
    ]
    found = standings(reversed(results), strict=False)
    assert [each.path for each in found] == [
        *("fails_long.py", "fails.py", "more_flaky.py", "flaky.py", "slower.py", "slow.py"),
        *("faster.py", "steady.py"),
    ]
    assert [each.attention.value for each in found] == [
        *("failing", "failing", "flaky", "flaky", "slower", "slower", "none", "none"),
    ]


def test_the_duration_is_that_of_nowadays() -> None:
    found = standing("p" * 12, durations=[1.0] * 8 + [2.0] * 4)
    assert found.duration == 2.0
    assert found.trend is not None
    assert found.trend.before == 1.0


def test_failures_do_not_tell_how_long_it_takes() -> None:
    found = standing("pfpf", durations=[1.0, 60.0, 1.2, 60.0])
    assert found.duration == 1.1
    assert standing("ff").duration is None


def test_what_was_learned_of_the_network_is_told() -> None:
    past = {PATH: Past(network=NetworkMode.HOST)}
    (found,) = standings(verdicts("pp"), strict=False, past=past)
    assert found.network is NetworkMode.HOST
    assert standing("pp").network is None


@given(LETTER_STRINGS, st.booleans(), st.integers(1, 20))
def test_a_standing_agrees_with_its_verdicts(letters: str, strict: bool, window: int) -> None:  # noqa: FBT001 - drawn
    found = standings(verdicts(letters), strict=strict, window=window)
    judged = [LETTERS[letter] for letter in letters if letter not in "-n"][-window:]
    assert bool(found) is bool(judged)
    for each in found:
        assert [verdict.status for verdict in each.verdicts] == judged
        assert each.bad == sum(is_bad(status, strict=strict) for status in judged)
        assert 1 <= each.streak <= len(judged)
        told = [Status.PASSED if status is Status.SERVED else status for status in judged]
        assert {*told[-each.streak :]} == {told[-1]}
        assert each.streak == len(told) or told[-each.streak - 1] is not told[-1]
        assert each.attention is not Attention.NONE or each.bad == 0
        assert 0 <= each.failure_rate <= 1


# --- the example that is meant -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("examples/users.py", ["examples/users.py"]),
        ("./examples/users.py", ["examples/users.py"]),
        ("users.py", ["examples/users.py"]),
        ("users", ["examples/users.py", "other/users.sh"]),
        ("examples/users", ["examples/users.py"]),
        ("bulk", ["examples/users_bulk.py"]),
        ("ORDERS", ["examples/orders.py"]),
        ("other/", ["other/users.sh"]),
        ("examples", ["examples/orders.py", "examples/users.py", "examples/users_bulk.py"]),
        ("sers.py", ["examples/users.py"]),
    ],
)
def test_an_example_is_found_by_part_of_its_path(words: str, expected: list[str]) -> None:
    assert list(match_example(words, PATHS).paths) == expected


def test_what_reads_alike_is_suggested() -> None:
    found = match_example("ordres.py", PATHS)
    assert found.paths == ()
    assert found.alike == ("examples/orders.py",)
    assert match_example("", PATHS).paths == ()
    assert match_example("zzz", PATHS).alike == ()


@given(st.lists(st.text(max_size=12), max_size=8), st.data())
def test_a_whole_path_is_always_the_one_that_is_meant(
    paths: list[str], data: st.DataObject
) -> None:
    known = [path for path in paths if path.strip("/")]
    if known:
        wanted = data.draw(st.sampled_from(known))
        assert match_example(wanted, known).paths == (wanted,)


# --- one run against another ---------------------------------------------------------------------


def change(
    before: str | None, after: str | None, *, took: tuple[float, float] = (1, 1)
) -> list[str]:
    """Name the lists of a comparison that an example with these verdicts is in."""
    first = verdicts(before, durations=[took[0]]) if before else []
    second = verdicts(after, durations=[took[1]]) if after else []
    found = compare(past_run(0, first), past_run(1, second), strict=False)
    names = (
        *("newly_failing", "fixed", "still_failing", "newly_flaky", "newly_leaked"),
        *("slower", "faster", "added", "removed", "without_verdict"),
    )
    return [name for name in names if getattr(found, name)]


@pytest.mark.parametrize(
    ("before", "after", "lists"),
    [
        ("p", "p", []),
        ("p", "f", ["newly_failing"]),
        ("~", "t", ["newly_failing"]),
        ("-", "b", ["newly_failing"]),
        ("n", "f", ["newly_failing"]),
        (None, "f", ["newly_failing", "added"]),
        (None, "p", ["added"]),
        ("f", "s", ["fixed"]),
        ("f", "t", ["still_failing"]),
        ("f", "~", ["newly_flaky"]),
        ("p", "~", ["newly_flaky"]),
        ("~", "~", []),
        ("~", "p", []),
        ("p", "!", ["newly_leaked"]),
        (None, "!", ["newly_leaked", "added"]),
        ("f", "!", ["newly_leaked"]),
        ("!", "p", []),
        ("f", None, ["removed"]),
        ("f", "-", ["without_verdict"]),
        ("p", "n", ["without_verdict"]),
        ("-", "n", []),
        ("-", "p", []),
    ],
)
def test_changes(before: str | None, after: str | None, lists: list[str]) -> None:
    assert change(before, after) == lists


def test_changes_of_pace() -> None:
    assert change("p", "p", took=(1.0, 2.0)) == ["slower"]
    assert change("p", "!", took=(2.0, 1.0)) == ["newly_leaked", "faster"]
    assert change("p", "f", took=(1.0, 2.0)) == ["newly_failing"]
    assert change("p", "~", took=(1.0, 2.0)) == ["newly_flaky"]  # two runs of it in one


def test_a_change_of_pace_is_more_than_it_varies() -> None:
    before, after = verdicts("pp", durations=[1.0, 2.0])
    changed = Change(path=PATH, before=before, after=after)
    assert pace_of(changed) is not None
    assert pace_of(changed, {PATH: 0.1}) is not None
    assert pace_of(changed, {PATH: 1.0}) is None
    assert pace_of(changed, {"other.py": 1.0}) is not None


def test_strict_counts_leaks_as_failures() -> None:
    found = compare(past_run(0, verdicts("p")), past_run(1, verdicts("!")), strict=True)
    assert len(found.newly_failing) == 1
    assert found.newly_leaked == ()
    assert found.totals_after.pass_rate == 0


def test_the_slowest_comes_first() -> None:
    first: list[ResultRecord] = []
    second: list[ResultRecord] = []
    for name, took in (("a.py", 2.0), ("b.py", 5.0), ("c.py", 3.0)):
        first += verdicts("p", path=name)
        second += verdicts("p", path=name, durations=[took])
    found = compare(past_run(0, first), past_run(1, second), strict=False)
    assert [each.path for each in found.slower] == ["b.py", "c.py", "a.py"]


def test_totals_count_verdicts() -> None:
    found = totals(verdicts("ppf-n!"), strict=False)
    assert found.counts == {
        Status.PASSED: 2,
        Status.LEAKED: 1,
        Status.FAILED: 1,
        Status.SKIPPED: 1,
        Status.NOT_RUN: 1,
    }
    assert (found.verdicts, found.ok, found.pass_rate) == (4, 3, 0.75)
    assert totals(verdicts("-n"), strict=False).pass_rate is None


@given(st.lists(st.sampled_from([*LETTERS, None]), min_size=2, max_size=2), st.booleans())
def test_verdicts_change_in_one_way_at_most(pair: list[str | None], strict: bool) -> None:  # noqa: FBT001 - drawn
    before, after = (verdicts(letter) if letter else [] for letter in pair)
    found = compare(past_run(0, before), past_run(1, after), strict=strict)
    kinds = (
        *(found.newly_failing, found.fixed, found.still_failing),
        *(found.newly_flaky, found.newly_leaked, found.without_verdict),
    )
    assert sum(map(len, kinds)) <= 1
    back = compare(past_run(0, after), past_run(1, before), strict=strict)
    assert len(found.still_failing) == len(back.still_failing)
    assert len(found.added) == len(back.removed)
