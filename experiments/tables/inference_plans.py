"""What inference plans give and cost on a trained model: mean IoU and seconds an image.

    python -m experiments.tables.inference_plans --workdir=runs/camvid

prints a Markdown table of one view, several scales with flip, windows of the training crop, and
Context Pruning of all heads, by affinity and at random. Run it from the root of the repository.
"""

import argparse
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from ggcf_jax import data, evaluate, models
from ggcf_jax.attention import graphs
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config

SCALES = (0.75, 1.0, 1.25)


def plans(config) -> dict[str, dict[str, Any]]:
    """Name of a row -> the fields of `config.eval` that it changes."""
    kinds = dict.fromkeys(str(head).partition(':')[0] for head in graphs.parse(config.model.heads))
    half = ','.join(f'{kind}:drop=0.5' for kind in kinds)
    many = {'scales': SCALES, 'flip': True}
    return {
        'whole image': {},
        'half of each context pruned': {'pruning': half},
        f'scales {", ".join(map(str, SCALES))}, flip': many,
        'both': many | {'pruning': half},
        'half of each context at random': {'pruning': half.replace('0.5', '0.5:random')},
        'windows of the training crop': {'window': tuple(config.data.crop_size)},
    }


def rows(config, workdir: pathlib.Path, split: str) -> Iterator[tuple[str, Evaluation, float]]:
    """Evaluates every plan of the best checkpoint: name, result, seconds an image.

    Compilation is not in the seconds; reading and decoding the images is.
    """
    dataset = data.build(config.data)
    mesh = mesh_lib.make_mesh()
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    restored = checkpoints.restore(workdir, params, stats, mesh_lib.replicated(mesh), 'best')
    batches = data.evaluation_plan(config, dataset, split)
    for name, changes in plans(config).items():
        changed = config.copy_and_resolve_references()
        changed.eval.update(changes)
        step = evaluate.make_eval_step(
            graphdef, dataset.num_classes, mesh, inference.build(changed)
        )
        with jax.set_mesh(mesh), Progress(0, console=Console(stderr=True)) as progress:
            _compile(step, restored, dataset.num_classes, batches, mesh)
            began = time.perf_counter()
            evaluation = evaluate.evaluate(
                step,
                restored.params,
                restored.stats,
                dataset,
                split,
                batches,
                num_samples=0,
                num_worst=0,
                mesh=mesh,
                reading=data.reading(config.data),
                progress=progress,
            )
            seconds = time.perf_counter() - began
        yield name, evaluation, seconds / len(dataset.source(split))


def _compile(step, restored, num_classes: int, batches, mesh) -> None:
    """Runs the step once at each size."""
    count = batches.indices.shape[1]
    for size in sorted(set(batches.sizes)):
        images = np.zeros((count, *size, 3), np.uint8)
        blank = mesh_lib.global_batch(mesh, {'image': images, 'label': images[..., 0]})
        matrix = jax.device_put(np.zeros((num_classes,) * 2, np.int32), mesh_lib.replicated(mesh))
        jax.block_until_ready(step(restored.params, restored.stats, matrix, blank))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, type=pathlib.Path)
    parser.add_argument('--split', default='validation')
    given = parser.parse_args()
    print(f'{jax.device_count()} x {jax.devices()[0].device_kind}, {given.split}\n', flush=True)
    print('| plan | mIoU | pixel accuracy | seconds an image |\n|---|---|---|---|', flush=True)
    saved = workdir_config.load(given.workdir)
    for name, evaluation, seconds in rows(saved, given.workdir, given.split):
        numbers = (f'{evaluation.miou:.4f}', f'{evaluation.pixel_accuracy:.4f}', f'{seconds:.2f}')
        print('| ' + ' | '.join((name, *numbers)) + ' |', flush=True)
