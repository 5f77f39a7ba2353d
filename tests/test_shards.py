import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.model import CutBy, Shard, ShardCut
from e2e_runner.shards import basis, cut, describe, partition

PATHS = st.text(string.ascii_lowercase + "/é\udc80", min_size=1, max_size=6)
SECONDS = st.one_of(st.none(), st.floats(min_value=0, max_value=1e6))
SUITES = st.dictionaries(PATHS, SECONDS, max_size=40)
COUNTS = st.integers(min_value=1, max_value=12)


@given(SUITES, COUNTS)
def test_every_example_is_in_exactly_one_part_and_in_the_given_order(
    suite: dict[str, float | None], count: int
) -> None:
    parts = partition(suite, count)
    assert len(parts) == count
    assert sorted(path for part in parts for path in part) == sorted(suite)
    order = list(suite)
    assert all(list(part) == sorted(part, key=order.index) for part in parts)


@given(SUITES, COUNTS, st.randoms())
def test_the_parts_do_not_depend_on_the_order_of_the_suite(
    suite: dict[str, float | None], count: int, random: object
) -> None:
    shuffled = list(suite.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ours, theirs = partition(suite, count), partition(dict(shuffled), count)
    assert list(map(set, ours)) == list(map(set, theirs))
    assert basis(suite) == basis(dict(shuffled))


@given(SUITES, COUNTS)
def test_no_part_is_empty_while_there_are_examples_enough(
    suite: dict[str, float | None], count: int
) -> None:
    sizes = [len(part) for part in partition(suite, count)]
    assert sum(size > 0 for size in sizes) == min(count, len(suite))


@given(st.sets(PATHS, max_size=40), COUNTS)
def test_without_durations_the_parts_are_of_equal_count(paths: set[str], count: int) -> None:
    sizes = [len(part) for part in partition(dict.fromkeys(paths), count)]
    assert max(sizes) - min(sizes) <= 1


@given(st.dictionaries(PATHS, st.integers(0, 1000), min_size=1, max_size=40), COUNTS)
def test_the_longest_part_is_within_the_bound_of_longest_first(
    suite: dict[str, int], count: int
) -> None:
    parts = partition({path: float(each) for path, each in suite.items()}, count)
    longest = max(sum(suite[path] for path in part) for part in parts)
    # Graham's bound for any list schedule, and the one for equal work in what is left over.
    rest = sum(suite.values()) - max(suite.values())
    assert longest <= max(suite.values()) + rest / count


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_skewed_suite_is_cut_within_a_tenth_of_the_best(count: int) -> None:
    suite: dict[str, float | None] = {f"{n}.py": 60 / (n + 1) for n in range(60)}
    durations = {path: each for path, each in suite.items() if each is not None}
    loads = [sum(durations[path] for path in part) for part in partition(suite, count)]
    best = max(*durations.values(), sum(durations.values()) / count)
    assert max(loads) <= 1.1 * best


def test_what_is_not_known_counts_as_the_median() -> None:
    assert partition({"a": 9.0, "b": 3.0, "c": 3.0, "d": None}, 2) == (("a",), ("b", "c", "d"))


def test_the_basis_changes_with_any_fact() -> None:
    facts: list[dict[str, float | None]] = [
        {"a": 1.0, "b": 2.0},
        {"a": 1.0, "b": None},
        {"a": 1.0},
        {"a": 1.0, "c": 2.0},
        {"a": 2.0, "b": 1.0},
        {"a': 1.0\n'b": 2.0},
        {"\udc80": 1.0},
        {"\udc81": 1.0},
    ]
    assert len({basis(each) for each in facts}) == len(facts)


@pytest.mark.parametrize(
    ("durations", "words"),
    [
        ({"a": 1.0, "b": 2.0}, "shard 1/2: 1 of 2 examples, balanced by t.json (basis {})"),
        (
            {"a": 1.0, "b": None},
            "shard 1/2: 1 of 2 examples, balanced by t.json (basis {}), 1 not in it",
        ),
        ({"a": None, "b": None}, "shard 1/2: 1 of 2 examples, of equal count (basis {})"),
        ({"a": 0.0}, "shard 1/2: 1 of 1 example, balanced by t.json (basis {})"),
    ],
)
def test_a_shard_says_by_what_it_was_cut(durations: dict[str, float | None], words: str) -> None:
    made = cut(Shard(index=1, count=2), durations, by=CutBy.TIMINGS)
    assert describe(made, 1, durations, source="t.json") == words.format(basis(durations))


def test_a_shard_says_why_it_is_not_balanced() -> None:
    shard = Shard(index=1, count=2)
    unknown: dict[str, float | None] = {"a": None, "b": None}
    made = cut(shard, unknown, by=CutBy.COUNT)
    assert describe(made, 1, unknown, source="the history", why="so it is") == (
        f"shard 1/2: 1 of 2 examples, of equal count (basis {made.basis}): so it is"
    )
    known: dict[str, float | None] = {"a": 1.0, "b": None}
    balanced = describe(cut(shard, known, by=CutBy.TIMINGS), 1, known, source="t.json", why="no")
    assert balanced.endswith(", 1 not in it")


@given(SUITES, COUNTS, st.sampled_from([CutBy.TIMINGS, CutBy.HISTORY]))
def test_shards_of_one_cut_have_its_count_and_basis_in_common(
    suite: dict[str, float | None], count: int, by: CutBy
) -> None:
    made = [cut(Shard(index=n, count=count), suite, by=by) for n in range(1, count + 1)]
    known = any(each is not None for each in suite.values())
    assert made == [
        ShardCut(index=n, count=count, basis=basis(suite), by=by if known else CutBy.COUNT)
        for n in range(1, count + 1)
    ]
    assert list(map(str, made)) == [f"{n}/{count}" for n in range(1, count + 1)]


@given(SUITES, COUNTS, st.randoms(), st.dictionaries(PATHS, SECONDS, max_size=1))
def test_shards_with_the_same_count_and_basis_fit_together(
    ours: dict[str, float | None], count: int, random: object, other: dict[str, float | None]
) -> None:
    shuffled = [*(ours | other).items()]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    theirs = dict(shuffled)
    same = basis(ours) == basis(theirs)
    assert same == (ours == theirs)
    if same:
        mixed = [
            path for n in range(count) for path in partition(ours if n % 2 else theirs, count)[n]
        ]
        assert sorted(mixed) == sorted(ours)
