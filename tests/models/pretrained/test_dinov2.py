"""DINOv2 against the network in torch, under the names of its authors and of timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import inspect_weights
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.models.backbones import dinov2
from ggcf_jax.models.pretrained import writing

torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')

import safetensors.numpy  # noqa: E402

from tests.models.pretrained.parity import (  # noqa: E402  (these need torch)
    assert_equal_features,
    image_of,
    imported_into,
    prefixed,
    randomise_all,
    save,
)
from tests.models.pretrained.torch_dinov2 import DINOv2  # noqa: E402

GRID = 5
TINY = dinov2.Architecture(depth=5, heads=3, grid=GRID)
WIDTH = 4
MAKE = functools.partial(dinov2.DINOv2, TINY, width=WIDTH, dtype=jnp.float32)


def _twin(depth=5, heads=3, grid=GRID, seed=0):
    network = randomise_all(DINOv2(heads * WIDTH, heads, depth, grid), seed)
    with torch.no_grad():  # unlike the patches of one another
        network.pos_embed.normal_(generator=torch.Generator().manual_seed(seed))
    return network


@pytest.mark.parametrize(
    ('prefix', 'file'), [('', 'a.pth'), ('', 'a.safetensors'), ('module.backbone.', 'b.pth')]
)
def test_every_stage(tmp_path, prefix, file):
    """Maps smaller and larger than the trained grid and of its size, sides of no multiple of 14."""
    network = _twin()
    tensors = prefixed(prefix, network)
    if file == 'a.safetensors':  # timm's have no mask token
        del tensors['mask_token']
    if prefix:
        tensors = {'state_dict': tensors | {'decode_head.bn.bias': torch.ones(3)}}
    run, imported = imported_into(MAKE, save(tmp_path / file, tensors), 'abs_gamma')
    assert imported.layout == 'DINOv2' and imported.activation == 'gelu'
    left = 0 if file == 'a.safetensors' else 2 if prefix else 1
    assert len(imported.left_out) == left
    sizes = [(65, 97)] if file != 'a.pth' else [(14 * GRID, 14 * GRID), (29, 100), (42, 70)]
    for size in sizes:
        assert_equal_features(run(image_of(size)), network, image_of(size))


@pytest.mark.parametrize(
    ('name', 'published'),
    [('dinov2_small', 22_056_576), ('dinov2_base', 86_580_480), ('dinov2_large', 304_368_640)],
)
def test_parameter_counts_are_those_of_the_published_files(name, published):
    """21 M, 86 M and 300 M in the authors' README; the mask token is for pretraining alone.

    Exact numbers: those of the network in torch, of the published depth, heads and positions.
    """
    model = config_lib.default().model
    model.update_from_flattened_dict({'backbone.name': name, 'backbone.stride': 14})
    made = nnx.eval_shape(
        lambda: dinov2.BACKBONES[name](model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    count = sum(x.size for x in jax.tree.leaves(nnx.as_pure(nnx.state(made, nnx.Param))))
    depth, heads = {'small': (12, 6), 'base': (12, 12), 'large': (24, 16)}[name.split('_')[1]]
    with torch.device('meta'):
        twin = DINOv2(64 * heads, heads, depth, 37)
    assert made.features == (64 * heads,) * 4
    assert count + 64 * heads == sum(x.numel() for x in twin.parameters()) == published


def test_written_weights_are_the_authors(tmp_path, rng):
    """Ours -> the authors' names -> the network in torch and back."""
    _, state = nnx.split(nnx.eval_shape(lambda: MAKE(rngs=nnx.Rngs(0))))
    shapes = pretrained.shapes_of(nnx.as_pure(state))
    arrays = {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    model = config_lib.default().model
    model.backbone.name = 'dinov2_small'
    tensors = writing.tensors(arrays, model)
    missing, unexpected = _twin().load_state_dict(
        {name: torch.tensor(x) for name, x in tensors.items()}, strict=False
    )
    assert missing == ['mask_token'] and not unexpected
    safetensors.numpy.save_file(tensors, tmp_path / 'a.safetensors')
    imported = pretrained.load(tmp_path / 'a.safetensors', shapes, 'batch_norm')
    for path, array in arrays.items():
        np.testing.assert_array_equal(imported.arrays[path], array, err_msg=path)


def test_files_describe_themselves(tmp_path, capsys):
    path = save(tmp_path / 'a.pth', prefixed('', _twin(depth=12, heads=6, grid=37)))
    assert pretrained.fields(path) == {
        'backbone.name': 'dinov2_small',
        'backbone.width': WIDTH,
        'backbone.stride': 14,
        'backbone.activation': 'gelu',
        'input': 'imagenet',
    }
    inspect_weights.main(inspect_weights.make_parser().parse_args([str(path)]))
    text = capsys.readouterr().out
    assert 'layout: DINOv2' in text and 'all fit, none is missing' in text
    assert 'left out: mask_token' in text


def test_files_with_registers_are_refused(tmp_path):
    tensors = prefixed('', _twin()) | {'register_tokens': torch.zeros(1, 4, 12)}
    with pytest.raises(InputError, match=r'(?s)unexpected \(1\):\s+register_tokens'):
        imported_into(MAKE, save(tmp_path / 'a.pth', tensors), 'batch_norm')
