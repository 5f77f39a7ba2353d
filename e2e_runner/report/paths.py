"""Paths as reports name them."""

from pathlib import Path


def relative(file: str, root: Path) -> str:
    """Give a path as from the root where it lies below, with ``/``; others stay as they are."""
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file
