"""What the user sees while something runs: lines and progress on stderr, never on stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdrun.errors import printable

FIGURES = 60
"""Columns of a terminal that the bar, the count, the rate and the time left take."""


@contextmanager
def if_heard() -> Iterator[None]:
    """Print to stderr in the block; where nobody reads it any more (``2>&1 | head``), go on in silence."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Stderr:
    """``sys.stderr`` of the moment, for rich, which would end the process, or a thread, where nobody reads it."""

    def write(self, text: str) -> None:
        """Write, if anybody reads."""
        with if_heard():
            _stderr().write(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        with if_heard():
            _stderr().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(_stderr(), name)


def _stderr() -> TextIO:
    """Beneath what rich puts in its place while a bar is shown."""
    stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return stream


class Console:
    """Messages and progress: bars on a terminal, a plain line an epoch elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._rich = RichConsole(file=cast(TextIO, Stderr()), highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._samples = 0
        self._began = 0.0
        self._title = ""
        self._first = 0.0
        self._said: set[str] = set()

    def say(self, text: str, style: str = "") -> None:
        """A line, unless quiet."""
        if not self.quiet:
            self._print(text, style)

    def say_once(self, *texts: str) -> None:
        """A line of each text that was not said before."""
        for text in texts:
            if text not in self._said:
                self._said.add(text)
                self.say(text)

    def warn(self, text: str) -> None:
        """A line that even ``--quiet`` does not hide."""
        self._print(text, "yellow")

    def _print(self, text: str, style: str) -> None:
        self._rich.print(escape(printable(text, lines=True)), style=style)

    @contextmanager
    def training(self, title: str, steps: int, done: int, epochs: int) -> Iterator[None]:
        """Shows the progress of one group's training: ``steps`` in so many ``epochs``, ``done`` of them before."""
        self._samples, self._began, self._title = 0, time.monotonic(), title
        self._first = done * epochs / steps
        if self.quiet or not self._rich.is_terminal:
            self.say(
                f"{title}: {'from the start' if not done else f'going on at step {done}'} of {steps} steps"
            )
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=15),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._rich, transient=True) as bar:
            self._bar = bar
            self._task = bar.add_task(self._short(title), total=steps, completed=done, rate="")
            try:
                yield
            finally:
                self._bar = None
        self.say(f"{title}: done, {self._rate()}")

    def _short(self, title: str) -> str:
        """As much of a title as there is room for beside the figures, which are never cut."""
        room = max(self._rich.width - FIGURES, 0)
        return escape(title if len(title) <= room else title[: max(room - 1, 0)] + "…")

    def step(self, samples: int) -> None:
        """One step of so many samples is done."""
        self._samples += samples
        if self._bar is not None:
            self._bar.update(self._task, advance=1, rate=self._rate())

    def epoch(self, number: int, epochs: int, text: str) -> None:
        """An epoch is done; ``text`` is what there is to say of it."""
        if self._bar is None and not self.quiet:
            done = number - self._first  # none, where it was stopped after the last step of an epoch
            left = (time.monotonic() - self._began) / done * (epochs - number) if done else None
            ahead = f", {self._rate()}, {left:.0f} s left" if left is not None else ""
            self.say(f"{self._title}: epoch {number}/{epochs}{ahead}{text}")

    def _rate(self) -> str:
        return f"{self._samples / max(time.monotonic() - self._began, 1e-9):,.0f} samples/s"
