"""What a command is doing while its user waits, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def shown(else_lines: bool = False) -> Iterator[Callable[[str], None]]:
    """Gives what shows a text, and for how long the work has gone on, on a terminal.

    `else_lines`: where stderr is none, each text is a line; or else nothing is shown there.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    is_live = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_live) as progress:
        task = progress.add_task("", total=None, visible=False)

        def show(text: str) -> None:
            if else_lines and not is_live:
                print(text, file=sys.stderr, flush=True)
            progress.update(task, description=text, visible=True, refresh=True)

        yield show
