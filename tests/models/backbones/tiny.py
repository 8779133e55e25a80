"""Builders of networks with fewer blocks than any published one, for `model.backbone.name`."""

import functools

from flax import nnx

from ggcf_jax.models.backbones import convnext as convnext_lib
from ggcf_jax.models.backbones import dinov2 as dinov2_lib
from ggcf_jax.models.backbones import mit as mit_lib
from ggcf_jax.models.backbones import swin as swin_lib

convnext = functools.partial(convnext_lib.build, convnext_lib.Architecture((1, 1, 1, 1), 96))
swin = functools.partial(swin_lib.build, swin_lib.Architecture((2, 2, 2, 2), 96, 3))
dinov2 = functools.partial(dinov2_lib.build, dinov2_lib.Architecture(depth=5, heads=2, grid=3))
mit = functools.partial(mit_lib.build, mit_lib.Architecture((1, 2, 1, 1)))
# The least that has every kind of block: for programs that take long to compile.
mit_shallow = functools.partial(mit_lib.build, mit_lib.Architecture((1, 1, 1, 1)))


class Patches(nnx.Module):
    """One convolution over patches: what stands before a context module that is tested alone."""

    def __init__(self, model, *, remat, dtype, rngs):
        self.stride = model.backbone.stride
        self.features = (model.backbone.width,) * 4
        size = (self.stride, self.stride)
        self.patch = nnx.Conv(3, model.backbone.width, size, size, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, train, key, extent=None):
        return (self.patch(x),) * 4
