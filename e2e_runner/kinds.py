"""The kinds of values that settings have: a parser each, and in words what it accepts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from e2e_runner.parsers import (
    MAX_PORT,
    Parser,
    choice,
    integer,
    list_of,
    parse_arguments,
    parse_command,
    parse_database_pattern,
    parse_databases,
    parse_duration,
    parse_endpoint,
    parse_environment,
    parse_flag,
    parse_glob,
    parse_interpreters,
    parse_jobs,
    parse_name,
    parse_positive_duration,
    parse_probe,
    parse_regex,
    parse_report,
    parse_server,
    parse_server_url,
    parse_shard,
    parse_size,
    parse_tag,
    parse_templates,
    parse_text,
    parse_wanted_databases,
    parse_wants_postgres,
)

_LARGEST_EXIT_CODE = 255


class Merge(StrEnum):
    """What happens when several sources give the same setting."""

    REPLACE = "replace"  # the strongest wins
    TABLE = "table"  # tables are merged; the strongest wins for each name
    UNION = "union"  # lists add up


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of value: how it is called, what is accepted in words, and its parser.

    `is_list` says that a flag may be repeated and that an environment variable holds the items
    separated by commas. `units` is the metavar of the flag.
    """

    name: str
    accepted: str
    parse: Parser
    units: str = ""
    is_list: bool = False
    merge: Merge = Merge.REPLACE


# --- the kinds -----------------------------------------------------------------------------------

DURATION = Kind(
    name="duration",
    accepted="a duration such as 90, 90s, 1m30s, 500ms or 1h, above 0",
    parse=parse_positive_duration,
    units="DURATION",
)
GRACE = Kind(
    name="duration",
    accepted="a duration such as 5, 5s or 500ms; 0 for none",
    parse=parse_duration,
    units="DURATION",
)
SIZE = Kind(
    name="size",
    accepted="a size of at least 1KiB such as 512KiB, 64MiB, 1GB or a number of bytes",
    parse=parse_size,
    units="SIZE",
)
FLAG = Kind(name="boolean", accepted="true or false", parse=parse_flag)
TEXT = Kind(name="string", accepted="a string", parse=parse_text, units="TEXT")
NAME = Kind(name="string", accepted="a string that is not empty", parse=parse_name, units="TEXT")
PATH = Kind(name="path", accepted="a path", parse=parse_name, units="PATH")
PATHS = Kind(
    name="list of paths",
    accepted="a list of paths",
    parse=list_of(parse_name),
    units="PATH",
    is_list=True,
)
GLOBS = Kind(
    name="list of globs",
    accepted="globs such as draft_*.py, examples/slow/ or **/old/*.py",
    parse=list_of(parse_glob),
    units="GLOB",
    is_list=True,
    merge=Merge.UNION,
)
TAGS = Kind(
    name="list of tags",
    accepted="tags of one word each",
    parse=list_of(parse_tag),
    units="TAG",
    is_list=True,
    merge=Merge.UNION,
)
# The strongest source decides alone: what a weaker one adds would only widen the selection.
SELECTED_TAGS = replace(TAGS, merge=Merge.REPLACE)
REGEXES = Kind(
    name="list of regular expressions",
    accepted="regular expressions as Python's re reads them",
    parse=list_of(parse_regex),
    units="REGEX",
    is_list=True,
    merge=Merge.UNION,
)
REPORTS = Kind(
    name="list of FORMAT=PATH",
    accepted="FORMAT=PATH with the format json, jsonl or junit",
    parse=list_of(parse_report),
    units="FORMAT=PATH",
    is_list=True,
    merge=Merge.UNION,
)
PORTS = Kind(
    name="list of ports",
    accepted="port numbers from 1 to 65535, as in [8000]",
    parse=list_of(integer(least=1, most=MAX_PORT)),
    units="PORT",
    is_list=True,
)
ENDPOINTS = Kind(
    name="list of HOST:PORT",
    accepted="services as HOST:PORT, as in localhost:6379, db.internal:5432 or [::1]:8125",
    parse=list_of(parse_endpoint),
    units="HOST:PORT",
    is_list=True,
    merge=Merge.UNION,
)
JOBS = Kind(
    name="auto | N",
    accepted="auto or a whole number from 1 to 1000",
    parse=parse_jobs,
    units="N|auto",
)
SHARD = Kind(
    name="I/N",
    accepted="I/N, as in 1/4 for the first of four parts",
    parse=parse_shard,
    units="I/N",
)
LOCKS = Kind(
    name="list of names",
    accepted="names of one word each",
    parse=list_of(parse_tag),
    units="NAME",
    is_list=True,
    merge=Merge.UNION,
)
ARGUMENTS = Kind(
    name="list of strings", accepted="a list of strings or numbers", parse=parse_arguments
)
COMMAND = Kind(
    name="command",
    accepted='a command such as "bash -e" or ["bash", "-e"]',
    parse=parse_command,
)
ENVIRONMENT = Kind(
    name="table of strings",
    accepted="NAME = VALUE with strings or numbers as values",
    parse=parse_environment,
    units="NAME=VALUE",
    is_list=True,
    merge=Merge.TABLE,
)
INTERPRETERS = Kind(
    name="table of commands",
    accepted='a table such as { ".sh" = "bash", ".js" = "node" }',
    parse=parse_interpreters,
    merge=Merge.TABLE,
)
PROBE = Kind(
    name="probe",
    accepted="http(s)://HOST[:PORT]/PATH, tcp://HOST:PORT or log:REGEX",
    parse=parse_probe,
)
EXIT_CODE = Kind(
    name="integer",
    accepted="an exit code from 0 to 255",
    parse=integer(least=0, most=_LARGEST_EXIT_CODE),
)
SERVER = Kind(
    name="auto | embedded | env | off | URL",
    accepted="auto, embedded, env, off or postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    parse=parse_server,
    units="auto|embedded|env|off|URL",
)
SERVER_URL = Kind(
    name="URL",
    accepted="postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    parse=parse_server_url,
    units="URL",
)
TEMPLATES = Kind(
    name="table of strings",
    accepted="NAME = VALUE with {host}, {port}, {user}, {password}, {database}, {url} and the names "
    "of databases in braces",
    parse=parse_templates,
)
DATABASE_PATTERNS = Kind(
    name="list of patterns",
    accepted="the beginning of names, of at least 4 characters, or a glob of whole names in which "
    "* stands for any characters",
    parse=list_of(parse_database_pattern),
    units="PATTERN",
    is_list=True,
    merge=Merge.UNION,
)
PROTECTED = Kind(
    name="list of patterns",
    accepted="names, or globs of whole names in which * stands for any characters",
    parse=list_of(parse_name),
    units="PATTERN",
    is_list=True,
    merge=Merge.UNION,
)
_DEFINITIONS = (
    "a table of databases, each with env (a variable or a list of them), suffix, template (a file of "
    "SQL or a list of them) and command, all optional"
)
DATABASES = Kind(name="table of databases", accepted=_DEFINITIONS, parse=parse_databases)
WANTED_DATABASES = Kind(
    name="list of names, or table of databases",
    accepted=f"a list of names, [] for none, or {_DEFINITIONS}",
    parse=parse_wanted_databases,
)
WANTS_POSTGRES = Kind(name="boolean", accepted="true or false", parse=parse_wants_postgres)


def count(*, least: int, units: str = "N") -> Kind:
    """Make the kind of a whole number of at least `least`."""
    return Kind(
        name="integer",
        accepted=f"a whole number of at least {least}",
        parse=integer(least=least, most=10**9),
        units=units,
    )


def one_of(names: Iterable[str], make: Callable[[str], Any]) -> Kind:
    """Make the kind of a choice between `names`."""
    listed = tuple(names)
    return Kind(
        name=" | ".join(listed),
        accepted=f"{', '.join(listed[:-1])} or {listed[-1]}",
        parse=choice(listed, make),
        units="|".join(listed),
    )
