"""Which parameters are trained, and how fast: by patterns of their names and by depth.

Names are those of `models.parameters`, one for each layer.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ggcf_jax.errors import InputError
from ggcf_jax.models import parameters

# A block of a backbone: its place in a list, or in a list of lists.
_BLOCK = re.compile(r'backbone\.(?P<list>\w+)\.(?P<stage>\d+)\.(?:(?P<block>\d+)\.)?')
_STEM = 'backbone.stem'
# Lists that are no stages of blocks.
_NO_STAGES = ('stem', 'norms')


@dataclasses.dataclass(frozen=True)
class ParameterGroups:
    """How the parameters of a network are told apart.

    Attributes:
        frozen: patterns of the parameters that are not trained.
        multipliers: (pattern, factor on the learning rate); of several that name a parameter the
            last one counts.
        layer_decay: factor on the learning rate from a block of the backbone to the one below.
        stacks: paths of the arrays that hold equal blocks, see `parameters.stacks`.
    """

    frozen: tuple[str, ...]
    multipliers: tuple[tuple[str, float], ...]
    layer_decay: float
    stacks: frozenset[str]

    @property
    def are_equal(self) -> bool:
        """Whether all parameters are trained alike."""
        return not self.frozen and not self.multipliers and self.layer_decay == 1.0

    def is_frozen(self, params: optax.Params) -> Any:
        """Returns a boolean for each array: whether it is not trained."""
        names = self._names(params)
        return _by_path(lambda path, _: all(map(self._freezes, names[path])), params)

    def factors(self, params: optax.Params) -> Any:
        """Returns the factor on the learning rate for each array, one that broadcasts to it."""
        names = self._names(params)
        depths = _depths([each for group in names.values() for each in group])

        def factor(path: str, x: Any) -> np.ndarray | np.float32:
            found = [
                self._multiplier(each) * self.layer_decay ** depths[each] for each in names[path]
            ]
            if len(set(found)) == 1:
                return np.float32(found[0])
            return np.array(found, np.float32).reshape(-1, *[1] * (x.ndim - 1))

        return _by_path(factor, params)

    def check(self, params: optax.Params) -> None:
        """Refuses groups that mean nothing for a network.

        Args:
            params: parameters, or their shapes.

        Raises:
            InputError: a pattern that names no parameter, a stack of blocks of which some are
                frozen, or nothing that is left to be trained.
        """
        names = self._names(params)
        every = [each for group in names.values() for each in group]
        for field, patterns in (
            ('frozen', self.frozen),
            ('multipliers', tuple(pattern for pattern, _ in self.multipliers)),
        ):
            for pattern in patterns:
                if not any(parameters.matches(each, pattern) for each in every):
                    raise InputError(
                        f'config.train.{field}: {pattern!r} names no parameter; there are '
                        f'{", ".join(_modules(every))}, and what is inside of them'
                    )
        for group in names.values():
            frozen = [each for each in group if self._freezes(each)]
            if 0 < len(frozen) < len(group):
                raise InputError(
                    f'config.train.frozen names {frozen[0]!r} and not '
                    f'{next(each for each in group if each not in frozen)!r}, which are stored as '
                    'one array: freeze all equal blocks of a stage or none of them'
                )
        if all(map(self._freezes, every)):
            raise InputError('config.train.frozen leaves no parameter to be trained')

    def _names(self, params: optax.Params) -> dict[str, tuple[str, ...]]:
        return parameters.layer_names(parameters.shapes(params), self.stacks)

    def _freezes(self, name: str) -> bool:
        return any(parameters.matches(name, pattern) for pattern in self.frozen)

    def _multiplier(self, name: str) -> float:
        found = [
            factor for pattern, factor in self.multipliers if parameters.matches(name, pattern)
        ]
        return found[-1] if found else 1.0


def build(train: ConfigDict, stacks: frozenset[str]) -> ParameterGroups:
    """Builds the groups of a configuration.

    Args:
        train: `config.train`; `frozen`, `multipliers` and `layer_decay` are read.
        stacks: paths of the arrays that hold equal blocks, see `parameters.stacks`.

    Raises:
        InputError: patterns or factors that cannot be read.
    """
    multipliers = []
    for part in parameters.patterns(train.multipliers):
        pattern, colon, text = part.rpartition(':')
        try:
            factor = float(text)
        except ValueError:
            factor = -1.0
        if not pattern or not colon or not 0 <= factor < 1e6:
            raise InputError(
                f'config.train.multipliers={train.multipliers!r}: write PATTERN:FACTOR, separated '
                "by commas, with factors of at least 0, such as 'context:10,classifier:10'"
            )
        multipliers.append((pattern, factor))
    frozen = parameters.patterns(train.frozen)
    if '' in frozen:
        raise InputError(
            f'config.train.frozen={train.frozen!r}: write patterns, separated by commas, such as '
            "'backbone.stem,backbone.stages.0'"
        )
    return ParameterGroups(frozen, tuple(multipliers), train.layer_decay, stacks)


def layers(params: optax.Params, stacks: frozenset[str]) -> tuple[str, ...]:
    """Returns the names of the layers whose gradients are told apart: blocks of the backbone, its
    stem, and the modules of the rest.

    Args:
        params: parameters, or their shapes.
        stacks: paths of the arrays that hold equal blocks, see `parameters.stacks`.
    """
    names = parameters.layer_names(parameters.shapes(params), stacks)
    return tuple(dict.fromkeys(_layer(each) for group in names.values() for each in group))


def norms(gradients: optax.Updates, stacks: frozenset[str]) -> dict[str, jax.Array]:
    """Computes the norm of the gradient of each of `layers`, in float32.

    Args:
        gradients: gradients of the parameters.
        stacks: paths of the arrays that hold equal blocks, see `parameters.stacks`.
    """
    names = parameters.layer_names(parameters.shapes(gradients), stacks)
    squares: dict[str, Any] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(gradients):
        own = names[parameters.name(path)]
        for name, part in zip(own, x if len(own) > 1 else [x], strict=True):
            layer = _layer(name)
            squares[layer] = squares.get(layer, 0.0) + jnp.sum(jnp.square(part))
    return {layer: jnp.sqrt(total) for layer, total in squares.items()}


def _layer(name: str) -> str:
    """The layer of a parameter: a block, or up to two names of modules."""
    found = _BLOCK.match(name)
    if found is not None and found['list'] not in _NO_STAGES:
        return found[0].removesuffix('.')
    return '.'.join(name.split('.')[:-1][:2])


def _depths(names: list[str]) -> dict[str, int]:
    """Number of steps of the decay for each parameter: 0 outside of the backbone, 1 in its last
    block, one more in each block below; the stem lies below all blocks (as in BEiT, 2021, and
    get_num_layer_for_vit of mmseg/core/optimizers/layer_decay_optimizer_constructor.py).
    """
    places = sorted({place for each in names if (place := _place(each)) is not None})
    depth_of = {place: len(places) - i for i, place in enumerate(places)}
    depths = {}
    for each in names:
        place = _place(each)
        if place is not None:
            depths[each] = depth_of[place]
        elif parameters.matches(each, _STEM):
            depths[each] = len(places) + 1
        else:  # norms at the end belong to the last block
            depths[each] = 1 if parameters.matches(each, 'backbone') else 0
    return depths


def _place(name: str) -> tuple[int, int] | None:
    """Stage and block of a parameter of a backbone; None outside of blocks."""
    found = _BLOCK.match(name)
    if found is None or found['list'] in _NO_STAGES:
        return None
    return int(found['stage']), int(found['block'] or 0)


def _modules(names: list[str]) -> list[str]:
    """The modules that a pattern is most likely meant to name."""
    return list(dict.fromkeys(_module(each) for each in names))


def _module(name: str) -> str:
    found = _BLOCK.match(name)
    if found is not None:
        return f'backbone.{found["list"]}.{found["stage"]}'
    return '.'.join(name.split('.')[: 2 if name.startswith('backbone.') else 1])


def _by_path(function: Any, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: function(parameters.name(path), x), tree
    )
