import re
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from e2e_runner.dbnames import (
    MAX_NAME,
    Made,
    attempt_name,
    belongs_to,
    database_names,
    lease_key,
    quote_identifier,
    quote_literal,
    recognise,
    token_of,
    unleased_name,
)
from e2e_runner.model import DatabaseDefinition

TOKEN = "20261121_094345_0a1b2c"  # noqa: S105 - of a run
AT = datetime(2026, 11, 21, 9, 43, 45, tzinfo=UTC).timestamp()

moments = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001 - Hypothesis wants it without a zone
    max_value=datetime(2099, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)
numbers = st.integers(min_value=0, max_value=10**6)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@st.composite
def tokens(draw: st.DrawFn) -> str:
    moment = draw(moments)
    return f"{moment:%Y%m%d_%H%M%S}_{draw(st.integers(0, 0xFFFFFF)):06x}"


@st.composite
def definitions(draw: st.DrawFn) -> list[DatabaseDefinition]:
    # Short alphabets and long words, so that equal beginnings and equal suffixes do happen.
    word = st.text("aé_😀0 ", min_size=1, max_size=70) | texts.filter(bool)
    names = draw(st.lists(word, max_size=6, unique=True))
    return [DatabaseDefinition(name=n, suffix=draw(st.none() | word | st.just(""))) for n in names]


def test_a_token_is_the_id_of_a_run_in_a_name() -> None:
    assert token_of("20261121-094345-0a1b2c") == TOKEN


@pytest.mark.parametrize("text", ["", TOKEN, "20261121-094345-0A1B2C", "20261121-094345-0a1b2c\n"])
def test_what_is_no_id_of_a_run_has_no_token(text: str) -> None:
    with pytest.raises(ValueError, match="no id of a run"):
        token_of(text)


@given(token=tokens(), number=numbers)
def test_names_that_are_made_are_recognised(token: str, number: int) -> None:
    leased, unleased = attempt_name(token, number), unleased_name(token, number)
    at = datetime.strptime(token[:15], "%Y%m%d_%H%M%S").replace(tzinfo=UTC).timestamp()
    assert recognise(leased) == Made(token=token, at=at, leased=True)
    assert recognise(unleased) == Made(token=token, at=at, leased=False)
    assert recognise(f"test_{leased}") == recognise(leased)
    assert max(len(leased), len(unleased)) <= MAX_NAME


@given(token=tokens(), number=numbers, wanted=definitions())
def test_databases_of_an_attempt_are_all_different_recognised_and_fit(
    token: str, number: int, wanted: list[DatabaseDefinition]
) -> None:
    base = attempt_name(token, number)
    names = database_names(base, wanted)
    assert list(names) == [each.name for each in wanted]
    assert len(set(names.values())) == len(wanted)
    for name in names.values():
        assert name.startswith(base)
        assert len(name.encode()) <= MAX_NAME
        assert recognise(name) == recognise(base)
        assert belongs_to(name, base)


@given(token=tokens(), one=numbers, other=numbers, suffix=texts)
def test_a_name_belongs_to_one_attempt(token: str, one: int, other: int, suffix: str) -> None:
    assume(one != other)
    name = f"test_{attempt_name(token, one)}_{suffix}"
    assert belongs_to(name, attempt_name(token, one))
    assert not belongs_to(f"test_{attempt_name(token, one)}", attempt_name(token, other))


def test_the_first_database_is_named_as_the_attempt_and_the_others_by_their_definitions() -> None:
    wanted = [
        DatabaseDefinition(name="orm"),
        DatabaseDefinition(name="ohlcv"),
        DatabaseDefinition(name="ticks", suffix="-t"),
        DatabaseDefinition(name="bars", suffix="_b"),
    ]
    assert list(database_names("base_r1", wanted).values()) == [
        *("base_r1", "base_r1_ohlcv", "base_r1_-t", "base_r1_b")
    ]
    assert database_names("base_r1", []) == {}


def test_a_long_suffix_is_cut_between_characters() -> None:
    wanted = [DatabaseDefinition(name="é" * 40 + each, suffix=None) for each in "xab"]
    _, one, other = database_names(attempt_name(TOKEN, 1), wanted).values()
    assert one != other
    assert re.fullmatch(rf"test_e2e_{TOKEN}_r1_é+_[0-9a-f]{{8}}", one)
    assert len(one.encode()) in {MAX_NAME - 1, MAX_NAME}


@pytest.mark.parametrize(
    "name",
    [
        *("", "postgres", "shop", "e2e", "shop_e2e_tests", f"xe2e_{TOKEN}_r1"),
        f"test_e2e_{TOKEN}x",
        f"test_e2e_{TOKEN}\n",
        f"test_e2e_{TOKEN.upper()}",
        "test_e2e_20261321_094345_0a1b2c_r1",  # a thirteenth month
        "test_e2e_20261121_094345_0a1b2",
        "test_e2e_２０２６1121_094345_0a1b2c",  # noqa: RUF001 - digits of another script
    ],
)
def test_names_of_others_are_not_recognised(name: str) -> None:
    assert recognise(name) is None


@pytest.mark.parametrize(
    ("name", "leased"),
    [
        (f"test_e2e_{TOKEN}_r3", True),
        (f"test_e2e_{TOKEN}_r3_ohlcv", True),
        (f"e2e_{TOKEN}_r0", True),
        (f"shop_e2e_{TOKEN}", False),
        (f"test_e2e_{TOKEN}_r3x", False),
        (f"test_e2e_{TOKEN}_r", False),
        (f"test_e2e_{TOKEN}_3", False),
    ],
)
def test_a_number_behind_an_r_says_that_there_is_a_lease(name: str, leased: bool) -> None:  # noqa: FBT001
    assert recognise(name) == Made(token=TOKEN, at=AT, leased=leased)


@given(one=tokens(), other=tokens())
def test_each_run_has_a_lock_of_its_own(one: str, other: str) -> None:
    assert -(2**63) <= lease_key(one) < 2**63
    assert (lease_key(one) == lease_key(other)) is (one == other)


@given(text=texts)
def test_a_quoted_name_ends_at_its_last_quote(text: str) -> None:
    assume(text)
    quoted = quote_identifier(text)
    assert quoted[0] == quoted[-1] == '"'
    assert '"' not in quoted[1:-1].replace('""', "")
    assert quoted[1:-1].replace('""', '"') == text


@given(text=texts)
def test_a_quoted_string_ends_at_its_last_quote(text: str) -> None:
    quoted = quote_literal(text)
    assert re.fullmatch(r"E'(?:[^'\\]|\\['\\])*'", quoted, re.DOTALL)
    assert re.sub(r"\\(.)", r"\1", quoted[2:-1], flags=re.DOTALL) == text


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_what_cannot_be_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        quote_identifier(text)


def test_a_string_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote_literal("a\0b")
