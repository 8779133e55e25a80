"""Draws docs/images/attention_graphs.png: the neighbours of two queries in each graph.

python -m docs.attention_pictures [FOLDER OF A BENCHMARK RUN]
"""

import pathlib
import sys

import jax
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from ggcf_jax import graphs

IMAGES = pathlib.Path(__file__).parent / 'images'


def draw_graphs(path):
    """Neighbours of an interior and a corner query on a map of 17 x 23, one column a graph."""
    h, w = 17, 23
    learned = graphs.Learned()
    learned = learned.bind(jax.tree.map(lambda x: 3 * x, learned.init(jax.random.key(1))))
    columns = [graphs.Full(), graphs.Local(4), graphs.Grid(4), learned]
    figure, axes = plt.subplots(2, len(columns), figsize=(9, 3.6), dpi=80)
    for graph, column in zip(columns, axes.T):
        edges = np.asarray(graph.adjacency(h, w), np.float32)
        for (y, x), axis in zip(((8, 10), (1, 2)), column):
            axis.imshow(edges[y * w + x].reshape(h, w), cmap='Blues', vmin=0)
            axis.plot(x, y, 'r.', markersize=6)
            axis.set_xticks([]), axis.set_yticks([])
        column[0].set_title(str(graph))
    figure.tight_layout()
    figure.savefig(path)


def draw_scaling(folder, path):
    """Time and temporary memory against positions, from the scaling cases of the benchmark."""
    from experiments.benchmark.attention_table import read

    points = []
    for name, result in read(folder).items():
        kind, size, _ = name.split('/')
        if kind.startswith('scaling'):
            n = np.prod([int(x) for x in size.split('x')])
            both = result['both']['ours']['wall'] * 1e3
            points.append((n, both, result['memory'][1] / 2**20))
    n, times, memory = np.array(sorted(points)).T
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), dpi=80)
    for axis, values, label in zip(axes, (times, memory), ('ms, f+b', 'temporaries, MiB')):
        slope = np.polyfit(np.log(n), np.log(values), 1)[0]
        axis.loglog(n, values, 'o-')
        axis.set_xlabel('positions'), axis.set_ylabel(label)
        axis.set_title(f'local:8, exponent {slope:.2f}')
    figure.tight_layout()
    figure.savefig(path)


if __name__ == '__main__':
    IMAGES.mkdir(exist_ok=True)
    draw_graphs(IMAGES / 'attention_graphs.png')
    if len(sys.argv) > 1:  # the folder of a benchmark run
        draw_scaling(sys.argv[1], IMAGES / 'attention_scaling.png')
