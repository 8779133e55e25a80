"""Equal blocks in arrays of their own, which CPUs train and evaluate faster.

`layers.repeat.Repeated` has one array for all of its blocks, for the loop that other platforms run.
XLA:CPU gets block after block: out of a stack it copies each kernel before its use, and each
gradient into a stack behind it. Of blocks that are arrays of their own (`unstack`) it needs no copy
where the network is merged from them (`stack`), since a part of what has just been put together is
the array itself.

Checkpoints, weights and whoever reads a network have stacks. In a tree without stacks the place of
a block follows that of its stack: `backbone.stages.2.1.blocks.3.layers.0.conv.kernel`.
"""

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, Sharding

from ggcf_jax.models import parameters

_Tree = TypeVar('_Tree')


def unstacked_for(mesh: Mesh, model: nnx.Module) -> dict[str, int]:
    """Returns the stacks that the devices of a mesh run faster without.

    Args:
        mesh: devices.
        model: network, or one of shapes (`nnx.eval_shape`).

    Returns:
        Path -> number of blocks: on CPUs `parameters.stack_sizes`, elsewhere nothing.
    """
    if mesh.devices.flat[0].platform != 'cpu':
        return {}
    return parameters.stack_sizes(model)


@jax.tree_util.register_pytree_with_keys_class
class Blocks:
    """The arrays of each block of a stack, in its place.

    Attributes:
        blocks: a tree for each block.
    """

    def __init__(self, blocks: Iterable[Any]):
        """Keeps the trees.

        Args:
            blocks: a tree for each block.
        """
        self.blocks = tuple(blocks)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[jax.tree_util.SequenceKey, Any]], None]:
        """Lets JAX see a sequence."""
        return [(jax.tree_util.SequenceKey(i), x) for i, x in enumerate(self.blocks)], None

    @classmethod
    def tree_unflatten(cls, _: None, blocks: Iterable[Any]) -> 'Blocks':
        """The inverse."""
        return cls(blocks)


def unstack(tree: _Tree, stacks: Mapping[str, int]) -> _Tree:
    """Returns a tree with `Blocks` for its stacks.

    Args:
        tree: parameters, or a tree that holds trees like them, such as the state of an optimiser.
        stacks: path of each stack within the parameters -> number of its blocks, as `unstacked_for`
            returns them.
    """

    def parts(node: Any, path: tuple[Any, ...]) -> Any:
        if not _is_mapping(node):
            return roots(node)
        if (count := stacks.get(parameters.dotted(path))) is not None:
            return Blocks(jax.tree.map(operator.itemgetter(i), node) for i in range(count))
        if isinstance(node, nnx.State):
            return nnx.State(parts(node.raw_mapping, path))  # whose items have nested dicts
        return {key: parts(value, (*path, key)) for key, value in node.items()}

    def roots(tree: Any) -> Any:
        return jax.tree.map(
            lambda node: parts(node, ()) if _is_mapping(node) else node, tree, is_leaf=_is_mapping
        )

    return roots(tree)


def stack(tree: _Tree) -> _Tree:
    """Returns a tree with its stacks again, the inverse of `unstack`."""

    def whole(node: Any) -> Any:
        if not isinstance(node, Blocks):
            return node
        return jax.tree.map(lambda *blocks: jnp.stack(blocks), *node.blocks)

    return jax.tree.map(whole, tree, is_leaf=_is_unstacked)


def unstacked(tree: _Tree, stacks: Mapping[str, int]) -> _Tree:
    """`unstack` of arrays that are sharded alike, as the returned ones are.

    Args:
        tree: see `unstack`; one that has `Blocks` already is returned as it is.
        stacks: see `unstack`.
    """
    if not stacks or _has_blocks(tree):
        return tree
    program = jax.jit(functools.partial(unstack, stacks=stacks), out_shardings=_sharding(tree))
    return program(tree)


def stacked(tree: _Tree) -> _Tree:
    """`stack` of arrays that are sharded alike, as the returned ones are."""
    if not _has_blocks(tree):
        return tree
    return jax.jit(stack, out_shardings=_sharding(tree))(tree)


def _sharding(tree: Any) -> Sharding:
    return jax.tree.leaves(tree)[0].sharding


def _is_unstacked(node: Any) -> bool:
    return isinstance(node, Blocks)


def _has_blocks(tree: Any) -> bool:
    return any(map(_is_unstacked, jax.tree.leaves(tree, is_leaf=_is_unstacked)))


def _is_mapping(node: Any) -> bool:
    return isinstance(node, nnx.State | dict)
