"""Paths as reports name them."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from e2e_runner import text

_ELLIPSIS = "…/"


def relative(file: str, root: Path) -> str:
    """Give a path as from the root where it lies below, with ``/``; others stay as they are."""
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


def common_folder(paths: Iterable[str]) -> str:
    """Give the folder that all of the relative `paths` lie in; empty where that is the root.

    >>> common_folder(["examples/a.py", "examples/orm/b.py"]), common_folder(["a.py", "examples/b.py"])
    ('examples', '')
    """
    folders = [path.rpartition("/")[0] for path in paths]
    if not all(folders) or len({folder.startswith("/") for folder in folders}) != 1:
        return ""
    return os.path.commonpath(folders)


def shortest(path: str, folder: str) -> int:
    """Give the columns that a path needs where the `folder` that others share with it is left out."""
    inside = path.removeprefix(f"{folder}/") if folder else path
    return text.cell_width(path if inside == path else _ELLIPSIS + inside)


def shorten_path(path: str, width: int) -> str:
    """Cut a path to `width` columns: its leading folders first, then the middle of the file's name.

    >>> [shorten_path("examples/orm/routes.py", width) for width in (22, 20, 12, 9, 8)]
    ['examples/orm/routes.py', '…/orm/routes.py', '…/routes.py', 'routes.py', 'rou…s.py']
    """
    if text.cell_width(path) <= width:
        return path
    folders = path.split("/")
    for first in range(1, len(folders)):
        rest = _ELLIPSIS + "/".join(folders[first:])
        if text.cell_width(rest) <= width:
            return rest
    return text.shorten(folders[-1], width)


def shorten_alike(paths: Sequence[str], folder: str, width: int) -> list[str]:
    """Cut paths to `width` columns: all of them alike where leaving out of their `folder` is enough.

    >>> shorten_alike(["examples/orm/a.py", "examples/orm/routes.py"], "examples/orm", 20)
    ['…/orm/a.py', '…/orm/routes.py']
    """
    if all(text.cell_width(path) <= width for path in paths):
        return [*paths]
    for count in range(1, len(folder.split("/")) + 1 if folder else 1):
        cut = [_ELLIPSIS + "/".join(path.split("/")[count:]) for path in paths]
        if all(text.cell_width(path) <= width for path in cut):
            return cut
    return [shorten_path(path, width) for path in paths]
