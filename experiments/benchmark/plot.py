"""Draws docs/images/attention_scaling.png: time and memory of the attention benchmark.

python -m experiments.benchmark.plot runs/benchmark/attention
"""

import argparse
import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.benchmark import tables
from experiments.common import cli

PICTURE = pathlib.Path(__file__).parents[2] / 'docs' / 'images' / 'attention_scaling.png'


def draw_scaling(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Draws time and temporary memory over the number of positions.

    Args:
        folder: results of `experiments.benchmark.attention`; its scaling cases are drawn.
        path: PNG file to write.
    """
    points = []
    for name, result in tables.read(folder).items():
        kind, size, _ = name.split('/')
        if kind.startswith('scaling'):
            n = np.prod([int(x) for x in size.split('x')])
            both = result['both']['ours']['wall'] * 1e3
            points.append((n, both, result['memory'][1] / 2**20))
    n, times, memory = np.array(sorted(points)).T
    figure = Figure((7, 2.8), dpi=80)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for axis, values, label in zip(axes, (times, memory), ('ms, f+b', 'temporaries, MiB')):
        slope = np.polyfit(np.log(n), np.log(values), 1)[0]
        axis.loglog(n, values, 'o-')
        axis.set_xlabel('positions')
        axis.set_ylabel(label)
        axis.set_title(f'local:8, exponent {slope:.2f}')
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def main(options: argparse.Namespace) -> None:
    """Draws the picture of the documentation."""
    draw_scaling(options.folder, PICTURE)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        'folder', type=cli.path, help='folder that experiments.benchmark.attention wrote'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
