"""Size and cost of context modules: those of other papers beside the paper's own.

    python -m experiments.tables.contexts --config=configs/cityscapes.py:r50 --size=1024x2048

The rows are those of the configuration's `peers()`, or of another function: --sweep=sweep for
Table 1. Nothing is computed or trained: modules are traced on shapes. Writes <out>.csv and
<out>.md:

parameters  of the context module, in millions (10^6); neither backbone nor classifiers
FLOPs       of the context module on one image, forward, in Gi (2^30), 2 per multiply-add, as
            executed on an accelerator: convolutions, and attention with the scores it masks
"""

import argparse
import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx
from ml_collections import ConfigDict

from experiments.common import cli, tables
from experiments.tables import sweep_runs
from ggcf_jax import models
from ggcf_jax.training import flops

_GI = 2**30
_CLASSES = 19  # of the classifiers, which are not counted


@dataclasses.dataclass(frozen=True)
class Row:
    """Size and cost of a context module.

    Attributes:
        module: name of the row.
        overrides: its fields and values, comma-separated.
        parameters: number of parameters.
        flops: FLOPs of one image, as executed on an accelerator.
    """

    module: str
    overrides: str
    parameters: int
    flops: int


def measure(config: ConfigDict, size: tuple[int, int]) -> tuple[int, int]:
    """Counts the parameters and FLOPs of a configuration's context module.

    Args:
        config: configuration with the context module.
        size: (height, width) of the image in pixels.

    Returns:
        Number of parameters, and FLOPs of one image on an accelerator.
    """
    graphdef, params, stats = models.abstract(config, _CLASSES)
    network = nnx.merge(graphdef, params, stats)
    h, w = (-(-length // network.stride) for length in size)
    shape = (1, h, w, network.backbone.features[-1])

    def forward(params: nnx.State, stats: nnx.State, x: jax.Array) -> jax.Array:
        return models.merge(graphdef, params, stats).context(x, train=False)

    x = jax.ShapeDtypeStruct(shape, network.dtype)
    device = jax.sharding.AbstractDevice('gpu', None, 'gpu')
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        count = flops.count(jax.make_jaxpr(forward)(params, stats, x))
    return sum(leaf.size for leaf in jax.tree.leaves(params['context'])), count


def rows_of(
    path: str, sweep: str, size: tuple[int, int], overrides: Sequence[str] = ()
) -> list[Row]:
    """Measures the rows that a function of a configuration yields, but for evaluations of others.

    Args:
        path: configuration file, with its variant.
        sweep: name of the function.
        size: (height, width) of the image in pixels.
        overrides: 'field=value' overrides of every row.
    """
    rows = []
    for name, fields in sweep_runs.rows_of(path, sweep).items():
        own = [f'{field}={value}' for field, value in fields.items()]
        if not any(each.startswith('eval.') for each in own):
            config = cli.load_config(path, [*overrides, *own]).config
            rows.append(Row(name, ', '.join(own), *measure(config, size)))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Formats the rows."""
    cells = [
        (row.module, f'`{row.overrides}`', f'{row.parameters / 1e6:.2f}', f'{row.flops / _GI:.0f}')
        for row in rows
    ]
    return tables.markdown(('module', 'overrides', 'parameters M', 'FLOPs Gi'), cells)


def main(options: argparse.Namespace) -> None:
    """Measures the rows of a configuration."""
    rows = rows_of(options.config, options.sweep, options.size, options.config_overrides)
    tables.write_csv(options.out.with_suffix('.csv'), rows)
    h, w = options.size
    title = f'Context modules of {options.config} for one image of {h} x {w}.'
    tables.write_text(options.out.with_suffix('.md'), f'{title}\n\n{markdown(rows)}')


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    cli.add_config(parser)
    parser.add_argument(
        '--sweep',
        default='peers',
        help='function of the configuration that yields the rows [peers]',
    )
    parser.add_argument(
        '--size',
        default=(1024, 2048),
        type=cli.parse_size,
        metavar='HxW',
        help='size of the image in pixels [1024x2048]',
    )
    parser.add_argument(
        '--out',
        default='runs/contexts',
        type=cli.path,
        help='path of the results without their suffix [runs/contexts]',
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
