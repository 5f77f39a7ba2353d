"""What open blocks say of `os.environ`."""

import contextlib
import os
from collections.abc import Iterator, Mapping


class Environment:
    """What the open blocks say of `os.environ`, over what it is without them.

    The rest of this package passes an environment to whom it concerns. Here that is the script
    itself: the application that it imports, and all that it starts, look into `os.environ`.
    """

    def __init__(self) -> None:
        self._layers: list[Mapping[str, str | None]] = []  # None: the variable is not set
        self._base: dict[str, str | None] = {}  # of the variables in the layers

    @contextlib.contextmanager
    def layer(self, told: Mapping[str, str | None]) -> Iterator[None]:
        """Set variables for the length of the block; of several such, the last entered counts."""
        for name in told:
            self._base.setdefault(name, os.environ.get(name))
        layer = dict(told)
        self._layers.append(layer)
        try:
            for name, value in layer.items():
                _set(name, value)
            yield
        finally:
            self._remove(layer)

    def without_layers(self) -> dict[str, str]:
        """Give the environment as it is without any block."""
        # Not `dict(os.environ)`, which raises KeyError where a thread unsets a variable meanwhile.
        environ = {name: os.environ.get(name) for name in os.environ} | self._base
        return {name: value for name, value in environ.items() if value is not None}

    def _remove(self, layer: Mapping[str, str | None]) -> None:
        index = next(i for i, each in enumerate(self._layers) if each is layer)
        below, above = self._layers[:index], self._layers[index + 1 :]
        self._layers = [*below, *above]
        for name in layer:
            if any(name in each for each in above):
                continue
            under = next((each for each in reversed(below) if name in each), self._base)
            _set(name, under[name])
            if under is self._base:
                del self._base[name]


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


environment = Environment()
