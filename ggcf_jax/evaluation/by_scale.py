"""Class scores of several scales, each a program of its own.

One program of six scales holds the network six times: it compiles for long, at one go, and nothing
of it can be used for another list of scales. Here scales are compiled one after the other, and
those that a program was compiled for before are found in the compilation cache.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, UInt8

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.evaluation import inference
from ggcf_jax.models.layers import extent as extent_lib


@dataclasses.dataclass(frozen=True)
class ByScale:
    """(params, stats, *arguments) -> what `finish` makes of the scores, as a jitted function.

    Attributes:
        graphdef: structure of the network.
        num_classes: number of classes.
        mesh: devices that share a batch.
        plan: how the scores are computed.
        split: arguments -> (images, sizes, rest): the padded images, uint8 [b, h, w, 3], how far
            they reach, int32 [b, 2], and what `finish` gets besides the scores.
        finish: jitted (scores, *rest) -> results; it takes the memory of the scores.
    """

    graphdef: nnx.GraphDef
    num_classes: int
    mesh: Mesh
    plan: inference.Plan
    split: Callable[..., tuple[jax.Array, jax.Array, tuple[Any, ...]]]
    finish: jax.stages.Wrapped

    @functools.cached_property
    def _programs(self) -> tuple[jax.stages.Wrapped, ...]:
        return tuple(self._program(scale) for scale in self.plan.scales)

    def _program(self, scale: float) -> jax.stages.Wrapped:
        """The program that adds the views of a scale."""

        def add(
            params: nnx.State,
            stats: nnx.State,
            total: Float[Array, 'b h w classes'],
            images: UInt8[Array, 'b h w 3'],
            sizes: Int32[Array, 'b 2'],
        ) -> Float[Array, 'b h w classes']:
            model = models.merge(self.graphdef, params, stats)
            extent = extent_lib.of_sizes(sizes)
            return total + inference.of_scale(model, images, self.plan, scale, extent)

        return jax.jit(add, donate_argnums=2, out_shardings=mesh_lib.by_batch(self.mesh))

    def __call__(self, params: nnx.State, stats: nnx.State, *arguments: Any) -> Any:
        """Computes the scales one after the other."""
        images, sizes, rest = self.split(*arguments)
        shape = (*images.shape[:3], self.num_classes)
        total = _zeros(shape, mesh_lib.by_batch(self.mesh))
        for program in self._programs:
            total = program(params, stats, total, images, sizes)
        return self.finish(total, *rest)

    def lower(self, params: nnx.State, stats: nnx.State, *arguments: Any) -> 'Lowered':
        """Lowers all programs for arguments, or their shapes."""
        images, sizes, rest = self.split(*arguments)
        total = jax.ShapeDtypeStruct(
            (*images.shape[:3], self.num_classes),
            jnp.float32,
            sharding=mesh_lib.by_batch(self.mesh),
        )
        programs = [each.lower(params, stats, total, images, sizes) for each in self._programs]
        return Lowered((*programs, self.finish.lower(total, *rest)))


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The programs of the scales and the one of what follows, lowered."""

    programs: Sequence[jax.stages.Lowered]

    def compile(self) -> tuple[jax.stages.Compiled, ...]:
        """Compiles them one after the other."""
        return tuple(program.compile() for program in self.programs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, jnp.float32), sharding)
