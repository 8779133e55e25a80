"""Times inference that knows how far padded images reach beside inference that does not.

    python -m experiments.benchmark.padding

The same network on the same batch with and without an extent, which masks features and keys beyond
each image (docs/inference.md, Padding), interleaved. The table has the median over the rounds of
the ratios; on a busy machine the processor time is the one to trust. Run it from the root of
the repository.
"""

import argparse
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.benchmark.interleaved import Call, compare
from experiments.common import cli
from ggcf_jax import config as config_lib
from ggcf_jax import models
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.inference import Plan
from ggcf_jax.models.layers import extent as extent_lib

_CLASSES = 11
# The heads of configs/camvid.py, for maps of about its size.
_CAMVID = {'backbone.name': 'resnet10', 'backbone.width': 24, 'ggcf.channels': 96}
_PAPER = {**_CAMVID, 'heads': 'local:3,6,9,grid:3,6,9'}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and a plan.

    Attributes:
        name: what the table calls it.
        fields: fields of `config.model`.
        plan: inference plan.
    """

    name: str
    fields: dict[str, Any]
    plan: Plan = dataclasses.field(default_factory=Plan)


CASES = (
    Case('ResNet-18', {'backbone.name': 'resnet18', 'context': 'none'}),
    Case('ResNet-50, ASPP', {'backbone.name': 'resnet50', 'context': 'aspp'}),
    Case('MobileNetV2', {'backbone.name': 'mobilenet_v2', 'context': 'none'}),
    Case(
        'WideResNet-38 of width 16',
        {'backbone.name': 'wide_resnet38', 'backbone.width': 16, 'context': 'none'},
    ),
    Case('`local:3,6,9,grid:3,6,9`', _PAPER),
    Case('`local:3:shift`, six heads', {**_CAMVID, 'heads': ','.join(['local:3:shift'] * 6)}),
    Case('`full,learned`', {**_CAMVID, 'heads': 'full,learned'}),
    Case('`cross,row,block:4,local:2@4`', {**_CAMVID, 'heads': 'cross,row,block:4,local:2@4'}),
    Case('the first heads with flip', _PAPER, Plan(flip=True)),
    Case('three scales and flip', _PAPER, Plan(scales=(0.75, 1.0, 1.25), flip=True)),
    Case('windows of 120 x 120', _PAPER, Plan(window=(120, 120))),
)


def calls(case: Case, size: tuple[int, int]) -> dict[bool, Call]:
    """Scores of two images, by whether their extent is known.

    Args:
        case: network and plan.
        size: height and width of the batch; the second image is a little smaller.
    """
    config = config_lib.default()
    config.model.update_from_flattened_dict(case.fields)
    graphdef, state = nnx.split(models.build(config, _CLASSES))

    @jax.jit
    def scores(state: Any, images: jax.Array, sizes: jax.Array | None) -> jax.Array:
        extent = None if sizes is None else extent_lib.of_sizes(sizes)
        return inference.scores(nnx.merge(graphdef, state), images, case.plan, extent)

    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    sizes = np.array([size, (size[0] - 9, size[1] - 7)], np.int32)

    def call(sizes: np.ndarray | None) -> Call:
        return lambda: jax.block_until_ready(scores(state, images, sizes))

    return {True: call(sizes), False: call(None)}


def rows(cases: tuple[Case, ...], size: tuple[int, int], rounds: int) -> Iterator[str]:
    """Yields the lines of the table, each as soon as it is measured.

    Args:
        cases: networks and plans.
        size: height and width of the batch.
        rounds: number of rounds.
    """
    yield '| network and plan | with extent, ms | without, ms | wall | processor |'
    yield '|---|--:|--:|--:|--:|'
    for case in cases:
        programs = calls(case, size)
        ratio = compare(programs[True], programs[False], rounds)
        a, b = ratio.milliseconds
        yield f'| {case.name} | {a:.0f} | {b:.0f} | {ratio.wall:.2f} | {ratio.processor:.2f} |'


def main(options: argparse.Namespace) -> None:
    """Measures what is asked for and prints the table."""
    cases = tuple(case for case in CASES if re.search(options.cases, case.name))
    height, width = map(int, options.size.split('x'))
    for line in rows(cases, (height, width), options.rounds):
        print(line, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument('--cases', default='', help='regular expression of the rows to measure')
    parser.add_argument('--size', default='180x240', help='HEIGHTxWIDTH of the batch, in pixels')
    parser.add_argument('--rounds', type=int, default=15, help='number of rounds')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
