"""What a terminal would show of an output: pure text in, plain lines out.

Carriage returns, backspaces, erasures and cursor movements within the text are applied, so that a
progress bar shows its last state. Colours and every other escape sequence are dropped. The result
holds no control character at all and may be printed anywhere.
"""

import re
import unicodedata

_TAB = 8
_MAX_COLUMN = 2000  # a terminal clamps cursor movements to its width; so must whoever imitates one

# A string sequence (OSC, DCS, ...) ends at its terminator. One that never ends is dropped up to the
# end of its line, so that it cannot swallow the traceback below it.
_TOKEN = re.compile(
    r"(?P<csi>(?:\x1b\[|\x9b)(?P<args>[0-?]*)[ -/]*(?P<final>[@-~]?))"
    r"|(?P<string>(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?)"
    r"|(?P<escape>\x1b[ -/]*[0-~]?)"
    r"|(?P<control>[\x00-\x1f\x7f-\x9f])"
    r"|(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
)
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")
# Line separators would break the layout, direction overrides would reorder it, and lone surrogates
# cannot be encoded.
_UNSAFE = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(output: str) -> list[str]:
    r"""Give the lines that a terminal would show, without blank lines at the end.

    >>> render("10%\r100%\n\x1b[31mred\x1b[0m\n\n")
    ['100%', 'red']
    """
    canvas = _Canvas()
    for line in output.replace("\r\n", "\n").split("\n"):
        if canvas.at_fresh_line and _PLAIN.fullmatch(line):
            canvas.put_line(line)
        else:
            canvas.interpret(line)
        canvas.feed()
    lines = canvas.lines()
    while lines and not lines[-1]:
        lines.pop()
    return lines


def clean(output: str) -> str:
    """Give the same as one text, its lines joined by newlines."""
    return "\n".join(render(output))


class _Canvas:
    """Rows of cells and a cursor. A wide character takes its cell and an empty one after it."""

    def __init__(self) -> None:
        self._rows: list[list[str] | str] = [""]  # a row is text until something edits it
        self._row = 0
        self._column = 0

    @property
    def at_fresh_line(self) -> bool:
        return self._column == 0 and self._row == len(self._rows) - 1 and not self._rows[-1]

    def lines(self) -> list[str]:
        return [_safe("".join(row)).rstrip() for row in self._rows]

    def put_line(self, text: str) -> None:
        """Write a text without control characters on an empty line, which is the usual case."""
        self._rows[self._row] = text

    def feed(self) -> None:
        """Go to the start of the next line; only this makes new lines."""
        self._row += 1
        self._column = 0
        if self._row == len(self._rows):
            self._rows.append("")

    def interpret(self, line: str) -> None:
        for token in _TOKEN.finditer(line):
            if token["text"] is not None:
                self._put(token["text"])
            elif token["csi"] is not None:
                self._control(token["final"], token["args"])
            elif token["control"] is not None:
                self._move(token["control"])

    def _cells(self) -> list[str]:
        row = self._rows[self._row]
        if isinstance(row, str):
            row = [cell for char in row for cell in _cells_of(char)]
            self._rows[self._row] = row
        return row

    def _put(self, text: str) -> None:
        cells = self._cells()
        cells.extend(" " * (self._column - len(cells)))
        for char in text:
            if _joins(char):
                if self._column:
                    owner = self._column - (2 if not cells[self._column - 1] else 1)
                    cells[max(owner, 0)] += char
                continue
            new = _cells_of(char)
            end = self._column + len(new)
            if end < len(cells) and not cells[end]:
                cells[end] = " "  # the second half of a wide character that is overwritten
            if self._column < len(cells) and not cells[self._column]:
                cells[self._column - 1] = " "  # the first half of one
            cells[self._column : end] = new
            self._column = end

    def _move(self, char: str) -> None:
        match char:
            case "\r":
                self._column = 0
            case "\b":
                self._column = max(self._column - 1, 0)
            case "\t":
                target = min((self._column // _TAB + 1) * _TAB, max(_MAX_COLUMN, self._column))
                cells = self._cells()
                cells.extend(" " * (target - len(cells)))
                self._column = target
            case "\v" | "\f" | "\x85":
                self.feed()
            case _:
                pass

    def _control(self, final: str, args: str) -> None:
        first = args.split(";", maxsplit=1)[0]
        # Longer numbers would only be clamped, and converting them costs quadratic time.
        count = int(first[:5]) if first.isascii() and first.isdigit() else 0
        match final:
            case "A":
                self._row = max(self._row - max(count, 1), 0)
            case "B":
                self._row = min(self._row + max(count, 1), len(self._rows) - 1)
            case "C":
                self._column = min(self._column + max(count, 1), max(_MAX_COLUMN, self._column))
            case "D":
                self._column = max(self._column - max(count, 1), 0)
            case "G":
                self._column = min(max(count, 1), _MAX_COLUMN) - 1
            case "K":
                self._erase(count)
            case _:
                pass

    def _erase(self, mode: int) -> None:
        """Erase the line: from the cursor on (0), up to the cursor (1), or all of it (2)."""
        cells = self._cells()
        if mode == 0:
            del cells[self._column :]
        elif mode == 1:
            end = min(self._column + 1, len(cells))
            cells[:end] = " " * end
        else:
            cells.clear()


def _cells_of(char: str) -> list[str]:
    return [char, ""] if unicodedata.east_asian_width(char) in "WF" else [char]


def _joins(char: str) -> bool:
    """Tell whether the character is drawn upon the one before it."""
    return unicodedata.combining(char) != 0


def _safe(text: str) -> str:
    return _UNSAFE.sub(lambda found: "\ufffd" if found.group() >= "\ud800" else " ", text)
