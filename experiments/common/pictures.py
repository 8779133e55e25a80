"""The one style of the analyses' pictures: a table of images, maps laid over them, marks."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ggcf_jax import atomic
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.display import pictures

_COLUMN_WIDTH = 3.2  # inches
_DPI = 100
_MARK = '#0a84ff'


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture of the table.

    Attributes:
        title: above it, of one line or more.
        picture: uint8 [h, w, 3].
        heat: float [rows, columns] in 0..1, laid over the picture, brightest at 1; or None.
        stride: pixels a position of `heat`; position i lies on pixel stride * i.
        mark: (y, x) of a pixel to be marked by a cross, or None.
        box: (top, left, bottom, right) in pixels of a rectangle, or None.
    """

    title: str
    picture: np.ndarray
    heat: np.ndarray | None = None
    stride: int = 1
    mark: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None


def draw(
    path: pathlib.Path,
    table: Sequence[Sequence[Cell | None]],
    legend: Mapping[str, pictures.Color] | None = None,
) -> None:
    """Writes a table of cells as a PNG, whole or not at all; None leaves a place empty.

    Args:
        path: of the PNG; its folder is made.
        table: rows of equally many cells; all pictures of a row have one size.
        legend: names of colours, shown below.
    """
    columns = len(table[0])
    heights = []
    for row in table:
        height, width = next(cell.picture.shape[:2] for cell in row if cell is not None)
        lines = max(1 + cell.title.count('\n') for cell in row if cell is not None)
        heights.append(_COLUMN_WIDTH * height / width + 0.2 + 0.15 * lines)
    below = 0.4 if legend else 0.0
    figure = Figure((columns * _COLUMN_WIDTH, sum(heights) + below), dpi=_DPI, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(table), columns, squeeze=False, height_ratios=heights)
    for axis, cell in zip(axes.flat, (cell for row in table for cell in row), strict=True):
        axis.set_axis_off()
        if cell is not None:
            _draw_cell(axis, cell)
    if legend:
        figure.legend(
            handles=[
                Patch(color=np.asarray(color) / 255, label=name) for name, color in legend.items()
            ],
            loc='outside lower center',
            ncols=min(len(legend), 2 * columns),
            frameon=False,
            fontsize=9,
        )
    save(figure, path)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format='png')


def bars(
    path: pathlib.Path,
    groups: Sequence[str],
    values: Mapping[str, Sequence[Sequence[float]]],
    label: str,
) -> None:
    """Writes a bar chart as a PNG: the mean of each group and name, every value as a dot.

    Args:
        groups: names below the bars.
        values: name of the bar -> for each group the values of the seeds, [] for no bar.
        label: of the vertical axis.
    """
    width = 0.8 / len(values)
    entry = 0.6 + 0.075 * max(map(len, values))  # inches of one name in the legend
    across = max(entry, 1.5 + max(1.6, 0.4 * len(values)) * len(groups))
    columns = min(3, int(across / entry))
    size = (across, 3.2 + 0.2 * -(-len(values) // columns))
    figure = Figure(size, dpi=_DPI, layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for i, (name, found) in enumerate(values.items()):
        at = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
        means = [np.mean(seeds) if len(seeds) else np.nan for seeds in found]
        axis.bar(at, means, 0.9 * width, label=name, color=f'C{i}', alpha=0.7)
        for x, seeds in zip(at, found):
            axis.plot([x] * len(seeds), seeds, '.', color='black', markersize=4)
    axis.set_xticks(range(len(groups)), groups, fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    axis.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=columns, frameon=False, fontsize=9)
    save(figure, path)


def dimmed(image: np.ndarray) -> np.ndarray:
    """The image in dark grey, uint8 [h, w, 3], for a map to be laid over."""
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] // 2, 3, axis=2)


def painted(labels: np.ndarray, dataset) -> np.ndarray:
    """A map of train ids in the colours of the data set, uint8 [h, w, 3]."""
    return pictures.colorize(labels, dataset.colors, IGNORE)


def _draw_cell(axis, cell: Cell) -> None:
    height, width = cell.picture.shape[:2]
    axis.imshow(cell.picture)
    if cell.heat is not None:
        n, m = cell.heat.shape
        edges = np.array([-0.5, m - 0.5, n - 0.5, -0.5]) * cell.stride
        axis.imshow(
            cell.heat,
            cmap='inferno',
            vmin=0,
            vmax=1,
            extent=edges,
            alpha=np.sqrt(cell.heat),
            interpolation='nearest',
        )
    if cell.mark is not None:
        y, x = cell.mark
        axis.plot(x, y, '+', color='white', markersize=13, markeredgewidth=3)
        axis.plot(x, y, '+', color=_MARK, markersize=11, markeredgewidth=1.5)
    if cell.box is not None:
        top, left, bottom, right = cell.box
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        for color, style in (('black', 'solid'), ('white', 'dashed')):
            axis.add_patch(
                Rectangle(
                    corner, *size, fill=False, edgecolor=color, linestyle=style, linewidth=1.3
                )
            )
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_title(cell.title, fontsize=9)
