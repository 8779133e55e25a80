"""The segmentation network of a configuration, and its split into what JAX transforms.

Backbones and context modules are looked up by name; `models.backbones` and `models.contexts` hold
the contracts for new ones.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.attention import Graph
from ggcf_jax.errors import InputError
from ggcf_jax.models import backbones, contexts, parameters, stacking
from ggcf_jax.models.backbones import BackboneBuilder
from ggcf_jax.models.contexts import ContextBuilder, PrunedContext
from ggcf_jax.models.layers.norm import ACTIVATIONS, NORMS, STATISTICS, freeze
from ggcf_jax.models.layers.remat import REMATS
from ggcf_jax.models.segmenter import DROPOUTS, INPUTS, Segmenter

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build(config: ConfigDict, num_classes: int) -> Segmenter:
    """Builds the network of `config.model` with fresh float32 parameters.

    Published weights (`model.backbone.weights`) are not read here: training starts from them, see
    `ggcf_jax.training.warm_start`.

    Args:
        config: configuration of the run; `model`, `train.dtype` (of the computation),
            `train.remat`, `train.frozen` and `seed` are read.
        num_classes: number of classes of the data set.

    Raises:
        InputError: a name that does not exist, an option that the backbone does not have, or a
            part of another package that does not know of padded batches.
    """
    model, train = config.model, config.train
    registry.check(model.activation, ACTIVATIONS, 'config.model.activation')
    trunk = model.copy_and_resolve_references()  # backbones read `model.activation`
    if model.backbone.activation is not None:
        name = 'config.model.backbone.activation'
        registry.check(model.backbone.activation, ACTIVATIONS, name)
        trunk.activation = model.backbone.activation
    registry.check(model.dropout_of, DROPOUTS, 'config.model.dropout_of')
    registry.check(model.norm, NORMS, 'config.model.norm')
    statistics = model.backbone.statistics
    registry.check(statistics, STATISTICS, 'config.model.backbone.statistics')
    registry.check(model.input, INPUTS, 'config.model.input')
    registry.check(train.dtype, DTYPES, 'config.train.dtype')
    registry.check(train.remat, REMATS, 'config.train.remat')
    build_backbone: BackboneBuilder = registry.find(
        backbones, 'BACKBONES', model.backbone.name, 'config.model.backbone.name'
    )
    build_context = _find_context(model)
    dtype = DTYPES[train.dtype]
    # Draws with keys of this kind compile in a quarter of the time (docs/decisions.md).
    rngs = nnx.Rngs(jax.random.key(config.seed, impl='rbg'))
    backbone = build_backbone(trunk, remat=train.remat, dtype=dtype, rngs=rngs)
    _check_extent(backbone, f'config.model.backbone.name={model.backbone.name!r}')
    if statistics == 'running':
        if not jax.tree.leaves(nnx.state(backbone, nnx.BatchStat)):
            raise InputError(
                f"config.model.backbone.statistics='running': {model.backbone.name} has no running "
                "statistics; use 'batch'"
            )
        freeze(backbone)
    context = build_context(model, backbone.features[-1], dtype=dtype, rngs=rngs)
    _check_extent(context, f'config.model.context={model.context!r}')
    segmenter = Segmenter(
        backbone,
        context,
        num_classes,
        aux_channels=model.aux_channels,
        dropout=model.dropout,
        dropout_of=model.dropout_of,
        normalization=INPUTS[model.input],
        activation=model.activation,
        norm=model.norm,
        dtype=dtype,
        rngs=rngs,
    )
    if frozen := parameters.patterns(train.frozen):
        parameters.freeze_norms(segmenter, frozen)
    return segmenter


def _check_extent(part: Callable, field: str) -> None:
    """Refuses a part that would let padding into the images of a batch."""
    arguments = inspect.signature(part).parameters
    if 'extent' not in arguments:
        raise InputError(
            f'{field}: its __call__ has no argument extent, by which the results of an image do '
            'not depend on its padding; the contract in ggcf_jax/models has it'
        )


def split(model: Segmenter) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a network into (graphdef, parameters, batch statistics); `merge` is the inverse."""
    graphdef, *state = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = (nnx.as_pure(tree) for tree in state)
    return graphdef, params, stats


def merge(graphdef: nnx.GraphDef, params: nnx.State, stats: nnx.State) -> Segmenter:
    """Returns a network of its own over these arrays, usable inside `jax.jit`.

    Args:
        graphdef: structure of the network, from `split` or `abstract`.
        params: parameters, stacked or not (`stacking`).
        stats: batch statistics; training updates those of the returned network, not these.
    """
    return nnx.merge(graphdef, stacking.stack(params), stats, copy=True)


def abstract(config: ConfigDict, num_classes: int) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns `split(build(config, num_classes))` as shapes, without computing the parameters."""
    return split(nnx.eval_shape(lambda: build(config, num_classes)))


def stacks(graphdef: nnx.GraphDef, params: nnx.State, stats: nnx.State) -> frozenset[str]:
    """Returns the paths of the arrays that hold equal blocks, see `parameters.stacks`.

    Args:
        graphdef: structure of the network, from `split` or `abstract`.
        params: parameters, or their shapes.
        stats: batch statistics, or their shapes.
    """
    return parameters.stacks(merge(graphdef, params, stats))


def unstacked_for(
    mesh: Mesh, graphdef: nnx.GraphDef, params: nnx.State, stats: nnx.State
) -> dict[str, int]:
    """Returns the stacks that the devices of a mesh run faster without, see `stacking`.

    Args:
        mesh: devices.
        graphdef: structure of the network, from `split` or `abstract`.
        params: parameters, or their shapes.
        stats: batch statistics, or their shapes.
    """
    shapes = jax.eval_shape(stacking.stack, params)
    return stacking.unstacked_for(mesh, merge(graphdef, shapes, stats))


def prunable_heads(model: ConfigDict) -> tuple[Graph, ...]:
    """Returns the graphs of the heads that Context Pruning applies to, without a network.

    Args:
        model: `config.model`; `context` and the fields that this context module reads are read.

    Returns:
        () where the context module has no such heads.

    Raises:
        InputError: a context module or graph that does not exist.
    """
    build_context = _find_context(model)
    # Heads are those of any number of input channels.
    context = nnx.eval_shape(lambda: build_context(model, 64, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return context.heads if isinstance(context, PrunedContext) else ()


def _find_context(model: ConfigDict) -> ContextBuilder:
    return registry.find(contexts, 'CONTEXTS', model.context, 'config.model.context')
