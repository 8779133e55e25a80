"""Describes a file of pretrained weights: its layout, and the configuration that fits it.

    python -m experiments.inspect_weights FILE

FILE may also be the workdir of a run: prints the fields of its backbone.
"""

import argparse
import pathlib
from typing import Any

import jax.numpy as jnp
from flax import nnx

from experiments.common import cli
from ggcf_jax import config as config_lib
from ggcf_jax import registry
from ggcf_jax.models import backbones, pretrained
from ggcf_jax.models.pretrained import files, layouts
from ggcf_jax.workdir import config as workdir_config


def main(options: argparse.Namespace) -> None:
    """Describes the file or the workdir of the command line."""
    if options.path.is_dir():
        _describe_workdir(options.path)
    else:
        _describe_file(options.path, list_tensors=options.tensors)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        'path',
        type=cli.path,
        help='.safetensors, .pth or .pt file, or a ggcf_jax workdir',
    )
    parser.add_argument('--tensors', action='store_true', help='list all tensors of the file')
    return parser


def _describe_workdir(path: pathlib.Path) -> None:
    model = workdir_config.load(path).model
    fields = {f'backbone.{name}': model.backbone[name] for name in ('name', 'width', 'stem')}
    fields['backbone.activation'] = model.backbone.activation or model.activation
    fields |= {name: model[name] for name in ('norm', 'input')}
    print(f'{path}: a ggcf_jax workdir; fits\n  {_flags(fields)}')


def _describe_file(path: pathlib.Path, *, list_tensors: bool) -> None:
    everything = files.read(path)
    if list_tensors:
        for name, tensor in everything.items():
            print(f'{name}  {list(tensor.shape)}')
    tensors, _, prefix = layouts.trunk(everything)
    layout = layouts.detect(tensors, path)
    fields = layout.describe(tensors)
    size = sum(tensor.size for tensor in everything.values())
    print(f'{path}: {len(everything)} tensors, {size:,} numbers')
    print(f'layout: {layout.name}\n  as in {layout.source}')
    if prefix:
        print(f'names: without the prefix {prefix}')
    print(f'network:\n  {_flags(fields)}')
    print(f'activation: --config.model.backbone.activation={layout.activation}')
    trained = layout.trained_input
    print(
        f'input: config.model.input={" or ".join(map(repr, layout.inputs))}; '
        + ("'auto' cannot tell which" if trained is None else f"'auto' takes {trained!r}")
    )
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


def _shapes(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the backbone that these fields of `config.model` describe."""
    model = config_lib.default().model
    model.backbone.stride = 32
    model.update_from_flattened_dict(fields)
    build = registry.find(backbones, 'BACKBONES', model.backbone.name, 'config.model.backbone.name')
    trunk = nnx.eval_shape(lambda: build(model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return pretrained.shapes_of(nnx.as_pure(nnx.state(trunk, nnx.Any(nnx.Param, nnx.BatchStat))))


def _flags(fields: dict[str, Any]) -> str:
    return '\n  '.join(f'--config.model.{name}={value}' for name, value in fields.items())


if __name__ == '__main__':
    cli.run(main, make_parser())
