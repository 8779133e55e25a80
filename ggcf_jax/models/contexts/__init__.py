"""Context modules: one file for each, and the contract that all of them fulfil.

A module here offers its context module in a dictionary `CONTEXTS`, name -> builder; the name is
`config.model.context`. A context module of another package is named
`my_package.my_module:builder`. `Context` and `ContextBuilder` say what such code must do; no class
has to inherit from them.
"""

from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from ggcf_jax.models.layers.extent import Extent


class Context(Protocol):
    """What stands between backbone and classifier: an `nnx.Module` on the last stage's features.

    Parameters are `nnx.Param` in float32; running statistics, if there are any, are
    `nnx.BatchStat`. Other kinds of variables are not supported. The module must be built and called
    by functions that JAX can trace, for maps of any height and width.

    Attributes:
        features: number of channels of the output.
    """

    features: int

    def __call__(
        self, x: Float[Array, 'b h w c'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w {self.features}']:
        """Computes the features that the classifier, a 1x1 convolution, reads.

        Args:
            x: features of the backbone's last stage, in the dtype of the computation.
            train: whether batch statistics are used and updated.
            extent: extent of x in a padded batch; what the module computes inside it must not
                depend on what x holds outside, which is arbitrary (`layers.extent` says how). None
                where the maps are filled, and always when training.

        Returns:
            Features at the same positions; arbitrary ones outside of the extent.
        """
        ...


class AttentionContext(Context, Protocol):
    """A context module whose attention can be shown; without these two members it cannot.

    Attributes:
        heads: the graph of each head (`ggcf_jax.attention.graphs`), by which viewer and tools
            label the attention maps.
    """

    heads: tuple[Any, ...]

    def attention(
        self,
        x: Float[Array, 'b h w c'],
        positions: Int[Array, 'm 2'],
        *,
        extent: Extent | None = None,
    ) -> Float[Array, 'b m heads h w']:
        """Computes where each head attends to from chosen positions.

        Args:
            x: features of the backbone's last stage.
            positions: row and column of each query in the map of features, inside the extent.
            extent: extent of x, as for `__call__`.

        Returns:
            float32 attention weights over the map; those of a query and head sum to one.
        """
        ...


@runtime_checkable
class PrunedContext(AttentionContext, Protocol):
    """A context module whose heads follow Context Pruning; without this member they cannot.

    Attributes:
        pruning: the rule of each head (`pruning_rules.Rule`), None where it keeps all neighbours;
            a new module has None for each. `pruning_rules.pruned` sets it, and
            `pruning_rules.options` says what `attend` is called with.
    """

    pruning: tuple[Any, ...]


class ContextBuilder(Protocol):
    """Builds a context module from the configuration."""

    def __call__(
        self, model: ConfigDict, in_features: int, *, dtype: Any, rngs: nnx.Rngs
    ) -> Context:
        """Builds a context module with fresh parameters.

        Args:
            model: `config.model`; `model.activation` and `model.norm` are what all parts of the
                network share, and every module reads the fields that it needs besides.
            in_features: number of channels of the backbone's last stage.
            dtype: dtype of the computation; parameters stay float32.
            rngs: random streams; parameters are drawn from `params`.

        Raises:
            InputError: a field has a value that this module does not support.
        """
        ...
