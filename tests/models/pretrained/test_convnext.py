"""ConvNeXt against the network in torch, under the authors' names and timm's."""

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
from ggcf_jax.models.backbones import convnext, dilation
from ggcf_jax.models.pretrained import writing

torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')

import safetensors.numpy  # noqa: E402

from tests.models.pretrained.parity import (  # noqa: E402  (these need torch)
    assert_equal_features,
    features_of,
    image_of,
    imported_into,
    prefixed,
    randomise_all,
    save,
)
from tests.models.pretrained.torch_convnext import ConvNeXt  # noqa: E402

DEPTHS = (1, 2, 1, 1)
CHANNELS = 8


def _make(stride):
    return functools.partial(
        convnext.ConvNeXt,
        dilation.plan(DEPTHS, stride=stride, first_dilation='half'),
        channels=CHANNELS,
        dtype=jnp.float32,
    )


# (dilation of the 2x2 convolution, of the blocks) of each stage, written down by hand from timm.
STRIDED = (None, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('stride', 'dilations', 'timm', 'norms', 'prefix', 'file', 'layout'),
    [
        (32, [STRIDED] * 4, False, False, '', 'a.pth', 'ConvNeXt'),
        (16, [STRIDED] * 3 + [(1, 2)], False, True, 'backbone.', 'a.pth', 'ConvNeXt'),
        (8, [STRIDED] * 2 + [(1, 2), (2, 4)], True, False, '', 'a.safetensors', 'timm ConvNeXt'),
    ],
)
def test_every_stage(tmp_path, stride, dilations, timm, norms, prefix, file, layout):
    """Sizes that are no multiples of 32, too: the last patches are completed by zeros."""
    network = randomise_all(ConvNeXt(CHANNELS, DEPTHS, dilations, timm=timm, norms=norms), seed=0)
    tensors = prefixed(prefix, network)
    if file == 'a.pth':  # as the authors' classifiers, or as segmentation networks
        tensors = {'model': tensors} if not prefix else {'state_dict': tensors}
    if prefix:
        tensors['state_dict']['decode_head.conv_seg.bias'] = torch.ones(3)
    run, imported = imported_into(_make(stride), save(tmp_path / file, tensors), 'abs_gamma')
    assert imported.layout == layout and imported.activation == 'gelu'
    assert len(imported.left_out) == (1 if prefix else 4)
    x = image_of()
    assert_equal_features(run(x), network, x)


@pytest.mark.parametrize(
    ('name', 'published'),
    [('convnext_tiny', 28_589_128), ('convnext_small', 50_223_688), ('convnext_base', 88_591_464)],
)
def test_parameter_counts_are_the_published_ones(name, published):
    """torchvision's `num_params` of its ConvNeXts, whose layers are the same.

    With the classifier and its norm; without the norms of the four stages.
    """
    model = config_lib.default().model
    model.backbone.name = name
    made = nnx.eval_shape(
        lambda: convnext.BACKBONES[name](model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    params = nnx.as_pure(nnx.state(made, nnx.Param))
    norms = sum(x.size for x in jax.tree.leaves(params.pop('norms')))
    last = made.features[-1]
    assert norms == 2 * sum(made.features)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count + 2 * last + 1000 * (last + 1) == published


@pytest.mark.slow
def test_dilation_keeps_the_function(rng):
    """At stride 8 every fourth feature, from the second on, is one of stride 32.

    The taps of the dilated network that lie on others' places are those of the strided one.
    """
    x = jnp.float32(rng.normal(size=(1, 64, 32, 3)))
    graphdefs = {}
    for stride in (8, 32):
        make = _make(stride)
        network = nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0)))
        graphdefs[stride], state = nnx.split(network)
    draw = lambda x: jnp.float32(rng.normal(0, (x.size / x.shape[-1]) ** -0.5, x.shape))  # noqa: E731
    arrays = jax.tree.map(draw, nnx.as_pure(state))
    fine, coarse = (features_of(graphdefs[stride], arrays, x) for stride in (8, 32))
    np.testing.assert_allclose(fine[2][:, ::2, ::2], coarse[2], atol=1e-5)
    np.testing.assert_allclose(fine[3][:, 1::4, 1::4], coarse[3], atol=1e-5)


@pytest.mark.parametrize(
    ('stride', 'first'),
    [(32, (1.5, 3.5, 7.5, 15.5)), (16, (1.5, 3.5, 7.5, 15.5)), (8, (1.5, 3.5, 7.5, 7.5))],
)
def test_where_features_lie(stride, first):
    """The centre of the pixels that the stem and the 2x2 convolutions read."""
    model = nnx.eval_shape(lambda: _make(stride)(rngs=nnx.Rngs(0)))
    assert (model.stride, model.first) == (stride, first)
    assert model.strides == (4, 8, min(stride, 16), stride)


def test_written_weights_are_the_authors(tmp_path, rng):
    """Ours -> the authors' names -> the network in torch and back."""
    state = nnx.state(nnx.eval_shape(lambda: _make(32)(rngs=nnx.Rngs(0))))
    shapes = pretrained.shapes_of(nnx.as_pure(state))
    arrays = {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    model = config_lib.default().model
    model.backbone.name = 'convnext_tiny'
    tensors = writing.tensors(arrays, model)
    network = ConvNeXt(CHANNELS, DEPTHS, [STRIDED] * 4, timm=False, norms=True)
    network.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})
    safetensors.numpy.save_file(tensors, tmp_path / 'a.safetensors')
    imported = pretrained.load(tmp_path / 'a.safetensors', shapes, 'batch_norm')
    for path, array in arrays.items():
        np.testing.assert_array_equal(imported.arrays[path], array, err_msg=path)


def test_files_describe_themselves(tmp_path, capsys):
    architecture = convnext.ARCHITECTURES['convnext_tiny']
    network = ConvNeXt(6, architecture.depths, [STRIDED] * 4, timm=True, norms=False)
    path = save(tmp_path / 'a.safetensors', prefixed('', network))
    assert pretrained.fields(path) == {
        'backbone.name': 'convnext_tiny',
        'backbone.width': 4,
        'backbone.activation': 'gelu',
        'input': 'imagenet',
    }
    inspect_weights.main(inspect_weights.make_parser().parse_args([str(path)]))
    text = capsys.readouterr().out
    assert 'layout: timm ConvNeXt' in text and 'all fit, none is missing' in text


def test_a_file_that_lacks_a_block(tmp_path):
    network = ConvNeXt(CHANNELS, DEPTHS, [STRIDED] * 4, timm=False, norms=False)
    tensors = prefixed('', network)
    del tensors['stages.1.1.pwconv2.weight']
    path = save(tmp_path / 'a.pth', tensors)
    with pytest.raises(InputError, match=r'(?s)missing \(1\):\s+stages\.1\.1\.pwconv2\.weight'):
        imported_into(_make(32), path, 'batch_norm')
