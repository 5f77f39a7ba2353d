"""Isolated databases for the length of a block, and the variables by which an application finds them."""

import contextlib
import os
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from e2e_runner.kit._blocks import Block, BlockError
from e2e_runner.kit._environment import environment
from e2e_runner.kit._words import shown

_CLOSE = 0.7  # from which likeness on a name is taken for a misspelt one, of 1


class DatabasesUnavailable(BlockError):  # noqa: N818 - a finding about the surroundings
    """Databases cannot be had; the text says why, what was seen, and what to do."""

    def __init__(self, reason: str, *, facts: Iterable[str] = (), remedy: str = "") -> None:
        lines = [reason, *(f"  {fact}" for fact in facts)]
        if remedy:
            lines.append(f"To fix this: {remedy}")
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedDatabase:
    """A database that nobody else uses, and how to get there. `name` is the server's name of it."""

    name: str
    host: str  # a name, an IP address, or the folder of a Unix socket
    port: int
    user: str
    password: str | None = field(repr=False)
    url: str = field(repr=False)  # with the password


class IsolatedDatabases(Mapping[str, IsolatedDatabase]):
    """The databases of a block, by the names that it asked for, in that order."""

    def __init__(self, databases: Mapping[str, IsolatedDatabase]) -> None:
        """Hold `databases`, of which there is one at least."""
        self._databases = dict(databases)

    @property
    def first(self) -> IsolatedDatabase:
        """The one that ``DATABASE_URL`` and ``PGDATABASE`` name."""
        return next(iter(self._databases.values()))

    def __getitem__(self, name: str) -> IsolatedDatabase:
        try:
            return self._databases[name]
        except KeyError:
            there = ", ".join(map(repr, self._databases))
            raise KeyError(f"{name!r} is no database of this block, which has {there}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._databases)

    def __len__(self) -> int:
        return len(self._databases)

    def __repr__(self) -> str:
        return f"IsolatedDatabases({self._databases!r})"


def databases(*names: str) -> Block[IsolatedDatabases]:
    """Make databases for the length of a block, and set the variables that an application reads.

    The block works with ``with`` and ``async with``, and gives `IsolatedDatabases`. A name that the
    configuration defines is a database filled as it says there; another is empty, but an error where
    it reads like a defined one misspelt. Without names they are all that the configuration defines
    for this script, else one that is called "".

    ``DATABASE_URL`` and the ``PG*`` variables name the first of them, and the variables of
    ``[tool.e2e-run.databases]`` and ``[tool.e2e-run.postgres]`` are set too. At the end, however that
    comes, the databases are dropped and the variables are what they were. Blocks within each other,
    or at the same time, have databases of their own; a variable is what the block entered last says.

    Under e2e-run the first block takes what the run has made for the script, and further ones make
    more on the same server. With no runner around, it is the server of ``E2E_RUN_POSTGRES`` or of the
    configuration, else one that lives as long as the block.

    Raises `DatabasesUnavailable` when the block is entered, and ValueError for names that cannot be,
    TypeError for what is no name.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"databases({shown(name, 50)}): names are texts, one after the other, as in "
                'databases("orm", "archive")'
            )
        if not name or "\0" in name or not name.isprintable():
            raise ValueError(f"{name!r} cannot be the name of a database: use printable characters")
    if len(set(names)) < len(names):
        raise ValueError(f"a database is named twice: {', '.join(names)}")
    return Block(lambda: _isolated(names))


def require_no_misspelling(wanted: Collection[str], defined: Collection[str]) -> None:
    """Raise `DatabasesUnavailable` for a name that is like a defined one, which is not wanted too."""
    others = {name.lower(): name for name in defined if name and name not in wanted}
    for name in wanted:
        if name in defined or not others:
            continue
        import difflib  # only now: few names are not defined

        if found := difflib.get_close_matches(name.lower(), others, 1, _CLOSE):
            meant = others[found[0]]
            raise DatabasesUnavailable(
                f"{name!r} is not defined; did you mean {meant!r}?",
                facts=(f"Defined: {', '.join(map(repr, sorted(filter(None, defined))))}.",),
                remedy=f"write databases({meant!r}); for an empty database define {name!r} too, by "
                "an empty table in [tool.e2e-run.databases], or give it another name.",
            )


@contextlib.asynccontextmanager
async def _isolated(names: tuple[str, ...]) -> AsyncIterator[IsolatedDatabases]:
    # Here and not above: the import of the kit is to be cheap.
    from e2e_runner import handover

    if handover.VARIABLE in os.environ:
        from e2e_runner.kit._handed import obtain
    else:
        from e2e_runner.kit._by_hand import obtain
    from e2e_runner.addresses import to_url

    async with contextlib.AsyncExitStack() as stack:
        given = await obtain(names, stack)
        stack.enter_context(environment.layer(given.environment))
        address = given.address
        yield IsolatedDatabases(
            {
                name: IsolatedDatabase(
                    name=database,
                    host=address.host,
                    port=address.port,
                    user=address.user,
                    password=address.password,
                    url=to_url(address, with_password=True, database=database),
                )
                for name, database in given.databases.items()
            }
        )
