"""Console output of a run: progress, throughput and the table of an evaluation.

On a terminal there is a live progress bar; elsewhere (log file, batch queue, CI) a line an update,
and during longer work on images one every ten seconds.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Live
from rich.table import Table
from rich.text import Text

# More classes than this are listed in two columns side by side.
_ROWS = 12
# More classes than this are longer than a screen: so many of the lowest and highest are listed.
_MOST, _ENDS = 50, 15
_NAMED = 10  # number of absent classes that are named
# Seconds between two lines about work that goes on, where there is no terminal.
_SILENCE = 10.0


class Progress:
    """Progress of training and of work on many images, with messages in between.

    Use as a context manager. The live bar of the training appears with the first update.
    """

    def __init__(self, total_steps: int = 0, start_step: int = 0, console: Console | None = None):
        """
        Args:
            total_steps: step at which training ends; 0 where nothing is trained.
            start_step: step that training starts or resumes from; the time left is estimated from
                there.
            console: where to write; standard output by default.
        """
        self._console = Console() if console is None else console
        self._total = total_steps
        self._start = start_step
        self._started = time.monotonic()
        self._compiled = 0.0  # seconds spent in `compiling`
        self._told = 0.0  # of them, those that `compile_seconds` has returned
        # Time and step of the first update; the time before it includes compilation.
        self._steady: tuple[float, int] | None = None
        self._train: TaskID | None = None
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                TextColumn('{task.description}'),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn('{task.fields[status]}'),
                TimeElapsedColumn(),
                console=self._console,
                expand=True,
            )

    def __enter__(self) -> 'Progress':
        self._started = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print(self, *objects: RenderableType, style: str | None = None) -> None:
        """Prints text (markup is not interpreted) or rich renderables; safe while the bar is live.

        Text is not wrapped, so that a log line stays one line wherever it is read.

        Args:
            objects: what to print, separated by spaces.
            style: rich style of the text, such as 'yellow'.
        """
        self._console.print(*objects, style=style, markup=False, highlight=False, soft_wrap=True)

    def update(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        images_per_sec: float | None,
        *,
        utilisation: float | None = None,
    ) -> None:
        """Shows the state of the training.

        Args:
            step: number of training steps done.
            loss: mean training loss since the last update.
            learning_rate: learning rate of this step.
            images_per_sec: throughput in images per second; None where it is not known yet.
            utilisation: share of the devices' peak FLOPs that the network takes, in [0, 1]; None
                where the peak is not known.
        """
        left = self._seconds_left(step)
        rate = '' if images_per_sec is None else f'  {images_per_sec:.3g} images/s'
        rate += '' if utilisation is None else f'  MFU {utilisation:.1%}'
        status = f'loss {loss:.4f}  lr {learning_rate:.3g}{rate}  left {_clock(left)}'
        if self._live is None:
            width = len(str(self._total))
            self.print(f'step {step:{width}d}/{self._total}  {status}')
            return
        if self._train is None:
            self._train = self._live.add_task('train', total=self._total, status='')
        self._live.update(self._train, completed=step, status=status)

    def evaluating(
        self, total: int, split: str = 'validation'
    ) -> contextlib.AbstractContextManager[Callable[[float], None]]:
        """Shows the evaluation of the `total` images of a split; see `working`."""
        return self.working('evaluate', 'evaluated', total, split)

    @contextlib.contextmanager
    def working(
        self, verb: str, past: str, total: int, name: str, *, of: str = 'images'
    ) -> Iterator[Callable[[float], None]]:
        """Shows work on many images, and prints a line with their number and the time at the end.

        Rate and time left do not count the time that was spent in `compiling`.

        Args:
            verb: what is done, such as 'predict'.
            past: what was done, such as 'predicted'.
            total: number of images.
            name: name of the images, such as that of a split.
            of: what is counted.

        Yields:
            A function to call with the number of images that were finished since the last call;
            of a large image it may be a share, such as 0.25.
        """
        began = told = time.monotonic()
        compiled = self._compiled
        done = 0.0
        live = self._live
        task = None if live is None else live.add_task(f'{verb} {name}', total=total, status='')

        def advance(images: float) -> None:
            nonlocal done, told
            done += images
            now = time.monotonic()
            if live is None and now - told < _SILENCE:
                return
            told = now
            rate = done / max(now - began - (self._compiled - compiled), 1e-9)
            left = _clock(max(total - done, 0) / rate if rate else None)
            status = f'{rate:.3g} {of}/s  left {left}'
            if live is None:
                share = f'{done / total:.0%}' if total else ''
                # A sum of shares such as 3 x 1/3 may lie a rounding error below its number.
                self.print(f'{verb} {name}: {int(done + 1e-6)} of {total} ({share})  {status}')
            elif task is not None:
                live.update(task, completed=done, status=status)

        try:
            yield advance
        finally:
            if live is not None and task is not None:
                live.remove_task(task)
        seconds = time.monotonic() - began
        self.print(f'{past} {round(done)} {of} of {name} in {seconds:.1f} s')

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Says that a program is being compiled, and how long that took.

        Args:
            what: what the program is for, such as 'the training step'.
        """
        began = time.monotonic()
        live = self._live
        task = None
        if live is None:
            self.print(f'compiling {what}')
        else:
            task = live.add_task(f'compiling {what}', total=None, status='')
        try:
            yield
        finally:
            if live is not None and task is not None:
                live.remove_task(task)
            self._compiled += time.monotonic() - began
        self.print(f'compiled {what} in {time.monotonic() - began:.1f} s')

    def compile_seconds(self) -> float:
        """Seconds that were spent in `compiling` since the last call."""
        seconds, self._told = self._compiled - self._told, self._compiled
        return seconds

    def _seconds_left(self, step: int) -> float | None:
        """Estimate from the average since the first update, with evaluations and checkpoints."""
        now = time.monotonic()
        since, first = self._steady or (self._started, self._start)
        if self._steady is None:
            self._steady = (now, step)
        if step <= first:
            return None
        if first == self._start:
            since += self._compiled
        return (now - since) / (step - first) * max(self._total - step, 0)


def facts(rows: Collection[tuple[str, str]]) -> str:
    """Facts, each (label, text), a line each with the texts below each other."""
    width = max((len(label) for label, _ in rows), default=0)
    return '\n'.join(f'{label:<{width}}  {text}' for label, text in rows)


def iou_table(
    classes: Collection[str],
    iou: Collection[float | None],
    miou: float | None,
    previous: Collection[float | None] | None = None,
    entry: str = 'class',
) -> Table:
    """Per-class IoU of an evaluation as a rich table, to be printed by `Progress.print`.

    Of more than 50 classes the 15 lowest and the 15 highest are listed; the report has all of them.

    Args:
        classes: name of each class, or of another `entry` such as category.
        iou: IoU of each class, in [0, 1]; NaN or None for a class in neither ground truth nor
            prediction.
        miou: mean IoU over the classes that are present.
        previous: `iou` of the evaluation before; adds a column with the change since then.
        entry: heading of the column of names.

    Raises:
        ValueError: the lengths differ.
    """
    for name, values in (('iou', iou), ('previous', previous)):
        if values is not None and len(values) != len(classes):
            raise ValueError(f'{name} has {len(values)} values for {len(classes)} classes')
    classes, iou = list(classes), [_known(value) for value in iou]
    before = [None if value is None else _known(value) for value in previous or [None] * len(iou)]
    absent = [name for name, value in zip(classes, iou) if value is None]

    title = Text(
        ('mIoU ' if entry == 'class' else f'mean {entry} IoU ') + _fixed(_known(miou), 4),
        style='bold',
    )
    present = [value for value in before if value is not None]
    mean = _known(miou)
    if present and mean is not None:
        title.append(' ').append_text(_change(mean - sum(present) / len(present), 4))
    captions = []
    shown = list(range(len(classes)))
    if len(classes) > _MOST:
        known = [index for index in shown if iou[index] is not None]
        known.sort(key=lambda index: iou[index] or 0.0)
        ends = min(_ENDS, -(-len(known) // 2))
        shown = [*known[:ends], *known[::-1][: len(known) - ends][:ends]]
        captions.append(f'lowest and highest of {len(classes)} classes; the report has all of them')
    if absent:
        more = f' and {len(absent) - _NAMED} more' if len(absent) > _NAMED else ''
        captions.append(
            f'absent: {", ".join(absent[:_NAMED])}{more} (in neither ground truth nor prediction; '
            'excluded from the mean)'
        )
    caption = Text('\n'.join(captions)) if captions else None
    table = Table(title=title, caption=caption, title_justify='left', caption_justify='left')
    halves = 2 if len(shown) > _ROWS else 1
    for _ in range(halves):
        table.add_column(entry, overflow='fold')
        table.add_column('IoU', justify='right', no_wrap=True)
        if previous is not None:
            table.add_column('change', justify='right', no_wrap=True)
    rows = -(-len(shown) // halves)
    for row in range(rows):
        cells = []
        for index in shown[row::rows]:
            cells += [Text(classes[index]), _cell(iou[index])]
            if previous is not None:
                now, then = iou[index], before[index]
                cells.append(Text('') if now is None or then is None else _change(now - then, 3))
        table.add_row(*cells)
    return table


def class_table(
    classes: Sequence[str], columns: Mapping[str, Mapping[str, float | None]], miou: float
) -> Table:
    """Several metrics of each class as a rich table, to be printed by `Progress.print`.

    Args:
        classes: name of each class.
        columns: heading -> value of each class by its name, in [0, 1]; None where it is undefined.
        miou: mean IoU over the classes that are present.
    """
    title = Text(f'mIoU {_fixed(_known(miou), 4)}', style='bold')
    table = Table(title=title, title_justify='left')
    table.add_column('class', overflow='fold')
    for heading in columns:
        table.add_column(heading.replace('_', ' '), justify='right', no_wrap=True)
    for name in classes:
        cells = (_cell(_known(values[name])) for values in columns.values())
        table.add_row(Text(name), *cells)
    return table


def metrics_line(values: Mapping[str, float]) -> str:
    """The metrics of an evaluation in one line, but for the mIoU, which is the table's title.

    Args:
        values: value of each metric by its name; NaN where it is undefined.
    """
    return ', '.join(
        f'{name.replace("_", " ")} {_fixed(_known(value), 4)}'
        for name, value in values.items()
        if name != 'miou'
    )


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _fixed(value: float | None, digits: int) -> str:
    return 'undefined' if value is None else f'{value:.{digits}f}'


def _cell(value: float | None) -> Text:
    return Text('absent', style='dim') if value is None else Text(_fixed(value, 3))


def _change(value: float, digits: int) -> Text:
    text = f'{value:+.{digits}f}'
    if float(text) == 0:
        return Text(text.replace('-', '+'), style='dim')
    return Text(text, style='green' if value > 0 else 'red')


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return '-:--:--'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}'
