"""A run without a network: it saves, logs, evaluates, draws, reports and exports as training does.

It costs a second where a start of the training costs a minute, so that every fault can be injected
many times. Its numbers follow from the step alone, as those of training do.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from ggcf_jax import atomic, places
from ggcf_jax.display import pictures
from ggcf_jax.workdir import checkpoints, lease, metrics_log

SAVE_EVERY, EVALUATE_EVERY = 2, 4
EXPORTED = 'exported.bin'


def run(workdir: str, steps: int) -> None:
    """Goes on from the newest checkpoint to the last step, and exports.

    Args:
        workdir: workdir of the run.
        steps: number of steps.

    Raises:
        InputError: the workdir cannot be used.
    """
    path = places.expand(workdir)
    places.check_writable(path, '--workdir')
    with lease.taken(path) as held:
        checkpointer = checkpoints.Checkpointer(path)
        fresh = _fresh()
        trees = checkpointer.restore_latest(fresh) or fresh
        start = int(trees['model']['params']['step'][()])
        is_due = start > 0 and start % EVALUATE_EVERY == 0 and not checkpointer.scored(start)
        with metrics_log.Writer(path, start, evaluate_again=is_due) as writer:
            if is_due:
                _evaluate(path, start, trees, writer, checkpointer)
            for step in range(start + 1, steps + 1):
                trees = _step(trees, step)
                writer.scalars(step, {'train/loss': float(trees['model']['params']['w'][0, 0])})
                if step % SAVE_EVERY == 0:
                    held.check()
                    writer.upload()
                    checkpointer.save(step, trees)
                    print(f'saved {step}', flush=True)
                if step % EVALUATE_EVERY == 0:
                    _evaluate(path, step, trees, writer, checkpointer)
            checkpointer.close()
        atomic.write(path / 'report.html', b'<html>' + bytes(50_000))
        with atomic.replacing(path / EXPORTED) as file:
            file.write_bytes(np.asarray(trees['model']['params']['w']).tobytes() * 100)


def content(workdir: pathlib.Path, steps: int) -> dict[str, Any]:
    """Everything that a finished run has, for a comparison.

    Args:
        workdir: workdir of the run.
        steps: number of steps.

    Raises:
        InputError: the last checkpoint is not whole.
    """
    trees = checkpoints.Checkpointer(workdir).restore_latest(_fresh())
    assert trees is not None
    params = {name: np.asarray(x).tobytes() for name, x in trees['model']['params'].items()}
    files = [*workdir.glob('*/*.json'), *workdir.glob('*/*.png'), workdir / EXPORTED]
    files += [workdir / 'report.html']
    read = {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in files
        if path.parent.name != 'checkpoints'
    }
    assert max(checkpoints.steps(workdir)) == steps
    return {
        'parameters': params,
        'scores': checkpoints.steps(workdir),
        'rows': metrics_log.read_rows(workdir),
        **read,
    }


def _fresh() -> dict[str, Any]:
    weights = np.arange(60_000, dtype=np.float32).reshape(200, 300)
    return _trees(0, weights)


def _step(trees: dict[str, Any], step: int) -> dict[str, Any]:
    weights = np.asarray(trees['model']['params']['w'])
    return _trees(step, (weights * np.float32(1.7) + step) % np.float32(97))


def _trees(step: int, weights: np.ndarray) -> dict[str, Any]:
    params = {'step': np.full((), step, np.int32), 'w': weights}
    return {'model': {'params': jax.device_put(params), 'stats': {}}}


def _evaluate(
    path: pathlib.Path,
    step: int,
    trees: dict[str, Any],
    writer: metrics_log.Writer,
    checkpointer: checkpoints.Checkpointer,
) -> None:
    weights = np.asarray(trees['model']['params']['w'])
    miou = float(weights.mean()) / 97
    writer.scalars(step, {'val/miou': miou})
    picture = np.repeat(weights.astype(np.uint8)[..., None], 3, -1)
    atomic.write(path / 'evaluations' / f'{step:08d}.json', json.dumps({'miou': miou}).encode())
    pictures.write_png(path / 'panels' / f'{step:08d}.png', picture)
    writer.image(step, 'panel', picture)
    writer.upload()
    checkpointer.score(step, miou)
