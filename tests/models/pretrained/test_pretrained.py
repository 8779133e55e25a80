"""Reading weights: what is refused, and what the inspection says. Values: test_parity.py."""

import functools
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from experiments import inspect_weights as inspection
from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.models.backbones import dilation
from ggcf_jax.models.backbones.resnet import ARCHITECTURES, ResNet
from ggcf_jax.models.pretrained import layouts, slots

WIDTH = 4


@functools.cache
def _shapes(name='resnet18', width=WIDTH, **options):
    """Only read: they are those of one network for many tests."""

    def build():
        stages = dilation.plan(ARCHITECTURES[name].depths, **{'stride': 8} | options)
        return ResNet(
            ARCHITECTURES[name],
            stages,
            width=width,
            stem='7x7',
            activation='relu',
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )

    return pretrained.shapes_of(nnx.as_pure(nnx.state(nnx.eval_shape(build))))


def _tensors(shapes, rng):
    """Random tensors of a torchvision file, as PyTorch lays them out."""
    layout = next(x for x in layouts.LAYOUTS if x.name == 'torchvision ResNet')
    tensors = {}
    for name, slot in slots.expand(shapes).items():
        value = rng.uniform(0.5, 1.5, slot.shape).astype(np.float32)
        tensors[layout.rename(name)] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return tensors | {'fc.weight': np.ones((3, 4), np.float32), 'fc.bias': np.ones(3, np.float32)}


def _save(path, tensors):
    safetensors.numpy.save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, path)
    return path


def test_repeated_and_single_blocks_are_filled_from_the_same_names(tmp_path, rng):
    stacked = _shapes('resnet50')
    tensors = _tensors(stacked, rng)
    path = _save(tmp_path / 'w.safetensors', tensors)
    a = pretrained.load(path, stacked, 'batch_norm')
    b = pretrained.load(path, _shapes('resnet50', multi_grid=(1, 2, 4)), 'batch_norm')
    assert a.matched == b.matched == len(tensors) - 2 and a.left_out == ('fc.bias', 'fc.weight')
    np.testing.assert_array_equal(
        a.arrays['stages.3.1.blocks.layers.1.conv.kernel'][1],
        b.arrays['stages.3.2.layers.1.conv.kernel'],
    )
    np.testing.assert_array_equal(
        b.arrays['stages.3.2.layers.1.conv.kernel'],
        tensors['layer4.2.conv2.weight'].transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize(
    'prefix',
    ['module.', '_orig_mod.', 'model.', 'encoder.', 'module._orig_mod.', 'model.backbone.'],
)
def test_prefixes_of_wrappers_are_removed(tmp_path, rng, prefix):
    shapes = _shapes('resnet18')
    tensors = _tensors(shapes, rng)
    plain = pretrained.load(_save(tmp_path / 'plain.safetensors', tensors), shapes, 'batch_norm')
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()} | {
        'loss.weight': np.ones(2, np.float32)
    }
    found = pretrained.load(_save(tmp_path / 'w.safetensors', wrapped), shapes, 'batch_norm')
    assert (plain.prefix, found.prefix) == ('', prefix)
    assert found.matched == plain.matched and 'loss.weight' in found.left_out
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, rng, value):
    shapes = _shapes('resnet18')
    tensors = _tensors(shapes, rng)
    tensors['layer1.0.bn1.running_var'][0] = value
    path = _save(tmp_path / 'w.safetensors', tensors)
    with pytest.raises(InputError, match=r'NaN or infinite: layer1\.0\.bn1\.running_var'):
        pretrained.load(path, shapes, 'batch_norm')


def test_what_does_not_fit_is_listed(tmp_path, rng):
    shapes = _shapes()
    tensors = _tensors(shapes, rng)
    tensors['layer2.0.conv3.weight'] = tensors.pop('layer2.0.conv2.weight')
    tensors['bn1.weight'] = np.ones(7, np.float32)
    path = _save(tmp_path / 'w.safetensors', tensors)
    with pytest.raises(InputError) as error:
        pretrained.load(path, shapes, 'batch_norm')
    message = str(error.value)
    assert 'layout torchvision ResNet' in message
    assert 'missing (1):\n    layer2.0.conv2.weight' in message
    assert 'unexpected (1):\n    layer2.0.conv3.weight' in message
    assert 'of another shape (1):\n    bn1.weight: [7] in the file, [4] in the network' in message
    assert "the file fits config.model.backbone.name='resnet18'" in message


@pytest.mark.parametrize('name', ['resnet50', 'mobilenet_v2', 'wide_resnet38'])
def test_weights_of_another_network(tmp_path, rng, name):
    path = _save(tmp_path / 'w.safetensors', _tensors(_shapes(), rng))
    shapes = inspection._shapes({'backbone.name': name, 'backbone.width': WIDTH})
    with pytest.raises(
        InputError, match=r"(?s)missing \(.*fits config.model.backbone.name='resnet18'"
    ):
        pretrained.load(path, shapes, 'batch_norm')


def test_scales_keep_their_function(rng):
    """Those of batch norms; a layer norm has no running mean, and is none of `model.norm`."""
    arrays = {'a.scale': np.float32([-0.5, 0.0, 2.0]), 'a.bias': np.float32([-1, 0, 1])}
    arrays |= {'a.mean': np.zeros(3, np.float32), 'b.scale': np.float32([-3.0])}
    plain = pretrained.convert_scales(
        arrays, source='abs_gamma', target='batch_norm', where='w.pth'
    )
    np.testing.assert_allclose(plain['a.scale'], np.float32([0.5, 0.0, 2.0]) + 1e-5)
    for name in ('a.bias', 'b.scale'):
        np.testing.assert_array_equal(plain[name], arrays[name])
    back = pretrained.convert_scales(plain, source='batch_norm', target='abs_gamma', where='w.pth')
    np.testing.assert_allclose(back['a.scale'], [0.5, 0.0, 2.0], atol=1e-7)
    with pytest.raises(InputError, match=r'w.pth has negative scales \(1\).*abs_gamma.*batch_norm'):
        pretrained.convert_scales(arrays, source='batch_norm', target='abs_gamma', where='w.pth')


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    def load(path):
        return pretrained.load(path, {}, 'batch_norm')

    with pytest.raises(InputError, match=r"weights='.*nowhere.pth': there is no such file"):
        load(tmp_path / 'nowhere.pth')
    path = tmp_path / 'w.h5'
    path.write_bytes(b'x')
    with pytest.raises(InputError, match=r"'.h5' is not one of .safetensors, .pth"):
        load(path)
    path = tmp_path / 'w.safetensors'
    path.write_bytes(b'not safetensors')
    with pytest.raises(InputError, match='cannot be read as safetensors'):
        load(path)
    _save(path, {'a': np.ones(3, np.float32), 'b': np.ones(3, np.float32)})
    with pytest.raises(
        InputError,
        match=r'matches none of the supported layouts \(torchvision ResNet.*start with a, b',
    ):
        load(path)
    path = tmp_path / 'w.pth'
    path.write_bytes(b'x')
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(InputError, match=r"needs torch.*pip install 'ggcf_jax\[parity\]'.*convert"):
        load(path)


class _Harmful:
    def __reduce__(self):
        return (print, ('this ran',))


def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')
    for i, write in enumerate(
        [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
    ):
        path = tmp_path / f'{i}.pth'
        write({'state_dict': _Harmful()}, path)
        with pytest.raises(InputError, match='cannot be read as a PyTorch file of tensors'):
            pretrained.load(path, {}, 'batch_norm')
    assert 'this ran' not in capsys.readouterr().out


def test_inspection(tmp_path, rng, capsys):
    path = _save(tmp_path / 'w.safetensors', _tensors(_shapes('resnet50'), rng))
    parser = inspection.make_parser()
    inspection.main(parser.parse_args([str(path), '--tensors']))
    out = capsys.readouterr().out
    for line in (
        'layout: torchvision ResNet',
        '--config.model.backbone.name=resnet50',
        '--config.model.backbone.width=4',
        '--config.model.backbone.stem=7x7',
        'all fit, none is missing',
        'left out: fc.bias, fc.weight',
        'layer4.2.conv3.weight  [1, 1, 32, 128]',
    ):
        assert line in out
    with pytest.raises(InputError, match=r'nowhere\.pth'):
        inspection.main(parser.parse_args([str(tmp_path / 'nowhere.pth')]))
