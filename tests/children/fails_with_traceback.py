"""Fails with a chained traceback, three calls deep. Right verdict: failed, exit code 1."""


def outer():
    """Call on."""
    return middle()


def middle():
    """Wrap what goes wrong."""
    try:
        return inner()
    except KeyError as error:
        raise ValueError("no such order: 42") from error


def inner():
    """Go wrong."""
    return {}["42"]


print("looking for order 42")
outer()
