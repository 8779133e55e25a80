"""Progress of work on all images of a data set, for whoever waits for it."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10


@contextlib.contextmanager
def shown(verb: str, past: str, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, elsewhere a line every ten seconds; a line at the end.

    Args:
        verb: what is done, such as 'preparing'.
        past: what was done, such as 'prepared'.
        name: name of the images.
        total: number of images.

    Yields:
        A function to call with the number of images that were done since the last call.
    """
    console = Console()
    began = last_line = time.monotonic()
    done = 0
    columns = (
        TextColumn(f'{verb} {{task.description}}'),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    bar = Progress(*columns, console=console, expand=True) if console.is_terminal else None
    if bar:
        task = bar.add_task(name, total=total)
    else:
        say(f'{verb} {name}: {total} images')

    def advance(images: int) -> None:
        nonlocal done, last_line
        done += images
        if bar:
            bar.advance(task, images)
        elif time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            say(f'{verb} {name}: {done} of {total} images')

    with bar or contextlib.nullcontext():
        yield advance
    say(f'{past} {done} images of {name} in {time.monotonic() - began:.0f} s')
