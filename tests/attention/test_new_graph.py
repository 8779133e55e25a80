"""A graph of a user's own: one class with one method, in a package outside of the repository."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tables import efficiency
from ggcf_jax import models
from ggcf_jax.attention import (
    attend,
    attention_weights,
    neighbor_mask,
    parse,
    resolve_implementation,
)
from ggcf_jax.models.contexts import pruning_rules
from tests.attention.cases import assert_close, inputs

H, W = 5, 7


@pytest.fixture
def ring(tmp_path, monkeypatch):
    """Head grammar of a graph in a package of its own: distance 0 or exactly `radius`."""
    (tmp_path / 'my_rings').mkdir()
    (tmp_path / 'my_rings' / '__init__.py').write_text('')
    (tmp_path / 'my_rings' / 'ring.py').write_text(
        textwrap.dedent("""
            import dataclasses

            import jax.numpy as jnp

            from ggcf_jax.attention import OffsetGraph


            @dataclasses.dataclass(frozen=True)
            class Ring(OffsetGraph):
                radius: int

                def edges(self, dy, dx):
                    distance = jnp.maximum(jnp.abs(dy), jnp.abs(dx))
                    return (distance == 0) | (distance == self.radius)


            NOT_A_GRAPH = 3
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    return 'my_rings.ring:Ring'


def definition(radius):
    y, x = np.divmod(np.arange(H * W), W)
    far = np.maximum(abs(y[:, None] - y), abs(x[:, None] - x))
    return (far == 0) | (far == radius)


def test_it_parses_and_prints(ring):
    two, three, local = parse(f'{ring}:2,3,local:4')
    assert (two.radius, three.radius) == (2, 3)
    assert parse(str(two)) == (two,) and two.kind() == ring
    assert str(local) == 'local:4'


def test_it_is_counted(ring):
    (graph,) = parse(f'{ring}:2')
    expected = definition(2)
    assert graph.num_edges(H, W) == expected.sum()
    assert graph.max_degree(H, W) == expected.sum(1).max()
    assert jax.jit(lambda: graph.max_degree(H, W))() == expected.sum(1).max()
    assert efficiency.Module((graph,), H, W).mean_degree == pytest.approx(expected.sum() / (H * W))


def test_it_attends_prunes_and_shows_its_maps(ring):
    (graph,) = parse(f'{ring}:2')
    assert resolve_implementation(graph).implementation == 'reference'
    q, k, *_ = inputs(1, H, W, 1, 4, 4)
    v = jnp.eye(H * W).reshape(1, H, W, 1, H * W)
    weights = np.asarray(attend(q, k, v, graph)).reshape(H * W, H * W)
    scores = np.asarray(q).reshape(H * W, 4) @ np.asarray(k).reshape(H * W, 4).T
    expected = np.exp(scores) * definition(2)
    np.testing.assert_allclose(weights, expected / expected.sum(1, keepdims=True), rtol=1e-5)
    kept = np.asarray(attend(q, k, v, graph, keep=2)).reshape(H * W, H * W) > 0
    assert (kept.sum(1) == 2).all() and (kept <= definition(2)).all()
    at = np.array([[0, 0], [3, 5]])
    rows = attention_weights(q, k, graph, at)
    assert_close(rows.reshape(2, -1), weights[at @ (W, 1)], 1e-6)
    seen = np.asarray(neighbor_mask(graph, at, H, W)).reshape(2, -1)
    assert (seen == definition(2)[at @ (W, 1)]).all()


def test_pruning_rules_name_it(ring):
    (rule,) = pruning_rules.parse(f'{ring}:drop=0.5')
    assert (rule.kind, rule.drop_rate) == (ring, 0.5)
    heads = parse(f'{ring}:2,full')
    assert pruning_rules.assign([rule], heads) == (rule, None)


def test_a_network_has_it_for_a_head(ring, tiny_config):
    tiny_config.model.heads = f'{ring}:1,local:1'
    model = models.build(tiny_config, 3)
    assert ','.join(map(str, model.heads)) == tiny_config.model.heads
    images = jax.ShapeDtypeStruct((1, 32, 24, 3), jnp.uint8)
    logits = jax.eval_shape(lambda x: model(x, train=False)[0], images)
    assert logits.shape == (1, 4, 3, 3)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('my_rings.sphere:Sphere', "No module named 'my_rings.sphere'.*PYTHONPATH"),
        ('my_rings.ring:Square:2', "no attribute 'Square'"),
        ('my_rings.ring:NOT_A_GRAPH', 'not a subclass of ggcf_jax.attention.Graph'),
        ('my_rings.ring:Ring', r'takes \(radius: int\)'),
        ('my_rings.ring:Ring:x', 'whole number'),
    ],
)
def test_mistakes_are_named(ring, text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)
