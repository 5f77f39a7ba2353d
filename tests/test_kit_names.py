import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.dbnames import (
    attempt_name,
    belongs_to,
    is_given,
    lease_key,
    recognise,
    run_of_role,
    tokens_of,
    unleased_name,
)
from e2e_runner.kit import names, unique_name
from e2e_runner.model import DatabaseFacts, ServerState
from e2e_runner.sweep_plan import Candidate, Criteria, Spared, judge

SHAPE = re.compile(r"[a-z_][a-z0-9_]*_e2e_\d{8}_\d{6}_[0-9a-f]{6}_[a-f][0-9a-f]{5}", re.ASCII)
MOMENT = datetime(2026, 11, 21, 9, 43, 45, tzinfo=UTC).timestamp()
RUN = "20261121_094345_0a1b2c"

prefixes = st.text() | st.from_regex(
    re.compile(r"(test_)?e2e_\d{8}_\d{6}(_[0-9a-f]{4,6}(_r?\d)?)?_?", re.ASCII), fullmatch=True
)


class Clock:
    """Nanoseconds since the epoch, which a test sets."""

    def __init__(self) -> None:
        self.now = int(MOMENT) * 10**9

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(names, "_now", clock)
    monkeypatch.setattr(names, "_ticks", names._Ticks())
    return clock


def test_it_says_when_it_was_made(clock: Clock) -> None:
    assert re.fullmatch(
        r"signup_e2e_20261121_094345_000000_[a-f][0-9a-f]{5}", unique_name("signup")
    )
    clock.now += 999_999_999
    assert unique_name("signup").startswith("signup_e2e_20261121_094345_ffffff_")
    clock.now += 1
    assert unique_name("signup").startswith("signup_e2e_20261121_094346_000000_")
    assert unique_name().startswith("test_e2e_")


@given(prefix=prefixes)
def test_any_prefix_makes_a_name_that_is_recognised_or_an_error(prefix: str) -> None:
    before = time.time()
    try:
        name = unique_name(prefix)
    except ValueError as error:
        assert not re.search("[a-z0-9]", prefix.lower())
        assert "at least one ASCII letter or digit" in str(error)  # noqa: PT017 - both are right
        return
    assert SHAPE.fullmatch(name)
    assert len(name) <= 63
    made = recognise(name)
    assert made is not None
    assert not made.leased
    assert before - 1 <= made.at <= time.time()
    assert not is_given(name)
    assert run_of_role(name) is None
    assert tokens_of([name]) == {made.token}
    assert not belongs_to(name, attempt_name(RUN, 3))
    assert not belongs_to(name, unleased_name(RUN, 3))


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("signup", "signup"),
        ("Sign Up!", "sign_up"),
        ("alice@example.com", "alice_example_com"),
        ("2fa", "_2fa"),
        ("_private", "_private"),
        ("trailing___", "trailing"),
        ("Zürich", "z_rich"),
        ("x" * 29, "x" * 29),
        ("x" * 500, "x" * 29),
        ("é" * 200 + "a", "_a"),
        (attempt_name(RUN, 3), "test_e2e20261121_094345_0a1b2"),
    ],
)
def test_a_prefix_is_made_an_identifier(prefix: str, expected: str) -> None:
    assert unique_name(prefix).partition("_e2e_")[0] == expected


@pytest.mark.parametrize("prefix", ["", " ", "___", "é", "😀", "-_-"])
def test_a_prefix_without_a_letter_or_digit_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"unique_name({prefix!r}): a prefix holds")):
        unique_name(prefix)


def test_names_of_one_moment_sort_by_when_they_were_made(clock: Clock) -> None:
    made = [unique_name() for _ in range(5000)]
    clock.now -= 30 * 10**9  # the clock is set back
    made += [unique_name() for _ in range(1000)]
    clock.now += 31 * 10**9
    made += [unique_name() for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_names_of_many_threads_differ_and_sort() -> None:
    threads, each = 8, 500
    ready = threading.Barrier(threads)

    def make(_: int) -> list[str]:
        ready.wait(timeout=60)
        return [unique_name() for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(make, range(threads)))
    assert all(some == sorted(some) for some in made)
    stamps = {name.rpartition("_")[0] for some in made for name in some}
    assert len(stamps) == threads * each


# Run as programs of their own: to fork a process with threads, as that of the tests, is not safe.
POOL = """
import multiprocessing
from e2e_runner.kit import unique_name

def make(count):
    return [unique_name() for _ in range(count)]

if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        some, others = pool.map(make, [2000, 2000], chunksize=1)
    print(len({{*some, *others, *make(2000)}}))
"""
FORK = """
import os
from e2e_runner.kit import names, unique_name
with names._ticks._lock:  # as another thread has it, at the moment of the fork
    pid = os.fork()
    if pid == 0:
        os._exit(0 if unique_name() else 2)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def output(text: str, file: Path) -> str:
    file.write_text(text)
    argv = [sys.executable, str(file)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_names_of_processes_differ(method: str, tmp_path: Path) -> None:
    assert output(POOL.format(method=method), tmp_path / "pool.py") == "6000\n"


def test_a_child_is_not_held_up_by_a_lock_that_another_thread_had(tmp_path: Path) -> None:
    assert output(FORK, tmp_path / "fork.py") == "0\n"


# --- what a sweep makes of them ------------------------------------------------------------------


def facts(name: str, *, age: float | None) -> DatabaseFacts:
    return DatabaseFacts(oid=1, name=name, owner="maria", age=age)


def state(each: DatabaseFacts, now: float) -> ServerState:
    return ServerState(databases=(each,), leases=frozenset({lease_key(RUN)}), roles=(), now=now)


@pytest.mark.parametrize("prefix", ["test", "shop", "2fa"])
@pytest.mark.parametrize("known", [True, False])
def test_a_sweep_spares_one_of_now_and_takes_one_of_yesterday(prefix: str, *, known: bool) -> None:
    name = unique_name(prefix)
    criteria = Criteria(user="maria")
    young = facts(name, age=5.0 if known else None)
    old = facts(name, age=25 * 3600.0 if known else None)
    now = time.time()
    spared = judge(young, state(young, now), criteria)
    assert isinstance(spared, Spared)
    assert "made by a run without a lease, which may be alive" in spared.why
    taken = judge(old, state(old, now + 25 * 3600), criteria)
    assert isinstance(taken, Candidate)
    assert taken.why == "made by a run without a lease, long ago"
    used = replace(old, sessions=1)
    assert isinstance(judge(used, state(used, now + 25 * 3600), criteria), Spared)
    # What somebody else made may be a copy on purpose.
    assert judge(old, state(old, now + 25 * 3600), Criteria(user="postgres")) is None


@pytest.mark.parametrize("prefix", [5, None, b"order", ["order"]])
def test_a_prefix_is_a_text(prefix: Any) -> None:
    said = f'unique_name({prefix!r}): a prefix is a text, as in "order"'
    with pytest.raises(TypeError, match=f"^{re.escape(said)}$"):
        unique_name(prefix)
