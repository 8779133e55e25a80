"""Swin against the network in torch, under the authors' names and timm's."""

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
from ggcf_jax.models.backbones import dilation, swin
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.pretrained import writing

torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')

import safetensors.numpy  # noqa: E402

from tests.models.pretrained import torch_swin  # noqa: E402  (these need torch)
from tests.models.pretrained.parity import (  # noqa: E402
    assert_equal_features,
    image_of,
    imported_into,
    prefixed,
    randomise_all,
    save,
)

DEPTHS = (2, 2, 2, 2)
CHANNELS, HEADS = 8, 2


def _make(stride, depths=DEPTHS):
    return functools.partial(
        swin.Swin,
        dilation.plan(depths, stride=stride, first_dilation='half'),
        channels=CHANNELS,
        heads=HEADS,
        dtype=jnp.float32,
    )


# (distance of the positions that are merged, of those of windows), written down by hand.
STRIDED = (None, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('stride', 'dilations', 'timm', 'norms', 'prefix', 'file', 'layout'),
    [
        (32, [STRIDED] * 4, False, False, '', 'a.pth', 'Swin'),
        (16, [STRIDED] * 3 + [(1, 2)], False, True, 'backbone.', 'a.pth', 'Swin'),
        (8, [STRIDED] * 2 + [(1, 2), (2, 4)], True, False, '', 'a.safetensors', 'timm Swin'),
    ],
)
def test_every_stage(tmp_path, stride, dilations, timm, norms, prefix, file, layout):
    """Maps of 17 x 25, 9 x 13, 5 x 7 and 3 x 4: windows are completed, pairs as well."""
    network = torch_swin.Swin(CHANNELS, HEADS, DEPTHS, dilations, timm=timm, norms=norms)
    randomise_all(network, seed=0)
    tensors = prefixed(prefix, network)
    if file == 'a.pth':  # as the authors' classifiers, or as segmentation networks
        tensors = {'model': tensors} if not prefix else {'state_dict': tensors}
    run, imported = imported_into(_make(stride), save(tmp_path / file, tensors), 'batch_norm')
    assert imported.layout == layout
    # The classifier and its norm, and the buffers of eight layers.
    assert len(imported.left_out) == (0 if norms else 4) + 8 + 4
    x = image_of()
    assert_equal_features(run(x), network, x)


@pytest.mark.slow
@pytest.mark.parametrize(('shift', 'size'), [(0, (10, 17)), (3, (10, 17)), (3, (7, 4))])
@pytest.mark.parametrize('dilation_of', [1, 2])
def test_windows_are_those_of_cyclic_shifts(rng, shift, size, dilation_of):
    """One layer of attention: shifts, masks and zeros that are keys, in values and gradients."""
    theirs = randomise_all(torch_swin.Attention(CHANNELS, HEADS), seed=1)
    table = theirs.relative_position_bias_table
    with torch.no_grad():
        table *= 3
    ours = swin.WindowAttention(
        CHANNELS, HEADS, shift=shift, dilation=dilation_of, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    for layer, name in ((ours.qkv, 'qkv'), (ours.project, 'proj')):
        layer.kernel[...] = getattr(theirs, name).weight.detach().numpy().T
        layer.bias[...] = getattr(theirs, name).bias.detach().numpy()
    ours.table[...] = table.detach().numpy()
    x = rng.normal(size=(2, *size, CHANNELS)).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)

    given = torch.tensor(x, requires_grad=True)
    out = torch.zeros_like(given)
    d = dilation_of
    for i in range(d):
        for j in range(d):
            out[:, i::d, j::d] = torch_swin.attend(theirs, given[:, i::d, j::d], shift)
    (out * torch.tensor(weight)).sum().backward()

    graphdef, params = nnx.split(ours)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y = nnx.merge(graphdef, params, copy=True)(x)
            return (y * weight).sum(), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    (dparams, dx), y = run(params, x)
    np.testing.assert_allclose(y, out.detach(), atol=2e-5)
    np.testing.assert_allclose(dx, given.grad, atol=2e-5)
    np.testing.assert_allclose(dparams['table'][...], table.grad, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('dilation_of', [1, 2])
def test_an_image_in_a_padded_batch_is_itself(rng, dilation_of):
    """Zeros up to its own windows are keys, whatever else the batch has is not."""
    layer = swin.WindowAttention(
        CHANNELS, HEADS, shift=3, dilation=dilation_of, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    layer.qkv.bias[...] = rng.normal(size=3 * CHANNELS)
    x = jnp.asarray(rng.normal(size=(2, 30, 16, CHANNELS)), jnp.float32)
    sizes = [(9, 16), (15, 3)]
    run = jax.jit(lambda x, extent: layer(x, extent=extent))
    spoiled = run(x, extent_lib.of_sizes(jnp.array(sizes)))
    for found, image, (h, w) in zip(spoiled, x, sizes):
        alone = run(image[None, :h, :w], None)[0]
        np.testing.assert_allclose(found[:h, :w], alone, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'published'), [('swin_tiny', 28_288_354), ('swin_small', 49_606_258)]
)
def test_parameter_counts_are_the_published_ones(name, published):
    """torchvision's `num_params` of its Swins, whose layers are the same; with the classifier."""
    model = config_lib.default().model
    model.backbone.name = name
    made = nnx.eval_shape(
        lambda: swin.BACKBONES[name](model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    params = nnx.as_pure(nnx.state(made, nnx.Param))
    del params['norms']
    last = made.features[-1]
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count + 2 * last + 1000 * (last + 1) == published


def test_written_weights_are_the_authors(tmp_path, rng):
    """Ours -> the authors' names -> the network in torch, and back."""
    state = nnx.state(nnx.eval_shape(lambda: _make(32)(rngs=nnx.Rngs(0))))
    shapes = pretrained.shapes_of(nnx.as_pure(state))
    arrays = {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    model = config_lib.default().model
    model.backbone.name = 'swin_tiny'
    tensors = writing.tensors(arrays, model)
    network = torch_swin.Swin(CHANNELS, HEADS, DEPTHS, [STRIDED] * 4, timm=False, norms=True)
    missing, unexpected = network.load_state_dict(
        {name: torch.tensor(x) for name, x in tensors.items()}, strict=False
    )
    assert not unexpected
    assert all(x.endswith(('relative_position_index', 'attn_mask')) for x in missing)
    safetensors.numpy.save_file(tensors, tmp_path / 'a.safetensors')
    imported = pretrained.load(tmp_path / 'a.safetensors', shapes, 'batch_norm')
    for path, array in arrays.items():
        np.testing.assert_array_equal(imported.arrays[path], array, err_msg=path)


def test_files_describe_themselves(tmp_path, capsys):
    architecture = swin.ARCHITECTURES['swin_tiny']
    network = torch_swin.Swin(6, 3, architecture.depths, [STRIDED] * 4, timm=True, norms=False)
    path = save(tmp_path / 'a.safetensors', prefixed('', network))
    fields = pretrained.fields(path)
    assert (fields['backbone.name'], fields['backbone.width']) == ('swin_tiny', 4)
    inspect_weights.main(inspect_weights.make_parser().parse_args([str(path)]))
    text = capsys.readouterr().out
    assert 'layout: timm Swin' in text and 'all fit, none is missing' in text


def test_a_network_of_other_heads_is_told(tmp_path):
    network = torch_swin.Swin(8, 4, (2, 2, 6, 2), [STRIDED] * 4, timm=False, norms=False)
    path = save(tmp_path / 'a.pth', prefixed('', network))
    with pytest.raises(InputError, match=r"fits config.model.backbone.name='none: a Swin of "):
        imported_into(_make(32), path, 'batch_norm')


def test_a_width_that_heads_cannot_share(tiny_config):
    tiny_config.model.backbone.update({'name': 'swin_tiny', 'width': 3})
    with pytest.raises(InputError, match='gives swin_tiny 4 channels, which its 3 heads cannot'):
        swin.BACKBONES['swin_tiny'](
            tiny_config.model, remat='none', dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
