"""Draws docs/images/attention_scaling.png: time and memory of the attention benchmark.

python -m experiments.benchmark.plot FOLDER_OF_A_BENCHMARK_RUN
"""

import pathlib
import sys

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

IMAGES = pathlib.Path(__file__).parent / 'images'


def draw_scaling(folder, path):
    """Time and temporary memory against positions, from the scaling cases of the benchmark."""
    from experiments.benchmark.tables import read

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
    draw_scaling(sys.argv[1], IMAGES / 'attention_scaling.png')
