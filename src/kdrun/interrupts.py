"""SIGINT and SIGTERM: the first one asks to stop after this step, a second SIGINT stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from kdrun.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h"


class Stop:
    """Whether a signal asked to stop, and which.

    ``waits`` is true while there is something to save; otherwise a signal ends the process at once, since what is
    written is whole at any moment.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.waits = False

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        assert self.signal is not None
        return 128 + self.signal

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Wait no longer than the block, however it ends; raises ``Interrupted`` where a signal came meanwhile."""
        try:
            yield
        finally:
            self.waits = False
        self.heed("stopped; what was finished is stored, and the same command goes on from here")

    def heed(self, text: str) -> None:
        """Raises ``Interrupted`` where a signal came."""
        if self.signal is not None:
            raise Interrupted(text, self.exit_code)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if not self.waits or (self.signal is not None and number == signal.SIGINT):
            _leave(number)
        self.signal = signal.Signals(number)
        with suppress(OSError):
            os.write(2, f"\n{self.signal.name}: saving after this step (Ctrl-C: stop at once)\n".encode())


def leave_on_signals() -> None:
    """End the process at a signal: before a training there is nothing to save, and torch aborts inside its import."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: _leave(number))


def _leave(number: int) -> None:
    """End the process at once, with a word; a bar that it cuts off had hidden the cursor of the terminal."""
    cursor = SHOW_CURSOR if os.isatty(2) else ""
    with suppress(OSError):  # whoever read it may be gone
        os.write(
            2, f"{cursor}\n{signal.Signals(number).name}: stopped; what was finished is stored\n".encode()
        )
    os._exit(128 + number)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a ``Stop`` while the block runs."""
    stop = Stop()
    before = {number: signal.signal(number, stop._ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
