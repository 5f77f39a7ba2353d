"""Reads the project's pages: what they show as code, commands and output, and runs it as a reader would."""

import difflib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import REPOSITORY

# <!-- not run: REASON --> before a block says why it is not run here, <!-- file: NAME --> that the block
# is saved under that name, <!-- signature: NAME --> that it is generated.
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|file|signature): (?P<value>[^\n]+) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PROGRESS = re.compile(r"\d+/\d+ (?=[✓!✗-] )")
_MARKER = "=== a block of the page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. At most one of `reason`, `file` and `signature` is not empty."""

    language: str
    text: str
    line: int  # of its first line in the page
    reason: str = ""  # why it is not run
    file: str = ""  # under which the reader saves it
    signature: str = ""  # the name whose signature it is

    @property
    def commands(self) -> str:
        """What is pasted; in a `console` block that stands behind the prompts."""
        if self.file:
            end = "END-OF-THE-BLOCK"
            folder = shlex.quote(str(Path(self.file).parent))
            return (
                f"mkdir -p {folder}\ncat > {shlex.quote(self.file)} <<'{end}'\n{self.text}{end}\n"
            )
        if self.language == "sh":
            return self.text
        if self.language == "python":
            script = f"snippet_{self.line}.py"
            end = "END-OF-THE-BLOCK"
            return f"cat > {script} <<'{end}'\n{self.text}{end}\n.venv/bin/python {script}\n"
        return "".join(
            line.removeprefix("$ ")
            for line in self.text.splitlines(keepends=True)
            if line.startswith("$ ")
        )

    @property
    def output(self) -> str:
        return "".join(
            line for line in self.text.splitlines(keepends=True) if not line.startswith("$ ")
        )


def blocks_of(page: str) -> list[Block]:
    """Read the fenced blocks of a Markdown page."""
    return [_block(found, page) for found in _BLOCK.finditer(page)]


def _block(found: re.Match[str], page: str) -> Block:
    marks = {found["mark"]: found["value"]} if found["mark"] else {}
    return Block(
        language=found["language"],
        text=found["text"],
        line=page.count("\n", 0, found.start("text")) + 1,
        reason=marks.get("not run", ""),
        file=marks.get("file", ""),
        signature=marks.get("signature", ""),
    )


def without_blocks(page: str) -> str:
    """Give the prose of a page."""
    return _BLOCK.sub("", page)


def link_environment(folder: Path) -> Path:
    """Give a folder this environment as its own; returns the folder ``.venv``."""
    venv = folder / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".installed":
            (venv / entry.name).symlink_to(entry)
    return venv


def make_checkout(folder: Path) -> Path:
    """Make a copy of the repository in which commands may write, with this environment as its own."""
    for name in ("Makefile", "README.md", "pyproject.toml"):
        shutil.copy2(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    shutil.copytree(
        REPOSITORY / "examples",
        folder / "examples",
        ignore=shutil.ignore_patterns("__pycache__", ".*"),
    )
    (link_environment(folder) / ".installed").touch()  # so that make has nothing to install
    return folder


def run_all(chosen: list[Block], folder: Path, *, timeout: float) -> list[str]:
    """Paste blocks into one shell, one after the other; gives what each printed.

    A block that is not `console` has to succeed, and the shell, all of `timeout` seconds, to end.
    """
    script = "".join(
        f"printf '%s\\n' '{_MARKER}'\n"
        # The commands of a `console` block show what they show.
        f"set {'+' if block.language == 'console' else '-'}e\n{_waiting(block.commands)}"
        for block in chosen
    )
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("E2E_", "MAKE", "PG", "DB_", "DATABASE_"))
    }
    for name in ("CI", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONDEVMODE", "VIRTUAL_ENV"):
        environ.pop(name, None)
    done = subprocess.run(
        ["bash", "-c", script + "exit 0\n"],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    printed = done.stdout.split(f"{_MARKER}\n")[1:]
    assert len(printed) == len(chosen)
    return printed


def _waiting(commands: str) -> str:
    """Let a server that is put into the background open its port before the next command."""
    return re.sub(
        r"^(.* (\d{4,5}) .*&)$",
        r"\1\nuntil (: 3<>/dev/tcp/127.0.0.1/\2) 2>/dev/null; do sleep 0.05; done",
        commands,
        flags=re.MULTILINE,
    )


def assert_printed(shown: str, output: str, folder: Path) -> None:
    """Compare what a page shows with what was printed; a line ``⋮`` of the page stands for any lines."""
    expected, printed = comparable(shown, folder), comparable(output, folder)
    pattern = "".join(r"(?:.*\n)*?" if line == "⋮" else f"{re.escape(line)}\n" for line in expected)
    if not re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)):
        differences = "\n".join(difflib.unified_diff(expected, printed, "shown", "printed"))
        raise AssertionError(f"{differences}\n\n{output}")


def comparable(output: str, folder: Path) -> list[str]:
    """Leave out of an output what differs from run to run and from machine to machine."""
    text = output.replace(str(folder), f"/home/maria/{folder.name}")
    text = re.sub(r"/home/maria/[\w-]+", "FOLDER", text)
    text = re.sub(r"\b(processes|network): [\w-]+( \([^()\n]*\))?", r"\1: TIER", text)
    text = re.sub(
        r" · \d+ jobs\b", "", text
    )  # as many as there are processors; alone, nothing is said
    text = re.sub(r"\b\d{8}-\d{6}-[0-9a-f]{6}\b", "RUN", text)
    text = re.sub(r"_e2e_\d{8}_\d{6}_[0-9a-f]{6}(_[0-9a-f]{6}\b)?", "_UNIQUE", text)
    text = re.sub(r"\b(pid|process|kill) \d+", r"\1 N", text)
    text = re.sub(r"(127\.0\.0\.1:|\bport )\d{5}\b", r"\1PORT", text)
    text = re.sub(r"\buser [\w-]+", "user NAME", text)
    text = re.sub(r"\b(\d+m\d\ds|\d+(\.\d+)?m?s)\b", "TIME", text)
    text = re.sub(r"\([^()\n]*…", "(…", text)  # a line that is cut at the width of the terminal
    text = re.sub(r"\b\d+ tries\b", "N tries", text)
    text = re.sub(r"^(\d+ +(taken|free)) .*", r"\1", text, flags=re.MULTILINE)  # same
    text = re.sub(r"─+", "─", text)
    text = re.sub(r"^[│ ]*[~^]+\n", "", text, flags=re.MULTILINE)  # Pythons differ in these
    return in_order([re.sub(r"\s+", " ", line).strip() for line in text.splitlines()])


def in_order(lines: list[str]) -> list[str]:
    """Sort the lines of progress that follow each other: examples that run at a time finish as they do."""
    ordered: list[str] = []
    for is_progress, group in itertools.groupby(
        lines, key=lambda line: bool(_PROGRESS.match(line))
    ):
        found = list(group)
        ordered += sorted(_PROGRESS.sub("", line) for line in found) if is_progress else found
    return ordered
