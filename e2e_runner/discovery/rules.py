"""Which names are never examples, and why. Pure."""

import re

_FOLDERS = {
    "__pycache__": "compiled Python",
    "build": "build output",
    "migrations": "database migrations",
    "node_modules": "installed packages",
}
_FILES = {
    "__init__.py": "marks a package",
    "conftest.py": "belongs to pytest",
    "setup.py": "installs a package",
}
_TEST = re.compile(r"(?:test_.*|.*_test)\.py", re.DOTALL)
_RUNNER = re.compile(r"run_all.*", re.DOTALL)


def refuse_folder(name: str) -> str:
    """Say why a folder of that name is not searched; an empty string where it is."""
    if name in _FOLDERS:
        return _FOLDERS[name]
    return "hidden folder" if name.startswith(".") else ""


def refuse_file(name: str) -> str:
    """Say why a file of that name is not an example; an empty string where it may be one."""
    if name in _FILES:
        return _FILES[name]
    if name.startswith("."):
        return "hidden file"
    if name.startswith("_"):
        return "name begins with _"
    if is_test(name):
        return "test of a test framework"
    return "another runner of this folder" if _RUNNER.fullmatch(name) else ""


def is_test(name: str) -> bool:
    """Say whether a file is named as test frameworks name tests."""
    return _TEST.fullmatch(name) is not None
