import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.norm import ActivatedNorm
from tests.helpers import compiled


def test_training_and_inference_outputs(tiny_config):
    graphdef, params, stats = models.split(compiled(lambda: models.build(tiny_config, 5)))
    images = np.random.default_rng(0).integers(0, 255, (2, 33, 40, 3), np.uint8)

    @jax.jit
    def run(params, stats, images, key):
        model = models.merge(graphdef, params, stats)
        inference = model(images)
        before = models.split(model)[2]
        return inference, before, model(images, train=True, key=key), models.split(model)[2]

    inference, before, training, after = run(params, stats, images, jax.random.key(0))
    logits, aux = inference
    assert logits.shape == (2, 5, 5, 5) and logits.dtype == jnp.float32 and aux is None
    assert [x.shape for x in training] == [(2, 5, 5, 5)] * 2
    # Inference leaves the statistics alone, training moves every one of them.
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(stats)))
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))


def test_the_auxiliary_head_at_stride_32(tiny_config):
    """Stage 3 stays at stride 16: its logits are upsampled by that."""
    tiny_config.model.backbone.stride = 32
    model = nnx.eval_shape(lambda: models.build(tiny_config, 5))
    graphdef, state = nnx.split(model)

    def run(state, images, key):
        model = nnx.merge(graphdef, state)
        logits, aux = model(images, train=True, key=key)
        whole = model.upsample(logits, (40, 33)), model.upsample_aux(aux, (40, 33))
        return logits, aux, *whole

    images = jax.ShapeDtypeStruct((2, 40, 33, 3), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = jax.eval_shape(run, state, images, key)
    assert [x.shape[1:3] for x in found] == [(2, 2), (3, 3), (40, 33), (40, 33)]


def test_bfloat16_keeps_parameters_and_logits_in_float32(tiny_config):
    tiny_config.train.dtype = 'bfloat16'
    graphdef, params, stats = models.abstract(tiny_config, 5)
    assert {x.dtype for x in jax.tree.leaves((params, stats))} == {jnp.dtype('float32')}
    logits, _ = jax.eval_shape(
        lambda p, s: models.merge(graphdef, p, s)(jnp.zeros((1, 16, 16, 3), jnp.uint8)),
        params,
        stats,
    )
    assert logits.dtype == jnp.float32


def test_abstract_is_the_shape_of_build(tiny_config):
    graphdef, params, stats = models.abstract(tiny_config, 5)
    built = models.split(models.build(tiny_config, 5))
    assert graphdef == built[0]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, stats))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), built[1:])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model.backbone.name': 'resnet9'}, r"backbone.name='resnet9' is not one of .*resnet101"),
        (
            {'model.context': 'gcf'},
            "context='gcf' is not one of aspp, ccnet, ggcf, isa, linear, none",
        ),
        ({'model.heads': 'gird:8'}, "heads='gird:8': head 'gird:8' is not one of full, local:S"),
        ({'model.activation': 'swish'}, "activation='swish' is not one of relu, leaky_relu"),
        ({'model.backbone.stem': '5x5'}, "stem='5x5' is not one of 7x7, 64-64-128"),
        ({'model.norm': 'group_norm'}, "norm='group_norm' is not one of batch_norm, abs_gamma"),
        ({'model.input': 'bgr'}, "input='bgr' is not one of imagenet, caffe, ocnet, ccnet, vistas"),
        ({'model.backbone.activation': 'elu'}, "backbone.activation='elu' is not one of relu"),
        ({'model.dropout_of': 'pixel'}, "dropout_of='pixel' is not one of value, channel"),
        ({'train.dtype': 'float16'}, "dtype='float16' is not one of float32, bfloat16"),
    ],
)
def test_unknown_names(tiny_config, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        models.abstract(tiny_config, 5)


def test_backbone_and_heads_have_activations_of_their_own(tiny_config):
    def activations(config):
        model = nnx.eval_shape(lambda: models.build(config, 5))

        def of(part):
            nodes = [node for _, node in nnx.iter_graph(part) if isinstance(node, ActivatedNorm)]
            return {node.activation for node in nodes}

        return {name: of(getattr(model, name)) for name in ('backbone', 'aux_reduce', 'context')}

    tiny_config.model.activation = 'leaky_relu'
    shared = activations(tiny_config)
    assert shared['backbone'] == {'leaky_relu', 'identity'}
    tiny_config.model.backbone.activation = 'relu'
    assert activations(tiny_config) == shared | {'backbone': {'relu', 'identity'}}
    assert tiny_config.model.activation == 'leaky_relu'


@pytest.mark.parametrize(('of', 'whole'), [('value', False), ('channel', True)])
def test_dropout_of_values_or_of_channels(tiny_config, of, whole):
    tiny_config.model.update({'dropout': 0.5, 'dropout_of': of})
    dropout = nnx.eval_shape(lambda: models.build(tiny_config, 5)).dropout
    kept = dropout(jnp.ones((2, 4, 5, 16)), rngs=jax.random.key(0)) > 0
    assert 0 < float(kept.mean()) < 1
    assert bool((kept == kept[:, :1, :1]).all()) == whole
