"""Equal blocks one after the other, where possible compiled once."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import PRNGKeyArray

from ggcf_jax.attention import target
from ggcf_jax.models.layers.drop_path import Drop
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.remat import Remat, rematerialized, run

_Carry = TypeVar('_Carry')
_Features = TypeVar('_Features')

# Name of the module that `Repeated` stacks: in the path of each of its arrays.
STACKED = 'blocks'


def scan(
    body: Callable[[_Carry, Any], tuple[_Carry, Any]], carry: _Carry, xs: Any
) -> tuple[_Carry, Any]:
    """`jax.lax.scan`, except that XLA:CPU gets the steps one after the other instead of a loop.

    XLA:CPU brings the axes of weight gradients into the order that its fast kernels need only in
    the entry computation of a program (xla/service/cpu/conv_canonicalization.cc): from inside a
    loop, even one that it unrolls, the gradient of a ResNet-50 (97 x 97, batch 2, two cores) took
    10.6 s instead of 0.62 s. On other platforms a loop saves minutes of compilation and costs
    nothing.

    Args:
        body: (carry, slice of `xs`) -> (carry, output of this step).
        carry: value passed to the first step.
        xs: pytree of arrays; step i gets element i of their leading axis.

    Returns:
        Carry after the last step, and the outputs of all steps stacked on a leading axis.
    """
    if target.current() != 'cpu':
        return jax.lax.scan(body, carry, xs)
    if jax.tree.leaves(xs)[0].shape[0] == 1:  # `unroll=True` leaves a loop of one step a loop
        carry, y = body(carry, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda x: jnp.asarray(x)[None], y)
    return jax.lax.scan(body, carry, xs, unroll=True)


class Repeated(nnx.Module):
    """`count` blocks of equal shape in sequence, compiled as one loop (see `scan`).

    The 23 blocks of ResNet-101's third stage take minutes to compile one by one. Parameters and
    batch statistics of the blocks are stacked on a leading axis.

    Attributes:
        stride: 1, since the blocks keep the shape.
    """

    stride = 1

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        count: int,
        *,
        remat: Remat = 'none',
        drop_rates: Sequence[float] | Sequence[Sequence[float]] = (),
        rngs: nnx.Rngs,
    ):
        """Draws the parameters of all blocks.

        Args:
            make: builds one block, which is called with (x, train=train, extent=extent) and keeps
                the shape of x.
            count: number of blocks, at least 1.
            remat: what the backward pass of each block keeps in memory, see `remat.run`.
            drop_rates: how often each block leaves out its branches while training; blocks are
                then called with drop=Drop(key, rate), with a key. An array of rates for a block
                that is several. () or zeros: never.
            rngs: random streams; the blocks' parameters are drawn with one key of `params`.
        """
        self.remat = remat
        self.drop_rates = tuple(
            rate if isinstance(rate, float) else tuple(rate) for rate in drop_rates
        )
        graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
        keys = jax.random.split(rngs.params(), count)
        stacked = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key))))(keys)
        self.blocks = nnx.merge(graphdef, stacked)

    def __call__(
        self,
        x: _Features,
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> _Features:
        """Applies the blocks in order.

        Args:
            x: features: a map, or a tree of arrays.
            train: whether batch statistics are used and updated, and branches left out.
            key: random key of the branches that are left out.
            extent: extent of x; None where the maps are filled.

        Returns:
            Features of the last block.

        Raises:
            ValueError: training with rates above 0 without a key.
        """
        drop = None
        if train and np.any(self.drop_rates):
            if key is None:
                raise ValueError('blocks that are left out at random need a key')
            drop = Drop(jax.random.split(key, len(self.drop_rates)), jnp.array(self.drop_rates))
        graphdef, *state = nnx.split(self.blocks, nnx.Param, nnx.BatchStat)

        if train and target.current() == 'gpu':
            x, stats = self._one_by_one(x, graphdef, tuple(state), drop, extent)
            nnx.update(self.blocks, stats)
            return x

        def apply(
            x: _Features, own: tuple[tuple[nnx.State, ...], Drop | None]
        ) -> tuple[_Features, nnx.State]:
            arrays, drop = own
            block = nnx.merge(graphdef, *arrays, copy=True)
            x = run(block, x, remat=self.remat, train=train, drop=drop, extent=extent)
            return x, nnx.state(block, nnx.BatchStat)

        x, stats = scan(apply, x, (tuple(state), drop))
        if train:
            nnx.update(self.blocks, stats)
        return x

    def _one_by_one(
        self,
        x: _Features,
        graphdef: nnx.GraphDef,
        state: tuple[nnx.State, ...],
        drop: Drop | None,
        extent: Extent | None,
    ) -> tuple[_Features, nnx.State]:
        """Trains without a loop, in which XLA:GPU copies what the backward pass needs.

        Kernels of convolutions and linear layers are cast to the dtype of x, in which layers use
        them, and divided once for all blocks and passes.

        Returns:
            Features of the last block, and the stacked statistics of all.
        """
        paths, structure = jax.tree.flatten_with_path(state)
        leaves = [leaf for _, leaf in paths]
        dtype = jax.tree.leaves(x)[0].dtype
        is_kernel = [_is_kernel(path) for path, _ in paths]
        whole = lax.stop_gradient(leaves)
        parts = [
            lax.split(leaf.astype(dtype) if cast else leaf, (1,) * leaf.shape[0])
            for leaf, cast in zip(leaves, is_kernel, strict=True)
        ]
        remat = 'none' if hasattr(self.blocks, 'remat') else self.remat

        def apply(
            i: int,
            whole: list[jax.Array],
            parts: list[jax.Array],
            x: _Features,
            given: dict[str, Any],
        ) -> tuple[_Features, nnx.State]:
            own = [
                part[0] if early else _element(stack, part, i)
                for stack, part, early in zip(whole, parts, is_kernel, strict=True)
            ]
            block = nnx.merge(graphdef, *jax.tree.unflatten(structure, own), copy=True)
            return block(x, train=True, extent=extent, **given), nnx.state(block, nnx.BatchStat)

        stats = []
        for i, own in enumerate(zip(*parts, strict=True)):
            given = {} if drop is None else {'drop': jax.tree.map(operator.itemgetter(i), drop)}
            function = rematerialized(functools.partial(apply, i), remat)
            x, stats_of_block = function(whole, list(own), x, given)
            stats.append(stats_of_block)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *stats)


def _is_kernel(path: jax.tree_util.KeyPath) -> bool:
    return 'kernel' in jax.tree_util.keystr(path[-2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _element(stack: jax.Array, part: jax.Array, i: int) -> jax.Array:
    """Element i of a stack, whose gradient goes to `part`, [1, ...], the same element.

    What goes into a rematerialised function must be in memory: this keeps a small array from being
    copied for each block.
    """
    del part
    return stack[i]


def _element_forward(stack: jax.Array, part: jax.Array, i: int) -> tuple[jax.Array, None]:
    return _element(stack, part, i), None


def _element_backward(i: int, _: None, cotangent: jax.Array) -> tuple[None, jax.Array]:
    del i
    return None, cotangent[None]


_element.defvjp(_element_forward, _element_backward)
