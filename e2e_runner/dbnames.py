"""The names of the databases and roles that e2e-run makes, and how they are known again. Pure.

A name that e2e-run made holds a token: ``e2e_`` and the id of the run that made it. A number behind an
``r`` says that the run holds a lease on the server for as long as it lives; without one, only its
age and its sessions tell whether it is still in use::

    test_e2e_20261121_094345_0a1b2c_r3_ohlcv     third attempt of a run that holds a lease
    test_e2e_20261121_094345_0a1b2c_3            third attempt of a run that could not hold one
    shop_e2e_20261121_094345_0a1b2c              made without one
    shop_e2e_20261121_094345_0a1b2c_c41a07       made by a script, see `e2e_runner.kit.unique_name`
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from e2e_runner.model import DatabaseDefinition

MAX_NAME = 63  # bytes of an identifier that PostgreSQL keeps (NAMEDATALEN - 1)

KEPT = "kept by e2e-run --keep-databases"  # the comment on databases and roles kept on purpose

_RUN_ID = re.compile(r"(\d{8})-(\d{6})-([0-9a-f]{6})", re.ASCII)
_MADE = re.compile(
    r"(?:^|_)e2e_(?P<token>(?P<date>\d{8})_(?P<time>\d{6})_[0-9a-f]{6})"
    r"(?:_r(?P<attempt>\d+))?(?=_|\Z)",
    re.ASCII,
)
# What a run names itself, and what a script derives from that as Django does.
_GIVEN = re.compile(r"(?:test_)+e2e_\d{8}_\d{6}_[0-9a-f]{6}_r?\d+(?:_.*)?", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a name says of its origin."""

    token: str  # of the run: 20261121_094345_0a1b2c
    at: float  # seconds since the epoch, by the clock of the machine that made it
    leased: bool  # a run that holds a lease as long as it lives


def token_of(run_id: str) -> str:
    """Give the token of a run, by which its names and its lease are known.

    >>> token_of("20261121-094345-0a1b2c")
    '20261121_094345_0a1b2c'
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is no id of a run")
    return run_id.replace("-", "_")


def attempt_name(token: str, number: int) -> str:
    """Name what attempt `number` of a run with a lease is given: its role and its first database.

    >>> attempt_name("20261121_094345_0a1b2c", 3)
    'test_e2e_20261121_094345_0a1b2c_r3'
    """
    return f"test_e2e_{token}_r{number}"


def unleased_name(token: str, number: int) -> str:
    """Name what attempt `number` is given where no lease can be held, as through a pooler.

    >>> unleased_name("20261121_094345_0a1b2c", 3)
    'test_e2e_20261121_094345_0a1b2c_3'
    """
    return f"test_e2e_{token}_{number}"


def database_names(base: str, definitions: Sequence[DatabaseDefinition]) -> dict[str, str]:
    """Name the databases of one attempt: by definition, all different, each `base` and a suffix.

    A suffix is kept apart from `base` by an underscore, so that `recognise` still knows the name,
    and one that does not fit into 63 bytes is cut short. `base` is ASCII, and leaves room.

    >>> orm, ohlcv = DatabaseDefinition(name="orm"), DatabaseDefinition(name="ohlcv")
    >>> database_names("test_e2e_1", [orm, ohlcv])
    {'orm': 'test_e2e_1', 'ohlcv': 'test_e2e_1_ohlcv'}
    """
    names: dict[str, str] = {}
    for index, definition in enumerate(definitions):
        suffix = definition.suffix
        if suffix is None:
            suffix = f"_{definition.name}" if index else ""
        elif suffix and not suffix.startswith("_"):
            suffix = f"_{suffix}"
        name = base + suffix
        if len(name.encode()) > MAX_NAME or name in names.values():
            # Two that begin alike, or are equal, differ in what the definitions are called.
            told_apart = hashlib.sha256(f"{suffix} {definition.name}".encode()).hexdigest()[:8]
            room = MAX_NAME - len(base) - len(told_apart) - 1
            cut = suffix.encode()[:room].decode(errors="ignore")
            name = f"{base}{cut}_{told_apart}"
        names[definition.name] = name
    return names


def belongs_to(name: str, base: str) -> bool:
    """Tell whether a name was derived from that of an attempt, as Django's ``test_NAME`` is.

    >>> belongs_to("test_test_e2e_1_r3", "test_e2e_1_r3"), belongs_to("test_e2e_1_r34", "test_e2e_1_r3")
    (True, False)
    """
    return re.search(rf"{re.escape(base)}(?![0-9])", name) is not None


def lease_key(token: str) -> int:
    """Give the key of the advisory lock that a live run holds: a signed integer of 64 bits."""
    digest = hashlib.sha256(f"e2e-run lease {token}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def recognise(name: str) -> Made | None:
    """Tell what a name says of its origin; None for a name that e2e-run does not make.

    >>> recognise("test_e2e_20261121_094345_0a1b2c_r3_ohlcv").leased
    True
    >>> recognise("shop_e2e_tests") is None
    True
    """
    found = _MADE.search(name)
    if found is None:
        return None
    try:
        at = datetime.strptime(found["date"] + found["time"], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:  # digits that are no date
        return None
    return Made(token=found["token"], at=at.timestamp(), leased=found["attempt"] is not None)


def is_given(name: str) -> bool:
    """Tell whether a run gives such names, from the first character on; of others it is a guess.

    >>> is_given("test_test_e2e_20261121_094345_0a1b2c_r3_ohlcv")
    True
    >>> is_given("shop_e2e_20261121_094345_0a1b2c_r3")
    False
    """
    return recognise(name) is not None and _GIVEN.fullmatch(name) is not None


def run_of_role(name: str) -> Made | None:
    """Tell which run that holds a lease made a role; None for the role of anybody else."""
    made = recognise(name)
    return made if made is not None and made.leased and is_given(name) else None


def tokens_of(names: Iterable[str]) -> frozenset[str]:
    """Give the tokens of the runs of which names speak."""
    return frozenset(made.token for name in names if (made := recognise(name)) is not None)


def quote_identifier(name: str) -> str:
    """Quote an identifier for SQL.

    >>> quote_identifier('a"b')
    '"a""b"'
    """
    if "\0" in name or not name:
        raise ValueError(f"{name!r} cannot be an identifier")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Quote a string for SQL, for the statements that take no parameters; as an escape string."""
    if "\0" in text:
        raise ValueError("PostgreSQL's strings hold no NUL character")
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
