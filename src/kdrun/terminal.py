"""Results on stdout: tables that fit the terminal, and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdrun.errors import printable


def print_table(title: str, head: list[str], lines: list[list[str]], keys: int) -> None:
    """A table; on a terminal that is too narrow in pieces, each behind the first ``keys`` columns."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_width(widths))
    console.print(title, style="bold", markup=False, soft_wrap=True)
    for columns in _pieces(widths, keys, console.width):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number in columns:
            left = number <= keys or head[number] == "values"
            table.add_column(head[number], justify="left" if left else "right", overflow="fold")
        for line in lines:
            table.add_row(*(escape(line[number]) for number in columns))
        console.print(table)


def print_sentences(sentences: list[str]) -> None:
    """A line each, broken between words where a terminal is narrower."""
    console = Console(highlight=False)
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=not console.is_terminal)


def _width(widths: list[int]) -> int:
    """Of columns that stand two blanks apart."""
    return sum(widths) + 2 * (len(widths) - 1)


def _pieces(widths: list[int], keys: int, room: int) -> Iterator[list[int]]:
    """The columns, as many at a time as there is room for, the ``keys`` first ones each time."""
    piece = list(range(keys))
    for number in range(keys, len(widths)):
        if len(piece) > keys and _width([widths[n] for n in [*piece, number]]) > room:
            yield piece
            piece = list(range(keys))
        piece.append(number)
    yield piece
