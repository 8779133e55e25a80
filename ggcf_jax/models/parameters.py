"""Names of parameters, layer by layer, and patterns of them.

Equal blocks are stored as one array with a leading axis (`layers.repeat.Repeated`); here each of
them has a name of its own, counted through the list that holds them: `backbone.stages.2.5.layers.0.
conv.kernel` is of the sixth block of the third stage, however many arrays the stage has.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from ggcf_jax.models.layers.norm import ActivatedNorm
from ggcf_jax.models.layers.repeat import STACKED, Repeated


def stacks(model: nnx.Module) -> frozenset[str]:
    """Returns the paths of all modules whose arrays have a leading axis of equal blocks.

    Args:
        model: network, or one of shapes (`nnx.eval_shape`).
    """
    return frozenset(stack_sizes(model))


def stack_sizes(model: nnx.Module) -> dict[str, int]:
    """Returns the number of equal blocks of each of `stacks`, by its path.

    Args:
        model: network, or one of shapes (`nnx.eval_shape`).
    """
    return {
        dotted((*path, STACKED)): jax.tree.leaves(nnx.state(node.blocks))[0].shape[0]
        for path, node in nnx.iter_modules(model)
        if isinstance(node, Repeated)
    }


def name(path: tuple[Any, ...]) -> str:
    """Returns the dotted path of a leaf, as `jax.tree_util.tree_leaves_with_path` gives it."""
    return jax.tree_util.keystr(path, simple=True, separator='.')


def dotted(path: tuple[Any, ...]) -> str:
    """Returns the path of a module, the keys that lead to it, in the form of `name`."""
    return '.'.join(map(str, path))


def is_stacked(path: str, stacks: Collection[str]) -> bool:
    """Whether an array holds equal blocks on its leading axis.

    Args:
        path: dotted path of the array.
        stacks: the network's, see `stacks`.
    """
    stack = _stack(path, stacks)
    return stack is not None and _block(path, stack) is None


def layer_names(
    shapes: Mapping[str, tuple[int, ...]], stacks: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Names the layers of each array.

    Args:
        shapes: dotted path of each array -> its shape.
        stacks: the network's, see `stacks`; arrays of them may be unstacked (`models.stacking`).

    Returns:
        Dotted path -> names: one, or one for each block along the leading axis.
    """
    counts: dict[str, int] = {}
    for path, shape in shapes.items():
        if (stack := _stack(path, stacks)) is not None:
            block = _block(path, stack)
            counts[stack] = shape[0] if block is None else max(counts.get(stack, 0), block + 1)
    # List that holds a stack -> number of its items before each item, for items that are stacks.
    lists: dict[str, dict[int, int]] = {}
    for stack, count in counts.items():
        holder, _, item = stack.rpartition('.')[0].rpartition('.')
        if item.isdigit():
            lists.setdefault(holder, {})[int(item)] = count

    def numbered(path: str) -> tuple[str, int | None, str]:
        """(text before the number of a block, the number, text behind it)."""
        for holder, items in lists.items():
            item, _, rest = path.removeprefix(f'{holder}.').partition('.')
            if path.startswith(f'{holder}.') and item.isdigit():
                before = sum(items.get(i, 1) for i in range(int(item)))
                return f'{holder}.', before, f'.{rest}'
        return path, None, ''

    names: dict[str, tuple[str, ...]] = {}
    for path in shapes:
        stack = _stack(path, stacks)
        if stack is None:
            before, number, rest = numbered(path)
            names[path] = (path if number is None else f'{before}{number}{rest}',)
            continue
        before, number, _ = numbered(stack)
        if number is None:
            before, number = stack.removesuffix(STACKED), 0
        rest, block = path.removeprefix(f'{stack}.'), _block(path, stack)
        if block is None:
            names[path] = tuple(f'{before}{number + i}.{rest}' for i in range(counts[stack]))
        else:
            rest = rest.partition('.')[2]
            names[path] = (f'{before}{number + block}.{rest}',)
    return names


def patterns(text: str) -> tuple[str, ...]:
    """Splits patterns that are separated by commas; () for ''."""
    return tuple(part.strip() for part in text.split(',')) if text.strip() else ()


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter, or a module that holds it.

    Args:
        name: dotted name of the parameter, see `layer_names`.
        pattern: name in which * stands for any text, dots included, ? for one character and [ab]
            for one of several.
    """
    parts = name.split('.')
    return any(fnmatch.fnmatchcase('.'.join(parts[: i + 1]), pattern) for i in range(len(parts)))


def freeze_norms(model: nnx.Module, patterns: Collection[str]) -> None:
    """Freezes the running statistics of the norms all of whose parameters are frozen.

    A frozen layer thus computes the same function throughout.

    Args:
        model: network; its `ActivatedNorm`s are changed in place.
        patterns: those of the frozen parameters.
    """
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    names = layer_names(shapes(params), stacks(model))
    for path, node in nnx.iter_modules(model):
        if isinstance(node, ActivatedNorm):
            own = _within(f'{dotted(path)}.', names)
            if all(any(matches(each, pattern) for pattern in patterns) for each in own):
                node.statistics = 'running'


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array by its dotted path.

    Args:
        params: tree of arrays or shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def _within(prefix: str, names: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for path, each in names.items():
        if path.startswith(prefix):
            yield from each


def _stack(path: str, stacks: Collection[str]) -> str | None:
    """The stack that an array belongs to, the outermost if there are several."""
    found = [stack for stack in stacks if path.startswith(f'{stack}.')]
    return min(found, key=len, default=None)


def _block(path: str, stack: str) -> int | None:
    """The place of an array's block in a stack that was unstacked; None of one that is stacked."""
    first = path.removeprefix(f'{stack}.').partition('.')[0]
    return int(first) if first.isdigit() else None
