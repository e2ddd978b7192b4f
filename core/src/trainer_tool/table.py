"""Tables in a terminal, of words that others have written."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.writers.output import printing

__all__ = ["clean", "print_rows"]


def print_rows(rows: Iterable[tuple[str, ...]], *, header: bool) -> None:
    """Prints `rows` in columns; a cell that is too long is folded.

    Args:
        header: the first row is one.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for number, row in enumerate(rows):
        style = "bold" if header and number == 0 else ""
        table.add_row(*(Text(clean(cell), overflow="fold") for cell in row), style=style)
    with printing():
        Console(highlight=False).print(table)


def clean(text: str) -> str:
    """Makes control characters visible: words of a file must steer neither terminal nor page."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
