"""Writes the reference of settings in the README, from the table of settings.

``python -m e2e_runner.docs README.md`` replaces what stands between ``<!-- reference: config -->``
and ``<!-- /reference -->``, and the same for ``metadata``.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from e2e_runner.settings import SETTINGS, Scope, Setting

_BLOCK = re.compile(r"(<!-- reference: (\w+) -->\n).*?(<!-- /reference -->)", re.DOTALL)


def config_reference() -> str:
    """Give the Markdown table of what configuration, environment and flags may say."""
    rows = [
        (
            f"`{setting.name}`" if Scope.CONFIG in setting.scopes else "",
            setting.kind.name,
            setting.default_words or "false",
            f"`{setting.variable}`" if Scope.ENVIRONMENT in setting.scopes else "",
            ", ".join(f"`{flag}`" for flag in setting.flags),
            setting.help,
        )
        for setting in SETTINGS
        if setting.scopes - {Scope.METADATA}
    ]
    return _table(("key", "type", "default", "environment", "flag", "what it does"), rows)


def metadata_reference() -> str:
    """Give the Markdown table of what inline metadata and overrides may say."""
    rows = [
        (
            f"`{setting.name}`",
            setting.kind.name,
            _accepted(setting),
            setting.default_words,
            setting.help,
        )
        for setting in SETTINGS
        if Scope.METADATA in setting.scopes
    ]
    return _table(("key", "type", "accepted", "default", "what it does"), rows)


def update(text: str) -> str:
    """Replace the reference blocks of a Markdown text by current ones."""
    references = {"config": config_reference, "metadata": metadata_reference}
    return _BLOCK.sub(lambda found: found[1] + references[found[2]]() + found[3], text)


def _accepted(setting: Setting) -> str:
    return setting.kind.accepted


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        readme = Path(name)
        readme.write_text(update(readme.read_text("utf-8")), "utf-8")
