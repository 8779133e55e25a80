"""Says what a file of weights holds: python -m experiments.inspect_weights FILE."""

import argparse
import pathlib
import sys

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.errors import InputError
from ggcf_jax.models import backbones, pretrained
from ggcf_jax.models.pretrained import files, layouts
from ggcf_jax.workdir import config as workdir_config


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m experiments.inspect_weights', description=__doc__
    )
    parser.add_argument('path', help='.safetensors, .pth, .pt, or the workdir of a run')
    parser.add_argument('--tensors', action='store_true', help='list all tensors')
    given = parser.parse_args(arguments)
    try:
        if pathlib.Path(given.path).is_dir():
            _workdir(given.path)
        else:
            _file(given.path, given.tensors)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def _workdir(path: str) -> None:
    model = workdir_config.load(pathlib.Path(path)).model
    fields = {f'backbone.{name}': model.backbone[name] for name in ('name', 'width', 'stem')}
    fields |= {name: model[name] for name in ('activation', 'norm', 'input')}
    print(f'{path}: workdir of a run of ours; fits\n  {_flags(fields)}')


def _file(path: str, list_tensors: bool) -> None:
    everything = files.read(path)
    if list_tensors:
        for name, tensor in everything.items():
            print(f'{name}  {list(tensor.shape)}')
    tensors, _ = layouts.trunk(everything)
    layout = layouts.detect(tensors, path)
    fields = layout.describe(tensors)
    size = sum(tensor.size for tensor in everything.values())
    print(f'{path}: {len(everything)} tensors, {size:,} numbers')
    print(f'layout: {layout.name}\n  as in {layout.source}')
    print(f'network:\n  {_flags(fields)}')
    imported = pretrained.load(path, _shapes(fields), layout.norm)
    used = sum(array.size for array in imported.arrays.values())
    print(f'backbone: {imported.matched} tensors, {used:,} numbers: all fit, none is missing')
    counters = len(everything) - imported.matched - len(imported.left_out)
    print(f'left out: {", ".join(imported.left_out) or "none"}; {counters} counters of norms')
    if layout.norm != 'batch_norm':
        print(
            f"norm: scales in the form {layout.norm}; with config.model.norm='batch_norm' they are "
            'converted to the same function'
        )


def _shapes(fields: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of the network that the fields of `config.model` describe."""
    model = ConfigDict(
        {
            'backbone': {
                'stem': '7x7',
                'stride': 32,
                'first_dilation': 'full',
                'multi_grid': (),
                'multi_grid_kind': 'multiplier',
            },
            'activation': 'relu',
            'norm': 'batch_norm',
        }
    )
    model.update_from_flattened_dict(fields)
    build = registry.find(backbones, 'BACKBONES', model.backbone.name, 'config.model.backbone.name')
    trunk = nnx.eval_shape(lambda: build(model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return pretrained.shapes_of(nnx.as_pure(nnx.state(trunk, nnx.Any(nnx.Param, nnx.BatchStat))))


def _flags(fields: dict) -> str:
    return '\n  '.join(f'--config.model.{name}={value}' for name, value in fields.items())


if __name__ == '__main__':
    sys.exit(main())
