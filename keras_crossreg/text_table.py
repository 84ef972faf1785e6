"""A table on the console, as `model.summary()` prints one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Keras prints `model.summary()` with rich, and brings it.
import rich.box
import rich.console
import rich.markup
import rich.table


def print_table(
    title: str,
    columns: dict[str, str],
    rows: Iterable[tuple[str, ...]],
    empty: str,
    line_length: int | None = None,
    print_fn: Any = None,
) -> None:
    """Prints straight to the console, which in a notebook shows a rich table.

    Args:
        title: String.
        columns: Their names, and how each is justified.
        rows: The texts of each row.
        empty: What to say below a table without a row.
        line_length: Integer, characters in a line. Defaults to the width of
            the console, 80 with `print_fn`.
        print_fn: Callable that gets plain text instead.
    """
    table = rich.table.Table(
        title=rich.markup.escape(title),
        title_justify="left",
        title_style="bold",
        box=rich.box.HEAVY_HEAD,
        show_lines=True,
    )
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(rich.markup.escape, row))
    console = rich.console.Console(
        highlight=False,
        width=line_length or (80 if print_fn else None),
        # `print_fn` gets plain text.
        force_jupyter=False if print_fn else None,
        color_system=None if print_fn else "auto",
    )
    if print_fn:
        console.begin_capture()
    console.print(table)
    if not table.row_count:
        console.print(empty)
    if print_fn:
        print_fn(console.end_capture())
