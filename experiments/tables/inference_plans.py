"""Accuracy and cost of inference plans for a trained model: mean IoU and seconds per image.

    python -m experiments.tables.inference_plans --workdir=runs/camvid

Prints a Markdown table of one view, several scales with flip, windows of the training crop, and
Context Pruning of all heads, by affinity and at random. Run it from the root of the repository.
"""

import argparse
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from experiments.common import cli
from ggcf_jax import data, models
from ggcf_jax.data import pipeline
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.evaluation import evaluator, inference
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.classes import Classes

SCALES = (0.75, 1.0, 1.25)


def plans(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the inference plans to compare.

    Args:
        config: configuration of the run.

    Returns:
        Name of a plan -> the fields of `config.eval` that it changes; none that prunes for a
        network without heads.
    """
    kinds = dict.fromkeys(head.kind() for head in models.prunable_heads(config.model))
    half = ','.join(f'{kind}:drop=0.5' for kind in kinds)
    many = {'scales': SCALES, 'flip': True}
    found: dict[str, dict[str, Any]] = {
        'whole image': {},
        'half of each context pruned': {'pruning': half},
        f'scales {", ".join(map(str, SCALES))}, flip': many,
        'both': many | {'pruning': half},
        'half of each context at random': {'pruning': half.replace('0.5', '0.5:random')},
        'windows of the training crop': {'window': tuple(config.data.crop_size)},
    }
    return {name: fields for name, fields in found.items() if half or 'pruning' not in fields}


def evaluate_plans(
    config: ConfigDict, workdir: pathlib.Path, split: str
) -> Iterator[tuple[str, Evaluation, float]]:
    """Evaluates the best checkpoint of a run by every plan.

    Args:
        config: configuration of the run.
        workdir: workdir of the run.
        split: split to evaluate.

    Yields:
        Name of a plan, its evaluation, and seconds per image: reading and decoding images included,
        compilation left out.
    """
    dataset = data.build(config.data)
    classes = Classes(dataset.classes, dataset.colors)
    model = model_lib.load(workdir, 'best', config=config, classes=classes)
    mesh = model.mesh
    batches = data.evaluation_batches(config, dataset, split)
    for name, changes in plans(config).items():
        changed = config.copy_and_resolve_references()
        changed.eval.update(changes)
        step = evaluator.make_eval_step(
            model.graphdef, dataset.num_classes, mesh, inference.build(changed)
        )
        evaluate = evaluator.Evaluator(step, batches, mesh, loader=data.loader_options(config.data))
        with jax.set_mesh(mesh), Progress(console=Console(stderr=True)) as progress:
            for blank in _blank_batches(batches, mesh):
                matrix = np.zeros((dataset.num_classes,) * 2, np.int32)
                arguments = (jax.device_put(matrix, mesh_lib.replicated(mesh)), blank)
                jax.block_until_ready(step(model.params, model.stats, *arguments))
            began = time.perf_counter()
            evaluation = evaluate(model.params, model.stats, progress)
            seconds = time.perf_counter() - began
        yield name, evaluation, seconds / len(dataset.source(split))


def _blank_batches(
    batches: pipeline.EvaluationBatches, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Yields a batch of each padded size, to compile the programs before they are timed."""
    count = batches.indices.shape[1]
    for size in sorted(set(batches.sizes)):
        images = np.zeros((count, *size, 3), np.uint8)
        sizes = np.full((count, 2), size, np.int32)
        arrays: dict[str, np.ndarray] = {'image': images, 'label': images[..., 0], 'size': sizes}
        yield mesh_lib.global_batch(mesh, arrays)


def main(options: argparse.Namespace) -> None:
    """Prints the table, line by line."""
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    print(f'{device}, {options.split}\n', flush=True)
    print('| plan | mIoU | pixel accuracy | seconds per image |\n|---|---|---|---|', flush=True)
    config = workdir_config.load(options.workdir)
    for name, evaluation, seconds in evaluate_plans(config, options.workdir, options.split):
        numbers = (f'{evaluation.miou:.4f}', f'{evaluation.pixel_accuracy:.4f}', f'{seconds:.2f}')
        print('| ' + ' | '.join((name, *numbers)) + ' |', flush=True)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument('--workdir', required=True, type=cli.path, help='workdir of the run')
    parser.add_argument('--split', default='validation', help='split to evaluate [validation]')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
