"""MiT against the network in torch, under the names of its authors, mmseg and transformers."""

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
from ggcf_jax.models.backbones import mit
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
from tests.models.pretrained.torch_mit import MiT, as_mmseg, as_transformers  # noqa: E402

TINY = mit.Architecture((1, 2, 1, 1), 4)
MAKE = functools.partial(mit.MiT, TINY, dtype=jnp.float32)


@functools.cache
def _twin():
    return randomise_all(MiT(TINY.head_channels, TINY.depths), seed=0)


def _authors(state):
    return state


def _segmenter(state):
    own = {f'backbone.{name}': x for name, x in as_mmseg(state).items()}
    return {'state_dict': own | {'decode_head.conv_seg.bias': torch.ones(3)}}


@pytest.mark.parametrize(
    ('named', 'file', 'layout', 'left_out', 'sizes'),
    [
        # Sizes that no reduction divides, and such as all do.
        (_authors, 'a.pth', 'SegFormer MiT', 2, [(65, 97), (64, 128)]),
        (_segmenter, 'a.pth', 'mmseg MiT', 1, [(65, 97)]),
        (as_transformers, 'a.safetensors', 'transformers MiT', 2, [(65, 97)]),
    ],
)
def test_every_stage(tmp_path, named, file, layout, left_out, sizes):
    network = _twin()
    path = save(tmp_path / file, named(prefixed('', network)))
    run, imported = imported_into(MAKE, path, 'abs_gamma')
    assert imported.layout == layout and imported.activation == 'gelu'
    assert len(imported.left_out) == left_out
    for size in sizes:
        assert_equal_features(run(image_of(size)), network, image_of(size))


@pytest.mark.parametrize('name', mit.ARCHITECTURES)
def test_parameter_counts_are_those_of_the_published_networks(name):
    """Those of the network in torch, of the published depths and channels."""
    model = config_lib.default().model
    model.update_from_flattened_dict({'backbone.name': name, 'backbone.stride': 32})
    made = nnx.eval_shape(
        lambda: mit.BACKBONES[name](model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    count = sum(x.size for x in jax.tree.leaves(nnx.as_pure(nnx.state(made, nnx.Param))))
    channels, depths = {
        'mit_b0': (32, (2, 2, 2, 2)),
        'mit_b1': (64, (2, 2, 2, 2)),
        'mit_b2': (64, (3, 4, 6, 3)),
        'mit_b3': (64, (3, 4, 18, 3)),
        'mit_b4': (64, (3, 8, 27, 3)),
        'mit_b5': (64, (3, 6, 40, 3)),
    }[name]
    with torch.device('meta'):
        twin = MiT(channels, depths)
    del twin.head
    assert made.features == tuple(channels * heads for heads in (1, 2, 5, 8))
    assert count == sum(x.numel() for x in twin.parameters())
    if name == 'mit_b4':  # 64 M in the paper's abstract with the decoder, of 3.3 M
        assert abs(count / 1e6 - 64) < 3.5


def test_written_weights_are_the_authors(tmp_path, rng):
    """Ours -> the authors' names -> the network in torch and back."""
    _, state = nnx.split(nnx.eval_shape(lambda: MAKE(rngs=nnx.Rngs(0))))
    shapes = pretrained.shapes_of(nnx.as_pure(state))
    arrays = {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    model = config_lib.default().model
    model.backbone.name = 'mit_b0'
    tensors = writing.tensors(arrays, model)
    missing, unexpected = MiT(TINY.head_channels, TINY.depths).load_state_dict(
        {name: torch.tensor(x) for name, x in tensors.items()}, strict=False
    )
    assert missing == ['head.weight', 'head.bias'] and not unexpected
    safetensors.numpy.save_file(tensors, tmp_path / 'a.safetensors')
    imported = pretrained.load(tmp_path / 'a.safetensors', shapes, 'batch_norm')
    for path, array in arrays.items():
        np.testing.assert_array_equal(imported.arrays[path], array, err_msg=path)


@pytest.mark.parametrize('named', [as_mmseg, as_transformers])
def test_files_describe_themselves(tmp_path, capsys, named):
    network = MiT(4, mit.ARCHITECTURES['mit_b2'].depths)
    path = save(tmp_path / 'a.safetensors', named(prefixed('', network)))
    assert pretrained.fields(path) == {
        'backbone.name': 'mit_b2',
        'backbone.width': 4,
        'backbone.stride': 32,
        'backbone.activation': 'gelu',
        'input': 'imagenet',
    }
    inspect_weights.main(inspect_weights.make_parser().parse_args([str(path)]))
    text = capsys.readouterr().out
    assert 'all fit, none is missing' in text
    counted = len(named(prefixed('', network))) - 2 * (named is as_transformers)
    assert f'backbone: {counted} tensors' in text and '0 counters' in text


@pytest.mark.parametrize(
    ('named', 'lost', 'missing'),
    [
        (as_mmseg, 'layers.1.1.0.attn.attn.in_proj_weight', r'block2\.0\.attn\.q\.weight'),
        (
            as_transformers,
            'segformer.encoder.block.1.0.attention.self.value.bias',
            r'block2\.0\.attn\.kv\.bias',
        ),
    ],
)
def test_a_file_that_lacks_a_tensor(tmp_path, named, lost, missing):
    tensors = named(prefixed('', _twin()))
    del tensors[lost]
    with pytest.raises(InputError, match=rf'(?s)missing \(\d\):.*{missing}'):
        imported_into(MAKE, save(tmp_path / 'a.pth', tensors), 'batch_norm')
