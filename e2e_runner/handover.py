"""What a run hands to a script, besides the usual variables, so that it can have databases of its own. Pure.

It stands as JSON in ``E2E_RUN_DATABASES``, for `e2e_runner.kit` to read. It holds a password, as
``DATABASE_URL`` does. Where its companions are stands in ``E2E_RUN_COMPANIONS``.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from e2e_runner.model import (
    DatabaseDefinition,
    HttpProbe,
    LogProbe,
    Probe,
    ServerAddress,
    TcpProbe,
)

VARIABLE = "E2E_RUN_DATABASES"
COMPANIONS = "E2E_RUN_COMPANIONS"
UNNAMED = ""  # the name of the database that an attempt without definitions is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A definition, and what there is of it already."""

    definition: DatabaseDefinition
    database: str | None = (
        None  # made for this attempt; None: the script asks for it, if it wants it
    )
    taken: bool = False  # a block has used that database: it is not fresh any more
    template: str | None = None  # a filled database that the script's user may clone


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What one attempt has, and what more of it is made from."""

    base: str  # what the names of all its databases begin with
    address: ServerAddress  # as whom it logs in, and its first database
    prepared: tuple[Prepared, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)  # as `PostgresSettings.env`
    root: Path  # of the project
    python: str  # the interpreter of the examples
    psql: Path | None = None  # the server's own

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the databases that were made for the attempt."""
        return tuple(each.definition.name for each in self.prepared if each.database is not None)


def prepare(
    given: Iterable[DatabaseDefinition],
    defined: Iterable[DatabaseDefinition],
    *,
    names: Mapping[str, str],
    templates: Mapping[str, str],
    base: str,
) -> tuple[Prepared, ...]:
    """List the definitions of an attempt: those that it was `given`, then what else is `defined`.

    `names` are those of its databases and `templates` those of what they were cloned from, both by
    definition. Without definitions it was given `base`.
    """
    own = tuple(given) or (DatabaseDefinition(name=UNNAMED),)
    known = {each.name: each for each in (*defined, *own)}
    order = dict.fromkeys([*(each.name for each in own), *known])
    databases = names or {UNNAMED: base}
    return tuple(
        Prepared(definition=known[name], database=databases.get(name), template=templates.get(name))
        for name in order
    )


def choose(handover: Handover, wanted: Sequence[str]) -> tuple[Prepared, ...]:
    """Give what there is of each name that a block wants, in that order.

    What no definition has is a new empty database; the one of an attempt without definitions
    serves as the first of those. No names are all that the attempt was given.
    """
    known = {each.definition.name: each for each in handover.prepared}
    spare = known.get(UNNAMED)
    chosen = []
    for name in wanted or handover.given:
        found = known.get(name, Prepared(definition=DatabaseDefinition(name=name)))
        if name not in known and spare is not None and not spare.taken:
            found, spare = replace(found, database=spare.database), None
        chosen.append(found)
    return tuple(chosen)


def with_taken(handover: Handover, databases: Collection[str]) -> Handover:
    """Mark databases as used by a block."""
    return replace(
        handover,
        prepared=tuple(
            replace(each, taken=each.taken or each.database in databases)
            for each in handover.prepared
        ),
    )


# --- as text -------------------------------------------------------------------------------------


def encode(handover: Handover) -> str:
    """Write it as the value of the variable."""
    address = handover.address
    return json.dumps(
        {
            "base": handover.base,
            "server": {
                "host": address.host,
                "port": address.port,
                "user": address.user,
                "password": address.password,
                "database": address.database,
                "options": dict(address.options),
            },
            "databases": [_shape(each) for each in handover.prepared],
            "env": dict(handover.env),
            "root": str(handover.root),
            "python": handover.python,
            "psql": None if handover.psql is None else str(handover.psql),
        }
    )


def _shape(prepared: Prepared) -> dict[str, Any]:
    definition = prepared.definition
    return {
        "name": definition.name,
        "database": prepared.database,
        "taken": prepared.taken,
        "template": prepared.template,
        "env": definition.env,
        "suffix": definition.suffix,
        "files": [str(file) for file in definition.template],
        "command": definition.command,
    }


def decode(text: str) -> Handover:
    """Read the value of the variable. Raises ValueError for what no run has written."""
    try:
        shape = json.loads(text)
        server = shape["server"]
        return Handover(
            base=_text(shape["base"]),
            address=ServerAddress(
                host=_text(server["host"]),
                port=int(server["port"]),
                user=_text(server["user"]),
                password=_text_or_none(server["password"]),
                database=_text(server["database"]),
                options=_table(server["options"]),
            ),
            prepared=tuple(map(_read, shape["databases"])),
            env=_table(shape["env"]),
            root=Path(_text(shape["root"])),
            python=_text(shape["python"]),
            psql=None if shape["psql"] is None else Path(_text(shape["psql"])),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError("it is not what a run writes there") from error


def _read(shape: Mapping[str, Any]) -> Prepared:
    return Prepared(
        definition=DatabaseDefinition(
            name=_text(shape["name"]),
            env=tuple(map(_text, shape["env"])),
            suffix=_text_or_none(shape["suffix"]),
            template=tuple(Path(_text(file)) for file in shape["files"]),
            command=tuple(map(_text, shape["command"])),
        ),
        database=_text_or_none(shape["database"]),
        taken=bool(shape["taken"]),
        template=_text_or_none(shape["template"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _table(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return {_text(name): _text(each) for name, each in value.items()}


# --- companions ----------------------------------------------------------------------------------


def companion_url(probe: Probe, ports: Sequence[int]) -> str:
    """Give where a companion is, as it says itself; empty where only its log tells that it is ready.

    >>> companion_url(TcpProbe(host="::1", port=8000), ())
    'tcp://[::1]:8000'
    """
    match probe:
        case HttpProbe(url=url):
            return url
        case TcpProbe(host=host, port=port):
            return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        case LogProbe():
            return f"tcp://127.0.0.1:{ports[0]}" if ports else ""


def encode_companions(urls: Mapping[Path, str]) -> str:
    """Give the value of the variable: URLs by the real paths of the companions."""
    return json.dumps({str(file.resolve()): url for file, url in urls.items()})


def decode_companion(text: str, file: Path) -> str | None:
    """Give the URL of one companion; None where the value does not tell of it.

    >>> decode_companion(encode_companions({Path("/srv/a.py"): "tcp://127.0.0.1:1"}), Path("/srv/a.py"))
    'tcp://127.0.0.1:1'
    >>> decode_companion("nonsense", Path("/srv/a.py"))
    """
    try:
        urls = json.loads(text)
    except (ValueError, RecursionError):
        return None
    url = urls.get(str(file.resolve())) if isinstance(urls, dict) else None
    return url if isinstance(url, str) else None
