"""Shared by tests: the tiny data set and network, runs of `main.py`, untrained workdirs."""

import ast
import collections
import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import cv2
import jax
import numpy as np
from flax import nnx

from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.training import state
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.metrics_log import read_rows

ROOT = pathlib.Path(__file__).parent.parent

# Names of the recipes in configs/.
RECIPES = sorted(
    path.stem
    for path in (ROOT / 'configs').glob('*.py')
    if path.stem not in ('__init__', 'from_workdir', 'table1')
)

TINY_MODEL = {
    'model.backbone.name': 'resnet10',
    'model.backbone.width': 4,
    'model.heads': 'local:1,grid:2',
    'model.ggcf.channels': 8,
    'model.ggcf.key_channels': 4,
    'model.ggcf.value_channels': 4,
    'model.aux_channels': 4,
    'model.dropout': 0.1,
}


def shorten(monkeypatch, family, name: str, depths: tuple[int, ...]) -> None:
    """Gives a backbone fewer blocks, which compile sooner and are the same ones.

    Args:
        monkeypatch: pytest's, which takes it back.
        family: module of the backbones, with ARCHITECTURES, BACKBONES and `build`.
        name: name of the backbone.
        depths: number of blocks of each stage.
    """
    few = dataclasses.replace(family.ARCHITECTURES[name], depths=depths)
    monkeypatch.setitem(family.BACKBONES, name, functools.partial(family.build, few))


def compiled(build: Callable[[], nnx.Module]) -> nnx.Module:
    """The module that `build` makes. One program draws its parameters, not one an array."""
    graphdef, _ = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graphdef, jax.jit(lambda: nnx.split(build())[1])())


def one_device() -> dict[str, str]:
    """The environment of a process that has one device and this checkout's package."""
    flags = [f for f in os.environ['XLA_FLAGS'].split() if 'device_count' not in f]
    return dict(
        os.environ, XLA_FLAGS=' '.join(flags), JAX_NUM_CPU_DEVICES='1', PYTHONPATH=str(ROOT)
    )


def write_camvid(root: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """Writes the folder: every image is two colour fields that its label tells apart."""
    for folder, count in (('train', 6), ('val', 3)):
        (root / folder).mkdir(parents=True)
        (root / f'{folder}annot').mkdir()
        for i in range(count):
            label = np.full((40, 56), i % 11, np.uint8)
            label[20:] = (i + 3) % 11
            label[:2] = 11
            colors = rng.integers(0, 255, (12, 3), dtype=np.uint8)
            cv2.imwrite(str(root / folder / f'{folder}_{i}.png'), colors[label])
            cv2.imwrite(str(root / f'{folder}annot' / f'{folder}_{i}.png'), label)
    return root


def make_tiny_config(camvid_folder: pathlib.Path, tmp_path: pathlib.Path):
    config = load_config('camvid')
    config.update_from_flattened_dict(
        {
            'data.manual_dir': str(camvid_folder),
            'data.data_dir': str(tmp_path / 'prepared'),
            'data.crop_size': (24, 24),
            'data.threads': 1,
            **TINY_MODEL,
            'train.steps': 12,
            'train.batch_size': 8,
            'train.learning_rate': 0.05,
            'train.log_every': 2,
            'train.eval_every': 6,
            'train.checkpoint_every': 3,
            'eval.batch_size': 8,
            'eval.panels': 2,
        }
    )
    return config


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax tree of a Python file, which several tests look through."""
    return ast.parse(path.read_text())


def name_called(call: ast.Call) -> str:
    """The last part of the name of what a call calls."""
    return getattr(call.func, 'attr', getattr(call.func, 'id', ''))


def load_config(name: str, argument: str | None = None):
    """The configuration that --config=configs/<name>.py[:argument] gives."""
    module = load_module(name)
    return module.get_config() if argument is None else module.get_config(argument)


def load_module(name: str):
    """The module configs/<name>.py, loaded from its path as config_flags does."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_with_main(name: str, manual_dir: pathlib.Path, root: pathlib.Path, fields: dict) -> None:
    """main.py trains a tiny network for three steps of configs/<name>.py and evaluates it."""
    fields = {
        'data.manual_dir': manual_dir,
        'data.data_dir': root / 'prepared',
        'data.crop_size': '24,24',
        'data.threads': 1,
        **TINY_MODEL,
        'model.heads': 'local:1,grid:16',  # whole images of 1024 x 2048 are evaluated
        'train.steps': 3,
        'train.batch_size': 2,
        'train.log_every': 1,
        'eval.batch_size': 1,
        'eval.panels': 1,
        **fields,
    }
    process = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'main.py'),
            f'--config={ROOT / "configs" / name}.py',
            f'--workdir={root / "run"}',
            *(f'--config.{field}={value}' for field, value in fields.items()),
        ],
        env=one_device(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    rows = read_rows(root / 'run')
    assert [row['step'] for row in rows] == [1, 2, 3, 3]
    assert all(0 < row['train/loss'] < 10 for row in rows[:3])
    assert 0 <= rows[3]['val/miou'] <= 1


def save_untrained(config, num_classes: int, workdir: pathlib.Path, spread: float = 0.3) -> None:
    """Makes the workdir of a run that was stopped before its first step, statistics included.

    Normal noise of this spread on all parameters makes predictions differ from place to place;
    with 0 probabilities and attention are close to uniform.
    """
    workdir_config.save(config, workdir)
    # On one device: Orbax cuts an array that lies on several by a program for each shape.
    start = state.creator(config, num_classes, mesh_lib.make_mesh(jax.devices()[:1]))()
    rng = np.random.default_rng(7)

    def noisy(x):
        # By NumPy: for JAX every shape is a program.
        noise = np.float32(spread * rng.normal(size=x.shape))
        return jax.device_put((np.asarray(x) + noise).astype(x.dtype), x.sharding)

    params = jax.tree.map(noisy, start.params)
    checkpointer = checkpoints.Checkpointer(workdir)
    checkpointer.save(0, start.replace(params=params).to_trees(), miou=None)
    checkpointer.close()


def operations(stablehlo):
    """How often each operation is in a program; without those that choose among platforms."""
    found = collections.Counter(re.findall(r'stablehlo\.(\w+)', stablehlo))
    return {name: n for name, n in found.items() if name not in ('case', 'constant', 'return')}


def exchanged(compiled) -> list[tuple[str, list[int]]]:
    """Kind of each exchange between devices in a compiled program, and the sizes of its arrays."""
    pattern = r' = (.*?) (all-[a-z]+|collective-permute|reduce-scatter)\('
    found = re.findall(pattern, compiled.as_text())
    return [
        (
            kind,
            [
                math.prod(map(int, filter(None, shape.split(','))))
                for shape in re.findall(r'\w+\[([\d,]*)\]', shapes)
            ],
        )
        for shapes, kind in found
    ]
