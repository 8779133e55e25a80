"""Against an independent dense implementation in torch: values and gradients."""

import jax
import numpy as np
import pytest

from ggcf_jax.attention import attend, graphs
from tests.attention.cases import assert_close, inputs, values_and_gradients

torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')


def torch_mask(text, h, w):
    """Written from the definitions of the paper, pair by pair."""
    kind, _, number = text.partition(':')
    mask = torch.zeros(h * w, h * w, dtype=torch.bool)
    for i in range(h * w):
        for j in range(h * w):
            dy, dx = abs(i // w - j // w), abs(i % w - j % w)
            if kind == 'full':
                mask[i, j] = True
            elif kind == 'local':
                mask[i, j] = max(dy, dx) <= int(number)
            else:
                mask[i, j] = dy % int(number) == 0 and dx % int(number) == 0
    return mask


def torch_weights(graph, params, h, w):
    """log E of a learned graph for all pairs."""
    at = torch.arange(h * w)
    dy = (at // w)[:, None] - (at // w)[None]
    dx = (at % w)[:, None] - (at % w)[None]
    x = torch.stack([dy, dx, torch.sqrt((dy**2 + dx**2).double())], -1).double() / 32
    hidden = torch.relu(x @ params['w1'] + params['b1'])
    return torch.log(torch.nn.functional.softplus(hidden @ params['w2'] + params['b2']))


def torch_attend(q, k, v, bias, mask):
    b, h, w, heads, _ = q.shape
    q, k, v = (x.reshape(b, h * w, heads, -1).transpose(1, 2) for x in (q, k, v))
    s = (q @ k.transpose(-1, -2) + bias).masked_fill(~mask, -torch.inf)
    return (s.softmax(-1) @ v).transpose(1, 2).reshape(b, h, w, heads, -1)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['full', 'local:1', 'local:4', 'grid:2', 'grid:5', 'learned:8'])
@pytest.mark.parametrize('shape', [(2, 7, 11, 2), (1, 1, 7, 1)], ids=str)
def test_values_and_gradients(text, shape):
    _, h, w, _ = shape
    q, k, v, weight = inputs(*shape, 6, 5)
    graph = graphs.parse(text)[0]
    tensors = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (q, k, v)]
    if text.startswith('learned'):
        params = jax.tree.map(lambda x: x + 0.2, graph.init(jax.random.key(3)))
        names = sorted(params)
        extra = [torch.tensor(np.asarray(params[n], np.float64), requires_grad=True) for n in names]
        bias = torch_weights(graph, dict(zip(names, extra)), h, w)
        mask = torch.ones(h * w, h * w, dtype=torch.bool)
        arguments, f = (q, k, v, params), lambda q, k, v, p: attend(q, k, v, graph.bind(p))
    else:
        extra, bias, mask = [], 0.0, torch_mask(text, h, w)
        arguments, f = (q, k, v), lambda q, k, v: attend(q, k, v, graph)
    o = torch_attend(*tensors, bias, mask)
    (o * torch.tensor(np.asarray(weight, np.float64))).sum().backward()
    expected = (o.detach().numpy(), [x.grad.numpy() for x in (*tensors, *extra)])
    assert_close(values_and_gradients(f, weight, *arguments), expected, 1e-5)
