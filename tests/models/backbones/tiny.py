"""Builders of networks with fewer blocks than any published one, for `model.backbone.name`."""

import functools

from ggcf_jax.models.backbones import dinov2 as dinov2_lib
from ggcf_jax.models.backbones import mit as mit_lib

dinov2 = functools.partial(dinov2_lib.build, dinov2_lib.Architecture(depth=5, heads=2, grid=3))
mit = functools.partial(mit_lib.build, mit_lib.Architecture((1, 2, 1, 1)))
# The least that has every kind of block: for programs that take long to compile.
mit_shallow = functools.partial(mit_lib.build, mit_lib.Architecture((1, 1, 1, 1)))
