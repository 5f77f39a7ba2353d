"""Lines of styled text, made once and shown with colours, without, or in a live region."""

from collections.abc import Sequence
from enum import StrEnum

# Same widths on both sides, so that a layout holds in either.
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "…": "~", "·": "-", "─": "-", "━": "=", "│": "|", "▸": ">", "╸": "-"}
)
_SYMBOLS = "✓✗…·─━│▸╸"


class Style(StrEnum):
    """The few styles there are, by their SGR parameters; empty for none."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    OK = "32"
    BAD = "1;31"
    WARN = "33"
    LINK = "36"


Span = tuple[str, Style]
Line = Sequence[Span]


def paint(line: Line, *, color: bool) -> str:
    r"""Join a line, with colours or without; nothing trails after its last visible character.

    >>> paint([("✗", Style.BAD), (" a ", Style.PLAIN)], color=True)
    '\x1b[1;31m✗\x1b[0m a'
    """
    if not color:
        return "".join(text for text, _ in line).rstrip()
    painted = "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for text, style in line)
    return painted.rstrip()


def fits_encoding(encoding: str) -> bool:
    """Tell whether an encoding has the symbols that the console draws with."""
    try:
        _SYMBOLS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def for_encoding(text: str, encoding: str, *, symbols: bool) -> bytes:
    """Encode for a terminal: symbols it lacks become ASCII ones, the rest `?`; never fails."""
    if not symbols:
        text = text.translate(_ASCII)
    try:
        return text.encode(encoding, errors="replace")
    except LookupError:
        return text.encode("ascii", errors="replace")
