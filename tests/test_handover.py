"""What a run hands to a script."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.handover import (
    UNNAMED,
    Handover,
    Prepared,
    choose,
    decode,
    encode,
    prepare,
    with_taken,
)
from e2e_runner.model import DatabaseDefinition, ServerAddress

ORM = DatabaseDefinition(name="orm", env=("DB_NAME",), template=(Path("/p/orm.sql"),))
OHLCV = DatabaseDefinition(name="ohlcv", suffix="_ohlcv", command=("sh", "fill.sh"))
AUDIT = DatabaseDefinition(name="audit")
BASE = "test_e2e_20261121_094345_0a1b2c_r3"

texts = st.text(max_size=20)
definitions = st.builds(
    DatabaseDefinition,
    name=texts,
    env=st.lists(texts, max_size=3).map(tuple),
    suffix=st.none() | texts,
    template=st.lists(texts.map(Path), max_size=3).map(tuple),
    command=st.lists(texts, max_size=3).map(tuple),
)
handovers = st.builds(
    Handover,
    base=texts,
    address=st.builds(
        ServerAddress,
        host=texts,
        port=st.integers(1, 65535),
        user=texts,
        password=st.none() | texts,
        database=texts,
        options=st.dictionaries(texts, texts, max_size=3),
    ),
    prepared=st.lists(
        st.builds(
            Prepared,
            definition=definitions,
            database=st.none() | texts,
            taken=st.booleans(),
            template=st.none() | texts,
        ),
        max_size=3,
    ).map(tuple),
    env=st.dictionaries(texts, texts, max_size=3),
    root=texts.map(Path),
    python=texts,
    psql=st.none() | texts.map(Path),
)


def handed(*prepared: Prepared) -> Handover:
    return Handover(
        base=BASE,
        address=ServerAddress(host="h", port=1, user="u", password=None, database=BASE),
        prepared=prepared,
        root=Path("/p"),
        python="python",
    )


@given(handovers)
def test_what_is_written_is_read(value: Handover) -> None:
    text = encode(value)
    assert decode(text) == value
    assert text.isascii()


@given(handovers, st.data())
def test_a_text_that_is_cut_or_lacks_something_is_a_value_error(
    value: Handover, data: st.DataObject
) -> None:
    text = encode(value)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    shape = json.loads(text)
    del shape[data.draw(st.sampled_from(sorted(shape)))]
    for wrong in (cut, json.dumps(shape)):
        with pytest.raises(ValueError, match="not what a run writes"):
            decode(wrong)


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "null", "[]", "1", "{}", '{"server": 1}', "[" * 100_000, '{"base": {}}'],
)
def test_nonsense_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not what a run writes"):
        decode(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | texts, st.lists, max_leaves=5))
def test_any_value_in_any_place_is_read_or_a_value_error(odd: object) -> None:
    shape = json.loads(encode(handed(Prepared(definition=ORM, database=BASE))))
    for key in shape:
        text = json.dumps(shape | {key: odd})
        try:
            decode(text)
        except ValueError as error:
            assert str(error) == "it is not what a run writes there"  # noqa: PT017 - it may be read


def test_what_was_given_comes_first_then_what_else_is_defined() -> None:
    prepared = prepare(
        [OHLCV], [ORM, OHLCV, AUDIT], names={"ohlcv": "x"}, templates={"ohlcv": "t"}, base=BASE
    )
    assert prepared == (
        Prepared(definition=OHLCV, database="x", template="t"),
        Prepared(definition=ORM),
        Prepared(definition=AUDIT),
    )
    assert handed(*prepared).given == ("ohlcv",)


def test_a_definition_of_the_example_hides_that_of_the_configuration() -> None:
    own = DatabaseDefinition(name="orm", command=("true",))
    [prepared] = prepare([own], [ORM], names={"orm": BASE}, templates={}, base=BASE)
    assert prepared.definition == own


def test_an_attempt_without_definitions_has_one_without_a_name() -> None:
    [prepared] = prepare([], [], names={}, templates={}, base=BASE)
    assert prepared == Prepared(definition=DatabaseDefinition(name=UNNAMED), database=BASE)
    assert choose(handed(prepared), []) == (prepared,)


def test_a_name_without_a_definition_takes_the_unnamed_one_once() -> None:
    [unnamed] = prepare([], [], names={}, templates={}, base=BASE)
    first, second = choose(handed(unnamed), ["a", "b"])
    assert (first.definition.name, first.database) == ("a", BASE)
    assert (second.definition.name, second.database) == ("b", None)
    [later] = choose(with_taken(handed(unnamed), [BASE]), ["c"])
    assert later.database is None


def test_what_is_taken_stays_taken() -> None:
    orm = Prepared(definition=ORM, database="one")
    ohlcv = Prepared(definition=OHLCV, database="two")
    taken = with_taken(with_taken(handed(orm, ohlcv), ["one"]), ["two"])
    assert [each.taken for each in taken.prepared] == [True, True]
    assert [each.taken for each in with_taken(handed(orm, ohlcv), ["two"]).prepared] == [
        False,
        True,
    ]
    assert taken.given == ("orm", "ohlcv")  # a block without names still means these


def test_the_password_is_not_in_the_representation() -> None:
    secret = ServerAddress(host="h", port=1, user="u", password="hidden", database="d")  # noqa: S106 - of nobody
    value = Handover(base=BASE, address=secret, root=Path("/p"), python="python")
    assert "hidden" not in repr(value)
    assert "hidden" in encode(value)
