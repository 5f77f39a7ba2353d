"""Shows styled lines on standard output, however it is connected."""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from e2e_runner.model import Color
from e2e_runner.report.display import use_color, use_width
from e2e_runner.report.sink import Sink
from e2e_runner.report.style import Line, paint


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Standard output as it is now: its width in columns, and whether it has colours."""

    width: int
    color: bool

    @classmethod
    def of_stdout(cls, color: Color) -> "Page":
        """Look at standard output and the environment; 80 columns where it is no terminal."""
        isatty = sys.stdout is not None and sys.stdout.isatty()
        columns = shutil.get_terminal_size().columns if isatty else None
        return cls(
            width=use_width(environ=os.environ, terminal_columns=columns),
            color=use_color(color, isatty=isatty, environ=os.environ),
        )

    def show(self, lines: Iterable[Line]) -> None:
        """Write lines; a reader who has gone is no error."""
        Sink(sys.stdout).write("".join(f"{paint(line, color=self.color)}\n" for line in lines))
