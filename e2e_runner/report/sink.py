"""The far end of the console: a stream that may stall, break or speak another encoding."""

import os
import select
from typing import TextIO

from e2e_runner.report.style import fits_encoding, for_encoding


class Sink:
    """Writes text to a stream and never raises: once that failed, it is `gone`.

    A stream with a descriptor is written past its own buffer. What such a buffer still held of a
    broken pipe would fail again, with a traceback, when the interpreter exits.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.gone = stream is None
        self.encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
        self.symbols = fits_encoding(self.encoding)
        self._stream = stream
        self._descriptor = _descriptor_of(stream)

    def write(self, text: str) -> int:
        """Write all of `text`, waiting as long as it takes."""
        if not self.gone and self._stream is not None:
            try:
                self._write(self._stream, text)
            except (OSError, ValueError):  # ValueError: the stream is closed
                self.gone = True
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def _write(self, stream: TextIO, text: str) -> None:
        data = for_encoding(text, self.encoding, symbols=self.symbols)
        if self._descriptor is None:
            stream.write(data.decode(self.encoding, errors="replace"))
            stream.flush()
            return
        stream.flush()  # what others wrote to it before stays before
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # someone who shares the terminal made it non-blocking
                select.select([], [self._descriptor], [])


def _descriptor_of(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None
