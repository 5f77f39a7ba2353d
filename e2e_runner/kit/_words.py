"""Values and exceptions in few words, whatever they are. Pure."""

from e2e_runner.text import one_line

LONGEST_ERROR = 300  # characters of an exception's first line


def cut(text: str, most: int) -> str:
    """Keep the first `most` characters.

    >>> cut("a long story", 7), cut("short", 7)
    ('a long…', 'short')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: object, most: int) -> str:
    """Give the repr of a value, cut to `most` characters; that of no object raises."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - of a class that we know nothing of
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says; of a group of one, what that one says."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - of a class that we know nothing of
        return ""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return cut(one_line(line), LONGEST_ERROR)


def said(error: BaseException) -> str:
    r"""Give the type of an exception and the first line of what it says.

    >>> said(ValueError("too long\nby far")), said(KeyboardInterrupt())
    ('ValueError: too long', 'KeyboardInterrupt')
    """
    error = innermost(error)
    line = first_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def innermost(error: BaseException) -> BaseException:
    """Give what a group holds, where that is one exception: a task group wraps the only failure."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
