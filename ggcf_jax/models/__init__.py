"""Backbones, context modules and the segmentation network."""

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax import registry
from ggcf_jax.models import backbones, contexts
from ggcf_jax.models.layers.norm import ACTIVATIONS, NORMS, STATISTICS, freeze
from ggcf_jax.models.layers.remat import REMATS
from ggcf_jax.models.segmenter import INPUTS, Segmenter

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build(config, num_classes: int) -> Segmenter:
    """Builds the network of `config.model` with fresh float32 parameters.

    Published weights (`model.backbone.weights`) are not read here: training starts from them, see
    `ggcf_jax.training.warm_start`.

    Args:
        config: reads `model`, `train.dtype` (of the computation), `train.remat` and `seed`.
        num_classes: of the data set.

    Raises:
        InputError: a name that does not exist, or an option that the backbone does not have.
    """
    model = config.model
    backbone = registry.find(
        backbones, 'BACKBONES', model.backbone.name, 'config.model.backbone.name'
    )
    context = registry.find(contexts, 'CONTEXTS', model.context, 'config.model.context')
    registry.check(model.activation, ACTIVATIONS, 'config.model.activation')
    registry.check(model.norm, NORMS, 'config.model.norm')
    statistics = model.backbone.statistics
    registry.check(statistics, STATISTICS, 'config.model.backbone.statistics')
    registry.check(model.input, INPUTS, 'config.model.input')
    registry.check(config.train.dtype, DTYPES, 'config.train.dtype')
    registry.check(config.train.remat, REMATS, 'config.train.remat')
    # Draws with keys of this kind compile in a quarter of the time (docs/decisions.md).
    shared = dict(
        dtype=DTYPES[config.train.dtype], rngs=nnx.Rngs(jax.random.key(config.seed, impl='rbg'))
    )
    trunk = backbone(model, remat=config.train.remat, **shared)
    if statistics == 'running':
        freeze(trunk)
    return Segmenter(
        trunk,
        context(model, trunk.features[-1], **shared),
        num_classes,
        aux_channels=model.aux_channels,
        dropout=model.dropout,
        normalization=INPUTS[model.input],
        activation=model.activation,
        norm=model.norm,
        **shared,
    )


def abstract(config, num_classes: int) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Graphdef, parameters and batch statistics of `build` as shapes, without computing them."""
    graphdef, params, stats = nnx.split(
        nnx.eval_shape(lambda: build(config, num_classes)), nnx.Param, nnx.BatchStat
    )
    return graphdef, nnx.as_pure(params), nnx.as_pure(stats)
