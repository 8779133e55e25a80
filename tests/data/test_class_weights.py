import json

import numpy as np
import pytest

from ggcf_jax import data
from ggcf_jax.data import class_weights
from ggcf_jax.errors import InputError


def _weights(config, text):
    config.train.class_weights = text
    return data.class_weights_of(config, data.build(config.data))


def test_from_the_data(tiny_config, tmp_path):
    weights = _weights(tiny_config, 'data')
    dataset = data.build(tiny_config.data)
    source = dataset.source('train')
    labels = np.concatenate([dataset.decode_label(source[i]).ravel() for i in range(len(source))])
    counts = np.bincount(labels, minlength=256)[:11]
    np.testing.assert_allclose(weights, 1 / np.log(1.1 + counts / counts.sum()))
    (kept,) = (tmp_path / 'prepared' / 'ggcf_jax_class_pixels').iterdir()
    before = kept.stat().st_mtime_ns
    assert _weights(tiny_config, 'data') == weights
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    'damage',
    [b'', b'\xff', b'[1, 2]', b'{}', b'{"pixels": [1]}', b'{"pixels": ["1"]}', b'[' * 10**5]
    + [b'{"pixels": %s}' % json.dumps(x).encode() for x in ([0] * 11, [-1] * 11, [0.5] * 11, {})],
)
def test_damaged_counts_are_made_again(tiny_config, tmp_path, damage):
    weights = _weights(tiny_config, 'data')
    (kept,) = (tmp_path / 'prepared' / 'ggcf_jax_class_pixels').iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    assert _weights(tiny_config, 'data') == weights
    assert kept.read_bytes() == whole


def test_by_name_and_number(tiny_config):
    assert _weights(tiny_config, 'none') == ()
    assert (
        _weights(tiny_config, ','.join('123456789ab'.replace('a', '0').replace('b', '1')))[2] == 3
    )
    assert len(class_weights.CITYSCAPES) == 19
    with pytest.raises(InputError, match=r"'cityscapes' has 19 values, .* has 11"):
        _weights(tiny_config, 'cityscapes')


@pytest.mark.parametrize('text', ['datas', '1,x', '1,nan', ''])
def test_malformed(text):
    with pytest.raises(InputError, match=r'class_weights=.* is not one of none, cityscapes, data'):
        class_weights.parse(text)
