"""Backbones, context modules and the segmentation network."""

import sys

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax import named
from ggcf_jax.errors import InputError
from ggcf_jax.models.norm import ACTIVATIONS
from ggcf_jax.models.resnet import STEMS
from ggcf_jax.models.segmenter import Segmenter

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build(config, num_classes: int) -> Segmenter:
    """Builds the network of `config.model` with fresh float32 parameters.

    Args:
        config: reads `model`, `train.dtype` (of the computation) and `seed`.
        num_classes: of the data set.

    Raises:
        InputError: a name that does not exist.
    """
    model = config.model
    this = sys.modules[__name__]
    backbone = named.find(this, 'BACKBONES', model.backbone.name, 'config.model.backbone.name')
    context = named.find(this, 'CONTEXTS', model.context, 'config.model.context')
    _check(model.activation, ACTIVATIONS, 'config.model.activation')
    _check(model.backbone.stem, STEMS, 'config.model.backbone.stem')
    _check(config.train.dtype, DTYPES, 'config.train.dtype')
    if model.backbone.weights is not None:
        raise InputError(
            f'config.model.backbone.weights={model.backbone.weights!r}: this version cannot '
            'import published weights yet; leave it unset to start from random ones'
        )
    # Draws with keys of this kind compile in a quarter of the time (docs/decisions.md).
    shared = dict(
        dtype=DTYPES[config.train.dtype], rngs=nnx.Rngs(jax.random.key(config.seed, impl='rbg'))
    )
    trunk = backbone(
        width=model.backbone.width,
        stem=model.backbone.stem,
        activation=model.activation,
        **shared,
    )
    return Segmenter(
        trunk,
        context(model, trunk.features[-1], **shared),
        num_classes,
        aux_channels=model.aux_channels,
        dropout=model.dropout,
        activation=model.activation,
        **shared,
    )


def abstract(config, num_classes: int) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Graphdef, parameters and batch statistics of `build` as shapes, without computing them."""
    graphdef, params, stats = nnx.split(
        nnx.eval_shape(lambda: build(config, num_classes)), nnx.Param, nnx.BatchStat
    )
    return graphdef, nnx.as_pure(params), nnx.as_pure(stats)


def _check(value: str, choices, field: str) -> None:
    if value not in choices:
        raise InputError(f'{field}={value!r} is not one of {", ".join(choices)}')
