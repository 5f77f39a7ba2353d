"""The live region on a terminal, drawn by rich. All of it runs in the terminal's own thread."""

from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, cast

from e2e_runner.report.sink import Sink
from e2e_runner.report.style import Line, Style

if TYPE_CHECKING:
    from rich.text import Text

_RICH_STYLES = {
    Style.PLAIN: "",
    Style.BOLD: "bold",
    Style.DIM: "dim",
    Style.OK: "green",
    Style.BAD: "bold red",
    Style.WARN: "yellow",
    Style.LINK: "cyan",
}

Painter = Callable[[int, int], Sequence[Line]]  # columns, rows -> the lines of the region


class LiveRegion:
    """A region at the bottom of the terminal that `painter` fills; finished lines scroll above it."""

    def __init__(
        self, sink: Sink, painter: Painter, *, color: bool, environ: Mapping[str, str]
    ) -> None:
        self._sink = sink
        self._painter = painter
        self._color = color
        self._environ = environ
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start a fresh region where the cursor is now, as after the shell has written meanwhile.

        What was drawn before is left as it is: where it stands now is not known.
        """
        # Imported here: without a terminal, rich is never loaded.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(
            file=cast("IO[str]", self._sink),
            force_terminal=True,
            color_system="standard" if self._color else None,
            no_color=not self._color,
            markup=False,
            highlight=False,
            emoji=False,
            legacy_windows=False,
            _environ=self._environ,
        )
        self._live = Live(
            console=self._console,
            get_renderable=self._paint,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def print_above(self, text: str) -> None:
        """Print finished text above the region. It may hold colours and ends with a newline."""
        from rich.segment import Segment, Segments

        self._console.print(Segments([Segment(text)]), end="", crop=False)

    def repaint(self) -> None:
        """Draw the region anew."""
        self._live.refresh()

    def stop(self) -> None:
        """Take the region away for good."""
        self._live.stop()

    def _paint(self) -> "Text":
        from rich.text import Text

        size = self._console.size
        rows = Text("\n").join(
            Text.assemble(*((words, _RICH_STYLES[style]) for words, style in line))
            for line in self._painter(size.width, size.height)
        )
        rows.no_wrap = True
        rows.overflow = "crop"
        return rows
