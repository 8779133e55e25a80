"""A norm and nothing else: the classifier is linear in the backbone's features.

DINOv2's linear head, `BNHead` of dinov2/eval/segmentation/models/decode_heads/linear_head.py in
github.com/facebookresearch/dinov2, with model.dropout=0.
"""

from flax import nnx
from jaxtyping import Array, DTypeLike, Float
from ml_collections import ConfigDict

from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import ActivatedNorm, Norm


class Linear(nnx.Module):
    """Batch norm without activation.

    Attributes:
        features: number of channels of the output, those of the input.
    """

    def __init__(
        self, in_features: int, *, norm: Norm = 'batch_norm', dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """Initialises the norm.

        Args:
            in_features: number of channels of the backbone's features.
            norm: form of the norm's scale, see `ActivatedNorm`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.features = in_features
        self.norm = ActivatedNorm(in_features, 'identity', norm=norm, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b h w c'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w c']:
        """Normalises the features.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: not used: with running statistics no position reads another one.
        """
        del extent
        return self.norm(x, train=train)


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> Linear:
    """Builds the module from `config.model` (reads `norm`)."""
    return Linear(in_features, norm=model.norm, dtype=dtype, rngs=rngs)


CONTEXTS = {'linear': build}
