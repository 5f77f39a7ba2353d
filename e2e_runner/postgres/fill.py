"""Fills a new database with what a definition names: files of SQL, then a command."""

import asyncio
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncpg

from e2e_runner.addresses import APPLICATION_VARIABLES, variables
from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres.beyond import beyond
from e2e_runner.postgres.connection import DRIVER_ERRORS, Unreachable, connected
from e2e_runner.text import one_line, shorten

PATIENCE = 300.0  # seconds for all files and the command of a definition

_TAIL_BYTES = 8192
_TAIL_LINES = 5
_WIDTH = 200  # columns of a line of a command's output that its error quotes
# What psql knows and the server does not. The file is read as text, so that such a line in a
# string or a function body counts too: then the advice is to install psql, and nothing is lost.
_FOR_PSQL = re.compile(r"^\\\S|^\s*COPY\s[^;]*\bFROM\s+stdin\b", re.IGNORECASE | re.MULTILINE)

# A line that names an error, as Python, psql and most programs write it.
_AN_ERROR = re.compile(
    r"[A-Za-z_][\w.]*(?:Error|Exception|Exit)\b|.*\b(?:error|fatal):", re.IGNORECASE
)

_NO_ROLE = re.compile(
    r'role "[^"]*" does not exist|must be (?:member of|able to SET) role', re.IGNORECASE
)
_NO_OWNER = "; pg_dump --no-owner --no-privileges leaves roles out"
_NO_EXTENSION = re.compile(r'permission denied to create extension "(?P<name>[^"]*)"')


class FillFailed(Exception):  # noqa: N818 - a finding, not a mistake
    """A database could not be filled; the text says by what, where, and in whose words."""


class _ProgramFailed(FillFailed):
    """A program failed, with more `output` than its text quotes."""

    def __init__(self, reason: str, output: Sequence[str]) -> None:
        super().__init__(reason)
        self.output = "\n".join(output)


class RunProgram(Protocol):
    """Runs a program to its end, and everything that it starts no longer than that."""

    async def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
    ) -> int:
        """Give its exit code, or minus a signal's number; its output is added to `log`."""


async def fill(
    address: ServerAddress,
    definition: DatabaseDefinition,
    *,
    run_program: RunProgram,
    log: Path,
    environment: Mapping[str, str],
    root: Path,
    env_mapping: Mapping[str, str] | None = None,
    psql: Path | None = None,
    log_stays: bool = True,
) -> None:
    """Fill the database that `address` names.

    `environment` is the base of what the programs see; what there leads to another server is left
    out. `env_mapping` is ``postgres.env``, and `root` the folder that the command runs in. `psql`
    is the one that belongs to the server, else it is looked for on the environment's PATH. Errors
    name `log`, to which what the programs say is added, if it stays.

    Raises FillFailed: for a file that cannot be read, is wrong or reaches beyond its database, which
    is seen before anything is run; for a command that fails, after `PATIENCE` seconds, and where
    the server cannot be reached or a program not be started.
    """
    base = {name: value for name, value in environment.items() if name not in APPLICATION_VARIABLES}
    programs = _Programs(run=run_program, log=log)
    log_shown = _shown(log, root) if log_stays else ""
    found = str(psql) if psql else shutil.which("psql", path=environment.get("PATH"))
    what = ""
    try:
        async with asyncio.timeout(PATIENCE):
            for file in definition.template:
                what = f"template {_shown(file, root)} of database {definition.name!r}"
                await _see_that_it_stays(file)
            for file in definition.template:
                what = f"template {_shown(file, root)} of database {definition.name!r}"
                if found:
                    told = {"PGCLIENTENCODING": "UTF8", **base, **variables(address, {}, [], {})}
                    await _with_psql(found, file, told, programs)
                else:
                    await _with_driver(file, address)
            if definition.command:
                what = f"command of database {definition.name!r} ({' '.join(definition.command)})"
                names = {definition.name: address.database}
                told = {**base, **variables(address, names, [definition], env_mapping or {})}
                await _with_command(definition.command, told, root, programs, log_shown)
    except TimeoutError as error:
        raise FillFailed(f"{what}: not done within {PATIENCE:g} s") from error
    except (FillFailed, Unreachable) as error:
        raise FillFailed(f"{what}: {error}{_advice(error)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Programs:
    """Runs programs, and knows what the last one said."""

    run: RunProgram
    log: Path

    async def __call__(
        self, argv: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> tuple[int, list[str]]:
        """Give the exit code and the last lines of the output."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        try:
            code = await self.run(argv, env=environment, cwd=folder, log=self.log)
        except Exception as error:  # of a kind that belongs to whoever runs programs
            raise FillFailed(str(error) or type(error).__name__) from error
        if not code:
            return 0, []
        with self.log.open("rb") as file:
            file.seek(max(begin, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return code, [line.strip() for line in lines if line.strip()]


def _advice(error: Exception) -> str:
    """Say what to do about an error that a filling without a superuser's rights can have."""
    told = f"{error} {error.output}" if isinstance(error, _ProgramFailed) else str(error)
    if found := _NO_EXTENSION.search(told):
        return (
            f"; extension {found['name']} is not trusted, and a template is filled without a "
            f"superuser's rights: have an administrator create it in template1, or mark it "
            'trusted, or use an embedded server (postgres = "embedded")'
        )
    return _NO_OWNER if _NO_ROLE.search(told) else ""


async def _see_that_it_stays(file: Path) -> None:
    try:
        said = await asyncio.to_thread(beyond, file)
    except OSError as error:
        raise FillFailed(error.strerror or str(error)) from error
    if said:
        raise FillFailed(said)


def _shown(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


async def _with_psql(
    psql: str, file: Path, environment: Mapping[str, str], programs: _Programs
) -> None:
    try:
        # -w: it would ask a terminal for the password
        argv = [psql, "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-f", str(file)]
        code, output = await programs(argv, environment, file.parent)
    except OSError as error:
        raise FillFailed(error.strerror or str(error)) from error
    if code:
        # psql begins its messages with the whole path, which the caller names already.
        said = " | ".join(output[-_TAIL_LINES:]).replace(f"psql:{file}:", "line ")
        raise _ProgramFailed(said or f"psql: exit code {code}", output)


async def _with_driver(file: Path, address: ServerAddress) -> None:
    text = _read(file)
    if _FOR_PSQL.search(text):
        raise FillFailed(
            "it has data or commands for psql (COPY ... FROM stdin, or a line with a backslash), "
            "and psql is not on PATH: install PostgreSQL's client programs"
        )
    async with connected(address) as connection:
        try:
            await connection.execute(text)
        except asyncpg.PostgresError as error:
            position = getattr(error, "position", None)
            line = f"line {text[: int(position) - 1].count(chr(10)) + 1}: " if position else ""
            raise FillFailed(f"{line}{error} (SQLSTATE {error.sqlstate})") from error
        except DRIVER_ERRORS as error:
            raise FillFailed(f"the connection was lost: {error}") from error


async def _with_command(
    argv: Sequence[str],
    environment: Mapping[str, str],
    root: Path,
    programs: _Programs,
    log_shown: str,
) -> None:
    code, output = await programs([_located(argv[0], environment), *argv[1:]], environment, root)
    if code:
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        raise _ProgramFailed(how + _quoted(output, log_shown), output)


def _quoted(output: Sequence[str], log_shown: str) -> str:
    """Quote the line of an output that tells most, and its last lines beside that."""
    if not output:
        return ""
    telling = [line for line in output if _AN_ERROR.match(line)] or output
    more = []
    if len(output) > 1:
        last = output[-_TAIL_LINES:]
        more.append(
            f"its last lines: {' | '.join(shorten(one_line(line), _WIDTH) for line in last)}"
        )
    if log_shown:
        more.append(f"its output: {log_shown}")
    said = f": {shorten(one_line(telling[-1]), _WIDTH)}"
    return f"{said} ({'; '.join(more)})" if more else said


def _located(program: str, environment: Mapping[str, str]) -> str:
    """Look a program up here, so that the environment's PATH decides, whoever runs it."""
    if "/" in program:
        return program
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        raise FillFailed(f"{program} is not on PATH")
    # Not resolved: the Python of a virtual environment is a link.
    return str(Path(found).absolute())


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise FillFailed(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise FillFailed(f"it is not UTF-8 (byte {error.start})") from error
