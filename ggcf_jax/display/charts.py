"""Charts of the report: confusion matrix, IoU of the classes, curves over the training step.

They are matplotlib figures drawn without pyplot and returned as SVG bytes. Their text and lines use
`currentColor`, so that they follow the colour of the page that they are placed in. matplotlib is
imported when something is drawn: every start of a program would wait for it.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Color = tuple[int, int, int]
_Draw = Callable[['Figure'], None]

_INK = '#010203'  # Unlikely as a class colour; becomes currentColor in the SVG.
_ACCENT = '#3b82f6'
_CYCLE = [_ACCENT, '#f59e0b', '#10b981', '#ef4444', '#8b5cf6']
_STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'ggcf_jax',
    'font.family': 'sans-serif',
    'text.parse_math': False,  # A class name may contain a dollar sign.
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.6,
    **dict.fromkeys(
        ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), _INK
    ),
}


def confusion_chart(matrix: Int[np.ndarray, 'classes classes'], classes: Sequence[str]) -> bytes:
    """SVG of a confusion matrix, each row in percent of its pixels.

    With up to 24 classes every cell of 1 % and more has its number. Rows without pixels stay empty.

    Args:
        matrix: pixels by (ground truth, prediction).
        classes: name of each class.
    """
    return _svg(*_confusion(matrix, classes))


def confusion_png(matrix: Int[np.ndarray, 'classes classes'], classes: Sequence[str]) -> bytes:
    """The chart of `confusion_chart` as a PNG on a white background."""
    return _drawn(*_confusion(matrix, classes), format='png', dpi=200, facecolor='white')


def _confusion(matrix: np.ndarray, classes: Sequence[str]) -> tuple[_Draw, tuple[float, float]]:
    """A function that draws the confusion matrix into a figure, and the figure's size in inches."""
    matrix = np.asarray(matrix, np.float64)
    count = len(classes)
    if matrix.shape != (count, count):
        raise ValueError(f'matrix has shape {list(matrix.shape)} for {count} classes')
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    # The colour's opacity carries the value, so that the page's background is the zero.
    cells = np.zeros((count, count, 4))
    cells[..., :3] = [int(_ACCENT[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    cells[..., 3] = share**0.6
    side = min(max(0.3 * count, 2.5), 9.5)

    def draw(figure: 'Figure') -> None:
        axes = figure.add_subplot()
        axes.imshow(cells, interpolation='nearest')
        font = max(min(8.5, 600 / count), 2.5)
        axes.set_xticks(range(count), classes, rotation=90, fontsize=font)
        axes.set_yticks(range(count), classes, fontsize=font)
        axes.set_xlabel('prediction')
        axes.set_ylabel('ground truth')
        axes.tick_params(length=0)
        for row, column in np.argwhere(share >= 0.01) if count <= 24 else ():
            value = share[row, column]
            axes.text(
                column,
                row,
                f'{100 * value:.0f}',
                ha='center',
                va='center',
                fontsize=min(font, 7),
                color='white' if value > 0.4 else _INK,
            )

    return draw, (side + 1.3, side + 1.3)


def iou_chart(
    classes: Sequence[str], iou: Sequence[float | None], colors: Sequence[Color]
) -> bytes:
    """SVG of horizontal bars, one for the IoU of each class.

    Args:
        classes: name of each class.
        iou: IoU of each class; NaN or None is shown as 'absent'.
        colors: RGB of each bar, 0 to 255.
    """
    values = [np.nan if value is None else float(value) for value in iou]

    def draw(figure: 'Figure') -> None:
        axes = figure.add_subplot()
        axes.barh(
            range(len(classes)),
            np.nan_to_num(values),
            color=[tuple(value / 255 for value in color) for color in colors],
            edgecolor=_INK,
            linewidth=0.5,
            height=0.72,
        )
        for index, value in enumerate(values):
            text = 'absent' if np.isnan(value) else f'{value:.3f}'
            axes.text(np.nan_to_num(value) + 0.01, index, text, va='center', fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=9)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(0, 1.08)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel('IoU')
        axes.grid(axis='x', alpha=0.15)
        axes.set_axisbelow(True)

    return _svg(draw, (6.2, 0.7 + 0.26 * len(classes)))


def curve_chart(
    title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]]
) -> bytes:
    """SVG of one or more curves over the training step.

    Args:
        title: title of the chart.
        curves: name -> (steps, values); a value that is None or not finite leaves a gap. Few points
            are drawn as dots. With more than one curve there is a legend.
    """

    def draw(figure: 'Figure') -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        axes.set_title(title, fontsize=10, loc='left')
        for (name, (steps, values)), color in zip(curves.items(), _CYCLE * len(curves)):
            points = np.asarray([np.nan if v is None else v for v in values], np.float64)
            points[~np.isfinite(points)] = np.nan
            marker = 'o' if np.isfinite(points).sum() < 30 else None
            axes.plot(steps, points, color=color, label=name, linewidth=1.4, marker=marker, ms=3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel('step')
        axes.grid(alpha=0.15)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)

    return _svg(draw, (4.4, 2.7))


def _svg(draw: _Draw, size: tuple[float, float]) -> bytes:
    """Draws into a figure of `size` inches; the same drawing gives the same bytes."""
    text = _drawn(draw, size, format='svg', transparent=True, metadata={'Date': None})
    # Only the element itself: an XML declaration may not stand inside an HTML page.
    return text[text.index(b'<svg') :].replace(_INK.encode(), b'currentColor')


def _drawn(draw: _Draw, size: tuple[float, float], **options: Any) -> bytes:
    """What `savefig` with these options makes of a figure of `size` inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    output = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout='constrained')
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(output, **options)
    return output.getvalue()
