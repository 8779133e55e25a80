"""Cost of context modules on a map, for any heads: the "Efficiency" paragraph of section 4.

    python -m experiments.tables.efficiency --size=128x256 full local:8,16,24,grid:8,16,24

Writes <out>.csv and <out>.md. FLOPs are 2 per multiply-add, in Gi (2^30), for one image:

pairs        scores and weighted sums, of the edges of the graphs alone
projections  the 1x1 convolutions theta and phi of each head, g of all, W of each head
executed     scores and weighted sums as the engine computes them, masked ones included, on CPU and
             with the block sizes for accelerators
time         of the engine on this machine, forward, without projections; best of --repeats
temporaries  memory that it needs, as compiled for this machine
"""

import argparse
import csv
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cli, paper, tables
from ggcf_jax.attention import attend, graphs
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.training import flops

GI = 2**30
EXPLANATION = """
The paper's 520 for FULL are its pairs and projections together (with 256 channels, and 256 for
keys and values together); its 63 for {LOCAL, GRID}_{8,16,24} are the pairs alone. With the
projections of six heads that module costs what the column "sum" says: still far less than FULL.
"""


@dataclasses.dataclass(frozen=True)
class Module:
    """A context module on a map.

    Attributes:
        heads: graphs of the heads.
        h: height of the map in positions.
        w: width of the map in positions.
        channels: channels of the module's input and output.
        key_channels: channels of queries and keys, in each head.
        value_channels: channels of values, which all heads share.
    """

    heads: tuple[Graph, ...]
    h: int
    w: int
    channels: int = 256
    key_channels: int = 128
    value_channels: int = 128

    @property
    def num_edges(self) -> int:
        """Number of pairs (i, j) with j a neighbour of i, over all heads."""
        return sum(graph.num_edges(self.h, self.w) for graph in self.heads)

    @property
    def mean_degree(self) -> float:
        """Mean number of neighbours of a position, over all heads together."""
        return self.num_edges / (self.h * self.w)

    @property
    def pair_flops(self) -> int:
        """FLOPs of scores and weighted sums, of the edges alone."""
        return 2 * (self.key_channels + self.value_channels) * self.num_edges

    @property
    def projection_flops(self) -> int:
        """FLOPs of theta_k and phi_k, of g, which all heads share, and of W_k (Eq. 3)."""
        heads = len(self.heads)
        outputs = 2 * heads * self.key_channels + self.value_channels + heads * self.value_channels
        return 2 * self.h * self.w * self.channels * outputs

    @property
    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of queries, keys and values of one image."""
        heads = len(self.heads)
        channels = (
            (heads, self.key_channels),
            (heads, self.key_channels),
            (1, self.value_channels),
        )
        return [jax.ShapeDtypeStruct((1, self.h, self.w, *c), jnp.float32) for c in channels]


def executed_flops(module: Module, platform: str) -> int:
    """Counts the FLOPs of scores and weighted sums that the engine executes.

    Args:
        module: context module.
        platform: 'cpu', 'gpu' or 'tpu'.
    """
    device = jax.sharding.AbstractDevice(platform, None, platform)
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return flops.count(jax.make_jaxpr(_attention(module))(*module.shapes))


def measure(module: Module, repeats: int) -> tuple[float, int]:
    """Times the forward pass on this machine.

    Args:
        module: context module.
        repeats: number of timed calls.

    Returns:
        Seconds of the fastest call (NaN without any), and bytes of temporary memory.
    """
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.standard_normal(shape.shape) * module.key_channels**-0.25, shape.dtype)
        for shape in module.shapes
    ]
    program = jax.jit(_attention(module)).lower(*module.shapes).compile()
    best = math.nan
    for i in range(repeats and repeats + 1):  # the first call warms up
        began = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        best = np.nanmin([best, time.perf_counter() - began]) if i else best
    memory = program.memory_analysis()
    assert memory is not None
    return float(best), memory.temp_size_in_bytes


def _attention(module: Module) -> Callable[[jax.Array, jax.Array, jax.Array], list[jax.Array]]:
    """All heads, as `models.contexts.ggcf.GGCF` calls them."""

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> list[jax.Array]:
        return [
            attend(q[:, :, :, i : i + 1], k[:, :, :, i : i + 1], v, _bound(graph))
            for i, graph in enumerate(module.heads)
        ]

    return attention


def _bound(graph: Graph) -> Graph:
    return graph.bind(graph.init(jax.random.key(0)))


def table_row(text: str, module: Module, repeats: int) -> dict[str, str]:
    """Measures one line of the table.

    Args:
        text: heads of the module as in `config.model.heads`.
        module: context module with these heads.
        repeats: number of timed calls; 0 for no timing.

    Returns:
        Column -> cell.
    """
    seconds, temporaries = measure(module, repeats)
    published = paper.EFFICIENCY.get(text, '') if (module.h, module.w) == (128, 256) else ''
    return {
        'heads': text,
        'neighbours': f'{module.mean_degree:.1f}',
        'pairs Gi': f'{module.pair_flops / GI:.1f}',
        'projections Gi': f'{module.projection_flops / GI:.1f}',
        'sum Gi': f'{module.pair_flops / GI + module.projection_flops / GI:.1f}',
        'paper': str(published),
        'executed Gi, CPU': f'{executed_flops(module, "cpu") / GI:.1f}',
        'executed Gi, GPU/TPU': f'{executed_flops(module, "gpu") / GI:.1f}',
        'time ms': f'{seconds * 1e3:.0f}' if repeats else '',
        'temporaries MiB': f'{temporaries / 2**20:.0f}',
    }


def markdown(rows: Sequence[dict[str, str]], title: str) -> str:
    """Formats the rows under a title, with an explanation of the paper's numbers.

    Args:
        rows: lines of the table, at least one.
        title: line above the table.
    """
    table = tables.markdown(list(rows[0]), [list(row.values()) for row in rows])
    return f'{title}\n\n{table}' + (EXPLANATION if any(row['paper'] for row in rows) else '')


def main(options: argparse.Namespace) -> None:
    """Measures the heads of the command line."""
    h, w = options.size
    widths = (options.channels, options.key_channels, options.value_channels)
    rows = [
        table_row(text, Module(graphs.parse(text), h, w, *widths), options.repeats)
        for text in options.heads
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix('.csv').open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    device = f'{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}'
    title = f'Map {h} x {w}, channels {widths}; float32; {device}.'
    tables.write_text(options.out.with_suffix('.md'), markdown(rows, title))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        'heads',
        nargs='*',
        type=_check_heads,
        default=list(paper.EFFICIENCY),
        help='heads of each module, as config.model.heads [those of the paper]',
    )
    parser.add_argument(
        '--size',
        default=(128, 256),
        type=cli.parse_size,
        metavar='HxW',
        help='size of the feature map [128x256]',
    )
    parser.add_argument(
        '--channels', default=256, type=int, help='channels of input and output [256]'
    )
    parser.add_argument(
        '--key_channels', default=128, type=int, help='channels of queries and keys [128]'
    )
    parser.add_argument('--value_channels', default=128, type=int, help='channels of values [128]')
    parser.add_argument('--repeats', default=3, type=int, help='timed calls; 0 for no timing [3]')
    parser.add_argument(
        '--out',
        default='runs/efficiency',
        type=cli.path,
        help='path of the results without their suffix [runs/efficiency]',
    )
    return parser


def _check_heads(text: str) -> str:
    try:
        graphs.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{error}; heads are written local:8,16,24,grid:8,16,24'
        ) from error
    return text


if __name__ == '__main__':
    cli.run(main, make_parser())
