import jax
import pytest

from ggcf_jax import config as config_lib
from ggcf_jax import data
from ggcf_jax.attention import target
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.training import overview
from ggcf_jax.training import state as state_lib


@pytest.mark.parametrize(
    ('fields', 'devices', 'expected'),
    [
        (
            {},
            (8, 1),
            {
                'devices': '8 x cpu (cpu)',
                'mesh': '8 x data; 1 image a device',
                'network': 'resnet10, output stride 8, ggcf local:1,grid:2, 11 classes',
                'weights': 'from scratch',
                'data': 'camvid: train 6, validation 3 images; crops of 24 x 24; up to 256 MiB of '
                'decoded training images are kept in memory',
                'precision': 'float32',
                'steps': '12, batches of 8 (16 epochs); evaluation every 6, checkpoint every 3',
            },
        ),
        (
            {
                'train.accumulate': 2,
                'train.dtype': 'bfloat16',
                'train.remat': 'block',
                'train.ema_decay': 0.9,
                'data.cache_mib': 0,
                'data.train_split': 'train:0.75,validation:0.25',
                'model.context': 'none',
            },
            (4, 2),
            {
                'mesh': '2 x data, 2 x space; 2 images for 2 devices, 2 times a step',
                'network': 'resnet10, output stride 8, none, 11 classes',
                'data': 'camvid: train 6, validation 3 images; crops of 24 x 24',
                'precision': 'bfloat16, parameters float32; rematerialisation block',
                'steps': '12, batches of 8 (train 12, validation 8 epochs); evaluation every 6, '
                'checkpoint every 3',
            },
        ),
    ],
)
def test_rows(tiny_config, fields, devices, expected):
    tiny_config.update_from_flattened_dict(fields)
    mesh = mesh_lib.make_mesh(jax.devices()[: devices[0]], devices[1])
    shapes = jax.eval_shape(state_lib.creator(tiny_config, 11, mesh))
    shapes = shapes.replace(step=0)
    dataset = data.build(tiny_config.data)
    rows = dict(overview.rows(tiny_config, mesh, dataset, shapes, 'from scratch'))
    assert {name: rows[name] for name in expected} == expected
    assert ' k, all trainable; ' in rows['parameters']
    assert ('moving average' in rows['parameters']) == ('train.ema_decay' in fields)


def test_resumed_runs_and_frozen_statistics_are_told(tiny_config):
    tiny_config.model.backbone.statistics = 'running'
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    shapes = jax.eval_shape(state_lib.creator(tiny_config, 11, mesh)).replace(step=3)
    rows = dict(overview.rows(tiny_config, mesh, data.build(tiny_config.data), shapes, 'a'))
    assert rows['steps'].startswith('12 from step 3, batches of 8')
    assert rows['parameters'].endswith('batch statistics, frozen in the backbone')


def test_what_computes_the_attention_of_accelerators():
    config = config_lib.default()
    h100, a100 = (target.Device('gpu', (n, 0)) for n in (9, 8))
    heads = 'local:8 local:16 local:24 grid:8 grid:16 grid:24'
    assert overview._attention(config, h100) == overview._attention(config, a100)
    assert overview._attention(config, h100) == f'{heads} by cudnn'
    assert overview._attention(config, target.Device('cpu')) == ''
    assert overview._attention(config, target.Device('tpu')) == (
        'local:8 local:16 local:24 by pallas, grid:8 grid:16 grid:24 by xla '
        '(pallas: there is no kernel for grid graphs)'
    )
    config.model.heads = 'full'
    v5e, v3 = (target.Device('tpu', kind=f'TPU {name}') for name in ('v5 lite', 'v3'))
    assert overview._attention(config, v5e) == 'full by pallas'
    assert overview._attention(config, v3) == (
        'full by xla (pallas: its kernels are not for a TPU v3)'
    )
    config.model.heads = 'full,learned'
    assert overview._attention(config, h100) == (
        'full by cudnn, learned by xla (cudnn: it has no form of learned graphs)'
    )
    config.train.dtype = 'float32'
    assert 'not float32' in overview._attention(config, h100)
    config.model.attention = 'xla'
    assert overview._attention(config, h100) == 'full learned by xla'
