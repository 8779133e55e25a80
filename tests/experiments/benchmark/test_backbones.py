"""The benchmark of the backbones, on tiny networks: it compares equal networks and layers."""

import numpy as np
import pytest

pytest.importorskip('torch', reason='the parity extra (torch) is not installed')

from experiments.benchmark import backbones

pytestmark = pytest.mark.slow
SMALL = {case.name: backbones.Case(case.name, 8, 2, 33) for case in backbones.CASES}


@pytest.mark.parametrize('name', ['resnet10', 'wide_resnet38', 'mobilenet_v2'])
def test_peers_have_the_same_features(name):
    image = backbones._image(SMALL[name])
    ours = backbones._jax_calls(SMALL[name])['forward']()
    assert len(ours[0].sharding.device_set) == 2  # an image each, as in main.py
    network = backbones._torch_network(SMALL[name])
    x = backbones.torch.tensor(image).permute(0, 3, 1, 2)
    shapes = [tuple(np.moveaxis(y.detach().numpy(), 1, 3).shape) for y in network(x)]
    assert [y.shape for y in ours] == shapes


def test_tables():
    case = SMALL['resnet10']
    rows = list(backbones.network_rows([case], 1))
    assert [row.split(' | ')[1] for row in rows[2:]] == ['forward', 'training']
    found = backbones.layers(case)
    assert sum(found.values()) == 1 + 4 * 2 + 3  # stem, blocks, skips where the shape changes
    rows = list(backbones.layer_rows([case], 1))
    assert len(rows) == 2 + len(found)
    more = [float(row.split(' | ')[-1].rstrip(' |')) for row in rows[2:]]
    assert more == sorted(more, reverse=True)
    depthwise = [each for each in backbones.layers(SMALL['mobilenet_v2']) if each.depthwise]
    assert set(backbones.compare_layer(depthwise[0], 1)) == {'forward', 'input', 'kernel'}
    whole = backbones.Case('mit_b0', 8, 1, 64)  # a multiple of all patches
    patches = [each for each in backbones.layers(whole) if each.is_of_patches]
    assert set(backbones.compare_layer(patches[0], 1)) == {'forward', 'input', 'kernel'}
