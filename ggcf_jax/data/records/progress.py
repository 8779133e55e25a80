"""Progress of work on all images of a data set, for whoever waits for it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_SECONDS_BETWEEN_LINES = 10


@contextlib.contextmanager
def shown(
    verb: str, past: str, name: str, total: int, unit: Literal['images', 'bytes'] = 'images'
) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, elsewhere a line every ten seconds; a line at the end.

    Args:
        verb: what is done, such as 'preparing'.
        past: what was done, such as 'prepared'.
        name: name of the images.
        total: number of images.
        unit: what is counted; bytes are shown as megabytes and with their rate.

    Yields:
        A function to call with the number of images that were done since the last call.
    """
    console = Console()
    began = last_line = time.monotonic()
    done = 0
    columns = (
        TextColumn(f'{verb} {{task.description}}'),
        BarColumn(bar_width=None),
        MofNCompleteColumn() if unit == 'images' else DownloadColumn(),
        *([] if unit == 'images' else [TransferSpeedColumn()]),
        TextColumn('left'),
        TimeRemainingColumn(),
    )

    def amount(number: int) -> str:
        return f'{number} images' if unit == 'images' else f'{number / 1e6:.1f} MB'

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    bar = Progress(*columns, console=console, expand=True) if console.is_terminal else None
    if bar:
        task = bar.add_task(name, total=total)
    else:
        say(f'{verb} {name}: {amount(total)}')

    def advance(images: int) -> None:
        nonlocal done, last_line
        done += images
        if bar:
            bar.advance(task, images)
        elif time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            say(f'{verb} {name}: {done if unit == "images" else amount(done)} of {amount(total)}')

    with bar or contextlib.nullcontext():
        yield advance
    seconds = time.monotonic() - began
    rate = '' if unit == 'images' else f', {done / 1e6 / max(seconds, 1e-3):.0f} MB/s'
    say(f'{past} {amount(done)} of {name} in {seconds:.0f} s{rate}')
