"""Every example in a docstring of the package holds."""

import doctest
import importlib
import pkgutil

import pytest

import e2e_runner

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(e2e_runner.__path__, "e2e_runner.")
    if module.name != "e2e_runner.__main__"  # importing it runs e2e-run
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), verbose=False)

    assert failed == 0
