"""Builders of networks with fewer blocks than any published one, for `model.backbone.name`."""

import functools

from ggcf_jax.models.backbones import dinov2 as dinov2_lib

dinov2 = functools.partial(dinov2_lib.build, dinov2_lib.Architecture(depth=5, heads=2, grid=3))
