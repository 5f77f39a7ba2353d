"""Glob patterns, read as ``.gitignore`` reads them.

A pattern without ``/`` matches a name at any depth; one with ``/`` is relative to the project's
root. ``*`` and ``?`` stop at ``/``, ``**`` does not, ``[...]`` is one character of a set, and a
backslash takes away the next character's meaning. A pattern that matches a folder matches all that
is in it; with ``/`` at its end it matches folders only. Upper and lower case differ.
"""

import re
from functools import lru_cache


@lru_cache(maxsize=1024)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """Translate a glob; the result is for `fullmatch` with a path relative to the root.

    Any string is a pattern: a bracket that nothing closes stands for itself.

    >>> bool(compile_glob("draft_*.py").fullmatch("examples/draft_1.py"))
    True
    >>> bool(compile_glob("examples/*.py").fullmatch("examples/deep/a.py"))
    False
    """
    folder_only = pattern.endswith("/")
    body = pattern.rstrip("/")
    anchored = "/" in body
    body = body.lstrip("/")
    prefix = "" if anchored else "(?:.*/)?"
    suffix = "/.+" if folder_only else "(?:/.*)?"
    return re.compile(f"(?s:{prefix}{_translate(body)}{suffix})")


def _translate(body: str) -> str:
    parts = []
    at = 0
    while at < len(body):
        char = body[at]
        starts_segment = at == 0 or body[at - 1] == "/"
        if starts_segment and body.startswith("**/", at):
            while body.startswith("**/", at):
                at += 3
            parts.append("(?:.*/)?")
        elif starts_segment and body[at:] == "**":
            parts.append(".+")
            at += 2
        elif char == "*":
            # A run of stars is one star: many in a row take exponential time to fail.
            while body.startswith("*", at):
                at += 1
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
            at += 1
        elif char == "[" and (found := _bracket(body, at)):
            text, at = found
            parts.append(text)
        elif char == "\\" and at + 1 < len(body):
            parts.append(re.escape(body[at + 1]))
            at += 2
        else:
            parts.append(re.escape(char))
            at += 1
    return "".join(parts)


def _bracket(body: str, start: int) -> tuple[str, int] | None:
    """Translate the set that begins at `start`; None when nothing closes it."""
    at = start + 1
    negated = body[at : at + 1] in {"!", "^"}
    at += negated
    # A closing bracket in first place is a member of the set.
    end = body.find("]", at + 1)
    if end < 0 or "/" in body[at:end]:
        return None
    content = body[at:end]
    members = []
    index = 0
    while index < len(content):
        if content[index + 1 : index + 2] == "-" and index + 2 < len(content):
            low, high = content[index], content[index + 2]
            if low <= high:
                members.append(f"{re.escape(low)}-{re.escape(high)}")
            index += 3
        else:
            members.append(re.escape(content[index]))
            index += 1
    if not members:  # only empty ranges, such as [z-a]
        return ("[^/]" if negated else "(?!)"), end + 1
    inner = "".join(members)
    return (f"[^/{inner}]" if negated else f"(?!/)[{inner}]"), end + 1


def matches(pattern: str, path: str) -> bool:
    """Say whether `pattern` matches `path` (relative to the root) or a folder that it is in."""
    return compile_glob(pattern).fullmatch(path.lstrip("/")) is not None


def fixed_start(pattern: str) -> str:
    """Give the part of a path that all matches begin with, in whole names; empty where none is fixed.

    >>> fixed_start("/examples/deep/*.py"), fixed_start("examples/a.py"), fixed_start("a.py")
    ('examples/deep', 'examples/a.py', '')
    """
    body = pattern.rstrip("/")
    if "/" not in body:
        return ""
    names = body.lstrip("/").split("/")
    special = (at for at, name in enumerate(names) if set(name) & set("*?[\\"))
    return "/".join(names[: next(special, len(names))])
