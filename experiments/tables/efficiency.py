"""What context modules cost on a map, for any heads: the "Efficiency" paragraph of section 4.

    python -m experiments.tables.efficiency --size=128x256 full local:8,16,24,grid:8,16,24

Writes <out>.csv and <out>.md. FLOPs are 2 a multiply-add, in Gi (2^30), for one image:

pairs        scores and weighted sums, of the pairs of the graphs alone
projections  the 1x1 convolutions theta and phi of each head, g of all, W of each head
executed     scores and weighted sums as the engine computes them, masked ones too, on CPU and
             with the tiles for accelerators
time         of the engine on this machine, forward, without projections; best of --repeats
temporaries  that it needs, as compiled for this machine
"""

import argparse
import csv
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ahead import flops
from experiments.common import paper
from ggcf_jax.attention import attend, graphs

GI = 2**30
EXPLANATION = """
The paper's 520 for FULL are its pairs and projections together (with 256 channels, and 256 for
keys and values together); its 63 for {LOCAL, GRID}_{8,16,24} are the pairs alone. With the
projections of six heads that module costs what the column "sum" says: still far less than FULL.
"""


def neighbours(heads: tuple, h: int, w: int) -> float:
    """Average number of neighbours of a position, over all heads together."""
    return sum(graph.pairs(h, w) for graph in heads) / (h * w)


def pair_flops(heads: tuple, h: int, w: int, key_channels: int, value_channels: int) -> int:
    """FLOPs of scores and weighted sums, exact pairs only."""
    return 2 * (key_channels + value_channels) * sum(graph.pairs(h, w) for graph in heads)


def projection_flops(
    heads: tuple, h: int, w: int, channels: int, key_channels: int, value_channels: int
) -> int:
    """FLOPs of theta_k and phi_k, of g, which all heads share, and of W_k (Eq. 3)."""
    outputs = 2 * len(heads) * key_channels + value_channels + len(heads) * value_channels
    return 2 * h * w * channels * outputs


def executed_flops(
    heads: tuple, h: int, w: int, key_channels: int, value_channels: int, platform: str
) -> int:
    """FLOPs of scores and weighted sums as the engine executes them on 'cpu', 'gpu' or 'tpu'."""
    device = jax.sharding.AbstractDevice(platform, None, platform)
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
    shapes = _shapes(heads, h, w, key_channels, value_channels)
    with jax.sharding.use_abstract_mesh(mesh):
        return flops.count(jax.make_jaxpr(_attention(heads))(*shapes))


def measure(
    heads: tuple, h: int, w: int, key_channels: int, value_channels: int, repeats: int
) -> tuple[float, int]:
    """Seconds of the fastest forward call on this machine (nan without repeats), temporaries."""
    shapes = _shapes(heads, h, w, key_channels, value_channels)
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.standard_normal(shape.shape) * key_channels**-0.25, shape.dtype)
        for shape in shapes
    ]
    program = jax.jit(_attention(heads)).lower(*shapes).compile()
    best = math.nan
    for i in range(repeats and repeats + 1):  # the first is for warming up
        began = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        best = np.nanmin([best, time.perf_counter() - began]) if i else best
    return float(best), program.memory_analysis().temp_size_in_bytes


def _shapes(heads: tuple, h: int, w: int, key_channels: int, value_channels: int) -> list:
    channels = ((len(heads), key_channels), (len(heads), key_channels), (1, value_channels))
    return [jax.ShapeDtypeStruct((1, h, w, *c), jnp.float32) for c in channels]


def _attention(heads: tuple):
    """All heads, as `models.ggcf.GGCF` calls them."""

    def attention(q, k, v):
        return [
            attend(q[:, :, :, i : i + 1], k[:, :, :, i : i + 1], v, _bound(graph))
            for i, graph in enumerate(heads)
        ]

    return attention


def _bound(graph):
    return graph.bind(graph.init(jax.random.key(0))) if isinstance(graph, graphs.Learned) else graph


def row(text: str, h: int, w: int, channels: int, key: int, value: int, repeats: int) -> dict:
    """One line of the table, for heads given as a text."""
    heads = graphs.parse(text)
    pairs = pair_flops(heads, h, w, key, value) / GI
    projections = projection_flops(heads, h, w, channels, key, value) / GI
    seconds, temporaries = measure(heads, h, w, key, value, repeats)
    return {
        'heads': text,
        'neighbours': f'{neighbours(heads, h, w):.1f}',
        'pairs Gi': f'{pairs:.1f}',
        'projections Gi': f'{projections:.1f}',
        'sum Gi': f'{pairs + projections:.1f}',
        'paper': str(paper.EFFICIENCY.get(text, '')) if (h, w) == (128, 256) else '',
        'executed Gi, CPU': f'{executed_flops(heads, h, w, key, value, "cpu") / GI:.1f}',
        'executed Gi, GPU/TPU': f'{executed_flops(heads, h, w, key, value, "gpu") / GI:.1f}',
        'time ms': f'{seconds * 1e3:.0f}' if repeats else '',
        'temporaries MiB': f'{temporaries / 2**20:.0f}',
    }


def markdown(rows: list[dict], title: str) -> str:
    """The rows as a table under a title, and what it says about the paper's numbers."""
    names = list(rows[0])
    lines = [title, '', f'| {" | ".join(names)} |', '|---' + '|--:' * (len(names) - 1) + '|']
    lines += [f'| {" | ".join(r.values())} |' for r in rows]
    return '\n'.join([*lines, EXPLANATION if any(r['paper'] for r in rows) else ''])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'heads', nargs='*', default=list(paper.EFFICIENCY), help='as config.model.heads'
    )
    parser.add_argument('--size', default='128x256', help='of the feature map')
    parser.add_argument('--channels', default=256, type=int, help='of x and y')
    parser.add_argument('--key_channels', default=128, type=int)
    parser.add_argument('--value_channels', default=128, type=int)
    parser.add_argument('--repeats', default=3, type=int, help='timed calls; 0: no timing')
    parser.add_argument('--out', default='runs/efficiency', type=pathlib.Path)
    options = parser.parse_args()
    try:
        h, w = map(int, options.size.split('x'))
        for text in options.heads:
            graphs.parse(text)
    except ValueError as error:
        parser.error(f'{error}; sizes are written 128x256, heads local:8,16,24,grid:8,16,24')
    widths = (options.channels, options.key_channels, options.value_channels)
    rows = [row(text, h, w, *widths, options.repeats) for text in options.heads]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix('.csv').open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    device = f'{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}'
    text = markdown(rows, f'Map {h} x {w}, channels {widths}; float32; {device}.')
    options.out.with_suffix('.md').write_text(text, encoding='utf-8')
    print(text)


if __name__ == '__main__':
    main()
