"""Pictures: label maps in their colours, comparison panels, and the charts of the report.

Images are uint8 RGB arrays [h, w, 3]. Charts are matplotlib figures drawn without pyplot and
returned as SVG bytes. Their text and lines use `currentColor`, so that they follow the colour of
the page that they are placed in.
"""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ggcf_jax import atomic

Color = tuple[int, int, int]

_WRONG = (235, 30, 45)
_IGNORED = (128, 128, 128)
_CAPTION = (38, 38, 42)
_SEPARATOR = (255, 255, 255)
_INK = '#010203'  # Unlikely as a class colour; becomes currentColor in the SVG.
_ACCENT = '#3b82f6'
_STYLE = {
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


def colorize(labels: np.ndarray, colors: Sequence[Color], ignore: int) -> np.ndarray:
    """Paints a label map.

    Args:
        labels: integers [h, w], 0..C-1 or `ignore`.
        colors: RGB of the C classes.
        ignore: label painted black.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: another label or shape.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f'labels have shape {list(labels.shape)}; give [h, w]')
    bad = (labels != ignore) & ((labels < 0) | (labels >= len(colors)))
    if bad.any():
        raise ValueError(
            f'label {labels[bad][0]} is neither one of 0..{len(colors) - 1} nor {ignore} (ignore)'
        )
    table = np.asarray([*colors, (0, 0, 0)], np.uint8)
    return table[np.where(labels == ignore, len(colors), labels)]


def panel(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    colors: Sequence[Color],
    ignore: int,
) -> np.ndarray:
    """Input | ground truth | prediction | errors, side by side with captions.

    Errors are red on the dimmed grey image, ignored pixels grey; the caption gives their share of
    the labelled pixels.

    Args:
        image: uint8 [h, w, 3] RGB.
        label: integers [h, w], train ids or `ignore`.
        prediction: integers [h, w], train ids.
        colors: RGB of the classes.
        ignore: label of the pixels that do not count.

    Returns:
        uint8 [h + caption, 4 w + 3 separators, 3].

    Raises:
        ValueError: sizes differ, or a label is out of range.
    """
    image, label, prediction = np.asarray(image), np.asarray(label), np.asarray(prediction)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'image is {image.dtype} {list(image.shape)}; give uint8 [h, w, 3]')
    if not image.shape[:2] == label.shape == prediction.shape:
        raise ValueError(
            f'image {list(image.shape[:2])}, label {list(label.shape)} and prediction '
            f'{list(prediction.shape)} are not of one size'
        )
    counted = label != ignore
    wrong = counted & (label != prediction)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 2
    errors = np.repeat(grey[..., None], 3, axis=2)
    # A quarter of the picture shows through: which object was mistaken stays visible.
    errors[wrong] = (0.75 * np.asarray(_WRONG) + 0.75 * errors[wrong]).clip(0, 255)
    errors[~counted] = _IGNORED
    share = f'errors {100 * wrong.sum() / counted.sum():.1f}%' if counted.any() else 'errors'
    tiles = {
        'input': image,
        'ground truth': colorize(label, colors, ignore),
        'prediction': colorize(prediction, colors, ignore),
        share: errors,
    }
    size = min(image.shape[1] / 480, 2.0)
    bar = max(round(28 * size), 8)
    gap = np.full((image.shape[0] + bar, max(round(3 * size), 1), 3), _SEPARATOR, np.uint8)
    parts = []
    for caption, tile in tiles.items():
        strip = np.full((bar, tile.shape[1], 3), _CAPTION, np.uint8)
        _write(strip, caption, round(8 * size), bar // 2, 0.6 * size, (240, 240, 240))
        parts += [gap, np.concatenate([strip, tile])]
    return np.concatenate(parts[1:], axis=1)


def encode_png(rgb: np.ndarray) -> bytes:
    """PNG of a uint8 [h, w, 3] RGB image."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f'image is {rgb.dtype} {list(rgb.shape)}; give uint8 [h, w, 3]')
    return cv2.imencode('.png', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_png(path: pathlib.Path, rgb: np.ndarray) -> None:
    """Writes a uint8 [h, w, 3] RGB image; the file is whole or not there. Makes the folder."""
    atomic.write(path, encode_png(rgb))


def confusion_chart(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """SVG of a confusion matrix [C, C] (rows: ground truth), each row in percent of its pixels.

    Up to 24 classes every cell of 1 % and more has its number. Rows without pixels stay empty.
    """
    return _svg(*_confusion(matrix, classes))


def confusion_png(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """The chart of `confusion_chart` as a PNG on white."""
    draw, size = _confusion(matrix, classes)
    output = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout='constrained')
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(output, format='png', dpi=200, facecolor='white')
    return output.getvalue()


def _confusion(
    matrix: np.ndarray, classes: Sequence[str]
) -> tuple[Callable[[Figure], None], tuple[float, float]]:
    """What draws the confusion matrix into a figure, and the figure's size in inches."""
    matrix = np.asarray(matrix, np.float64)
    count = len(classes)
    if matrix.shape != (count, count):
        raise ValueError(f'matrix has shape {list(matrix.shape)} for {count} classes')
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    # The colour's opacity carries the value, so that the page's background is the zero.
    cells = np.zeros((count, count, 4))
    cells[..., :3] = matplotlib.colors.to_rgb(_ACCENT)
    cells[..., 3] = share**0.6
    side = min(max(0.3 * count, 2.5), 9.5)

    def draw(figure: Figure) -> None:
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
    """SVG of horizontal per-class IoU bars in the class colours; NaN or None is 'absent'."""
    values = [np.nan if value is None else float(value) for value in iou]

    def draw(figure: Figure) -> None:
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
        title: what is shown.
        curves: name -> (steps, values); a value that is None or not finite leaves a gap. A single
            point is drawn as a dot. With more than one curve there is a legend.
    """

    def draw(figure: Figure) -> None:
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


_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CYCLE = [_ACCENT, '#f59e0b', '#10b981', '#ef4444', '#8b5cf6']


def _write(picture: np.ndarray, text: str, x: int, middle: int, scale: float, color: Color) -> None:
    """Writes one line of text in place, vertically centred."""
    (_, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    thickness = max(round(1.6 * scale), 1)
    at = (x, middle + height // 2)
    cv2.putText(picture, text, at, _FONT, scale, color, thickness, cv2.LINE_AA)


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    """Draws into a figure of `size` inches; the same drawing gives the same bytes."""
    output = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout='constrained')
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(output, format='svg', transparent=True, metadata={'Date': None})
    text = output.getvalue()
    # Only the element itself: an XML declaration may not stand inside an HTML page.
    return text[text.index(b'<svg') :].replace(_INK.encode(), b'currentColor')
