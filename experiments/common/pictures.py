"""The one style of the experiments' pictures: tables of images with heat maps, and bar charts."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ggcf_jax import atomic
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display import pictures

_COLUMN_WIDTH = 3.2  # inches
_DPI = 100
_MARKER = '#0a84ff'


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image of the table.

    Attributes:
        title: text above the image, of one line or more.
        image: RGB pixels.
        heat: map in 0..1 that is laid over the image, brightest at 1; or None.
        stride: pixels from one position of `heat` to the next.
        first: pixel that the first position of `heat` lies on.
        marker: pixel that is marked by a cross, or None.
        box: (top, left, bottom, right) of a rectangle in pixels, or None.
    """

    title: str
    image: UInt8[np.ndarray, 'h w 3']
    heat: Float[np.ndarray, 'rows columns'] | None = None
    stride: int = 1
    first: float = 0.0
    marker: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None


def draw_table(
    path: pathlib.Path,
    table: Sequence[Sequence[Cell | None]],
    legend: Mapping[str, pictures.Color] | None = None,
) -> None:
    """Draws a table of images and writes it as a PNG file, atomically.

    Args:
        path: PNG file to write; its folder is created.
        table: rows of equally many cells; all images of a row have one size, None leaves a place
            empty.
        legend: colours to explain below the table, by name.
    """
    columns = len(table[0])
    heights = []
    for row in table:
        height, width = next(cell.image.shape[:2] for cell in row if cell is not None)
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
                Patch(color=(r / 255, g / 255, b / 255), label=name)
                for name, (r, g, b) in legend.items()
            ],
            loc='outside lower center',
            ncols=min(len(legend), 2 * columns),
            frameon=False,
            fontsize=9,
        )
    save(figure, path)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as a PNG file, atomically; the folder is created."""
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format='png')


def draw_bars(
    path: pathlib.Path,
    groups: Sequence[str],
    values: Mapping[str, Sequence[Sequence[float]]],
    label: str,
) -> None:
    """Draws a bar chart and writes it as a PNG file: means as bars, single values as dots.

    Args:
        path: PNG file to write; its folder is created.
        groups: names below the groups of bars.
        values: name in the legend -> for each group the values of the seeds, [] for no bar.
        label: label of the vertical axis.
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
        means = [float(np.mean(seeds)) if len(seeds) else np.nan for seeds in found]
        axis.bar(at, means, 0.9 * width, label=name, color=f'C{i}', alpha=0.7)
        for x, seeds in zip(at, found):
            axis.plot([x] * len(seeds), seeds, '.', color='black', markersize=4)
    axis.set_xticks(range(len(groups)), groups, fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    axis.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=columns, frameon=False, fontsize=9)
    save(figure, path)


def dim(image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w 3']:
    """Returns the image in dark grey, as a background for heat maps."""
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] // 2, 3, axis=2)


def colorize(labels: UInt8[np.ndarray, 'h w'], dataset: Dataset) -> UInt8[np.ndarray, 'h w 3']:
    """Returns a map of train ids in the colours of the data set."""
    return pictures.colorize(labels, dataset.colors, IGNORE)


def _draw_cell(axis: Axes, cell: Cell) -> None:
    height, width = cell.image.shape[:2]
    axis.imshow(cell.image)
    if cell.heat is not None:
        n, m = cell.heat.shape
        top_left = cell.first - 0.5 * cell.stride
        bottom_right = (top_left + m * cell.stride, top_left + n * cell.stride)
        axis.imshow(
            cell.heat,
            cmap='inferno',
            vmin=0,
            vmax=1,
            extent=(top_left, *bottom_right, top_left),
            alpha=np.sqrt(cell.heat),
            interpolation='nearest',
        )
    if cell.marker is not None:
        y, x = cell.marker
        axis.plot(x, y, '+', color='white', markersize=13, markeredgewidth=3)
        axis.plot(x, y, '+', color=_MARKER, markersize=11, markeredgewidth=1.5)
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
