"""Signs of life of long loops: a bar on a terminal, and elsewhere (nohup, a pipe, a batch system) a line each minute.

The lines are logged at level INFO by the logger "jclip", and the first comes after a minute: short work logs nothing.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

INTERVAL = 60.0  # seconds between two lines
_log = logging.getLogger("jclip")


class Progress:
    """The progress of a loop; a context manager.

    Parameters
    ----------
    total : int or None
        How often `update` will count; None if that is not known. Nothing is shown for 0.
    desc : str
        What is counted.
    unit : str
        The unit on the bar, such as " photo"; with "B" numbers are shown as 1.2M.
    initial : int
        What was done before.
    leave : bool
        Whether the bar stays on the terminal after the loop.
    """

    def __init__(self, total: int | None, desc: str, unit: str, initial: int = 0, leave: bool = True):
        self.total, self.desc, self.done, self.initial = total, desc, initial, initial
        self._format = tqdm.format_sizeof if unit == "B" else str
        self._bar = None
        if total != 0 and _shows_bars():
            self._bar = tqdm(
                total=total, desc=desc, unit=unit, initial=initial, leave=leave, unit_scale=unit == "B", file=sys.stderr
            )

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        _lines.begin(self._started)
        return self

    def __exit__(self, *_) -> None:
        _lines.end(time.monotonic())
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1, note: str = "") -> None:
        """Count n more; `note` is shown behind the numbers."""
        self.done += n
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
            return
        now = time.monotonic()
        if self.total != 0 and _lines.is_due(now):
            _log.info("%s", ", ".join(filter(None, [*self._numbers(now - self._started), note])))

    def _numbers(self, seconds: float) -> Iterator[str]:
        """Yield "photographs: 3200 of 50000", "20.0 per second" and "39:00 left", as far as they are known."""
        of = "" if self.total is None else f" of {self._format(self.total)}"
        yield f"{self.desc}: {self._format(self.done)}{of}"
        counted = self.done - self.initial
        if counted and seconds:
            rate = counted / seconds
            yield f"{self._format(round(rate, 1))} per second" if rate >= 1 else f"{1 / rate:.1f} s each"
            if self.total is not None:
                yield f"{tqdm.format_interval(max(0, self.total - self.done) / rate)} left"


def _shows_bars() -> bool:
    """Return whether stderr is a terminal or, as Jupyter's, shows a bar although it says that it is none."""
    return bool(sys.stderr) and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def track(iterable: Iterable, desc: str, unit: str, total: int | None = None, leave: bool = True) -> Iterator:
    """Yield the elements of an iterable and show the progress; `total` is needed if it has no len()."""
    with Progress(len(iterable) if total is None else total, desc, unit, leave=leave) as progress:
        for element in iterable:
            yield element
            progress.update()


class _Lines:
    """Decides when a line is due: after each INTERVAL of work, however many loops the work consists of.

    Work begins with a loop that is not inside or shortly after another one.
    """

    def __init__(self):
        self.n_running, self.last_end, self.last_line = 0, -math.inf, -math.inf

    def begin(self, now: float) -> None:
        if not self.n_running and now - self.last_end > INTERVAL:
            self.last_line = now
        self.n_running += 1

    def end(self, now: float) -> None:
        self.n_running -= 1
        self.last_end = now

    def is_due(self, now: float) -> bool:
        if now - self.last_line < INTERVAL:
            return False
        self.last_line = now
        return True


_lines = _Lines()
