"""What a person sees of running simulations, on standard error: a bar on a terminal, else plain lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from assay.simulations.sweep import Event
from assay.simulations.wording import duration

__all__ = ["shown"]


@contextlib.contextmanager
def shown() -> Iterator[Callable[[Event], None]]:
    """Show how far a simulation is, and about how long the rest takes."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: _line(event, lambda words: console.print(words, markup=False, soft_wrap=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        number = bar.add_task("", total=None, left="")

        def show(event: Event) -> None:
            left = "" if event.left_s is None else f"about {duration(event.left_s)} left"
            bar.update(number, total=event.cells, completed=event.done, left=left, description=event.words)
            if event.finished is not None and event.cells > 1:
                bar.console.print(event.words, markup=False, highlight=False, soft_wrap=True)

        yield show


def _line(event: Event, say: Callable[[str], None]) -> None:
    """Say a step of a single simulation, of several ones only what has become of a cell."""
    if event.cells == 1:
        say(event.words)
    elif event.major:
        left = "" if event.left_s is None else f", about {duration(event.left_s)} left"
        say(f"{event.done} of {event.cells} cells{left}: {event.words}")
