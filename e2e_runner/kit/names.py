"""Names that no other run has used, and that a sweep recognises when they are left behind."""

import os
import re
import threading
import time

from e2e_runner.kit._words import shown

_LONGEST_PREFIX = 29  # what is added takes 34 of the 63 bytes that PostgreSQL keeps of a name
_TICKS = 2**24  # of a second: what six hexadecimal digits count
_OTHER = re.compile(r"[^a-z0-9_]+")
_MARK = re.compile(r"(?<![^_])e2e_(?=\d{8}_)")


def unique_name(prefix: str = "test") -> str:
    """Make a name that is unique, and good for a database, a user, an e-mail address, a file.

    ``signup_e2e_20261121_094345_8f00d1_c41a07`` is `prefix`, the time in UTC, the fraction of the
    second, and a random number. It is an identifier that PostgreSQL takes unquoted, has at most 63
    characters, and sorts behind the names that this process made before with the same prefix. A
    database that is left behind under such a name is known to ``e2e-run sweep-dbs``.

    Of `prefix`, which is put into lower case, runs of characters other than ASCII letters, digits and
    ``_`` become one ``_``, and at most 29 characters are kept. Raises ValueError when no letter or
    digit is left, and TypeError when `prefix` is no text.
    """
    if not isinstance(prefix, str):
        raise TypeError(f'unique_name({shown(prefix, 50)}): a prefix is a text, as in "order"')
    seconds, fraction = divmod(_ticks.next(), _TICKS)
    moment = time.strftime("%Y%m%d_%H%M%S", time.gmtime(seconds))
    # It begins with a letter: with digits alone it would read as the number of a run's attempt.
    random = 0xA00000 + int.from_bytes(os.urandom(4)) % 0x600000
    return f"{_tidy(prefix)}_e2e_{moment}_{fraction:06x}_{random:06x}"


def _tidy(prefix: str) -> str:
    tidy = _OTHER.sub("_", prefix.lower())
    # A name of a run may be the prefix: only the time that is added counts.
    tidy = _MARK.sub("e2e", tidy)
    if tidy[:1].isdigit():
        tidy = f"_{tidy}"
    tidy = tidy[:_LONGEST_PREFIX].rstrip("_")
    if not tidy:
        raise ValueError(
            f"unique_name({prefix!r}): a prefix holds at least one ASCII letter or digit; "
            'other characters become "_"'
        )
    return tidy


class _Ticks:
    """The time in ticks since the epoch; each is later than the one before, whatever the clock does."""

    def __init__(self) -> None:
        self._last = 0
        self.forked()

    def forked(self) -> None:
        """Take a lock of our own: a thread that is not in this process may hold the other."""
        self._lock = threading.Lock()

    def next(self) -> int:
        now = _now() * _TICKS // 10**9
        with self._lock:
            self._last = max(now, self._last + 1)
            return self._last


_now = time.time_ns
_ticks = _Ticks()
os.register_at_fork(after_in_child=_ticks.forked)
