"""Which stages of a backbone trade their stride for dilation (Chen et al., 2017)."""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import Literal

from ml_collections import ConfigDict

from ggcf_jax.errors import InputError

STRIDES = (8, 16, 32)
FIRST_DILATIONS = ('full', 'half')
MULTI_GRID_KINDS = ('multiplier', 'absolute')


@dataclasses.dataclass(frozen=True)
class Stage:
    """Stride and dilations of the 3x3 convolutions of one stage.

    Attributes:
        stride: stride of the first block.
        first: dilation of the convolution that has, or would have had, that stride.
        dilations: dilation of the other convolutions of each block.
    """

    stride: int
    first: int
    dilations: tuple[int, ...]


def plan(
    depths: Sequence[int],
    *,
    stride: int,
    first_dilation: Literal['full', 'half'] = 'full',
    multi_grid: Sequence[int] = (),
    multi_grid_kind: Literal['multiplier', 'absolute'] = 'multiplier',
) -> tuple[Stage, ...]:
    """Plans the stages of a network whose stages 2 to 4 halve the resolution, stage 1 is at 1/4.

    Args:
        depths: number of blocks of each of the four stages.
        stride: output stride, 8, 16 or 32. A stage past it keeps the resolution and doubles the
            dilation instead.
        first_dilation: dilation of the convolution that lost its stride: 'full' for the stage's
            (OCNet, CCNet), 'half' for that of the stage before (openseg, DANet, mmseg's
            `contract_dilation`, torchvision's bottleneck).
        multi_grid: one number for each block of the last stage; () for none.
        multi_grid_kind: 'multiplier' if these multiply the stage's dilation (OCNet, openseg),
            'absolute' if they are the dilations themselves, of the first convolution too (mmseg).

    Returns:
        Plan of each stage.

    Raises:
        ValueError: a stride or a name that does not exist, or another number of multi-grid values.
    """
    checks: tuple[tuple[str, object, tuple], ...] = (
        ('stride', stride, STRIDES),
        ('first_dilation', first_dilation, FIRST_DILATIONS),
        ('multi_grid_kind', multi_grid_kind, MULTI_GRID_KINDS),
    )
    for name, value, choices in checks:
        if value not in choices:
            raise ValueError(f'{name}={value!r} is not one of {", ".join(map(str, choices))}')
    if len(multi_grid) not in (0, depths[-1]) or any(number < 1 for number in multi_grid):
        raise ValueError(
            f'multi_grid={tuple(multi_grid)} must be one number of at least 1 for each of the '
            f'{depths[-1]} blocks of the last stage, or () for none'
        )
    stages = []
    reached, dilation = 4, 1
    for i, depth in enumerate(depths):
        step = 1 if i == 0 else 2
        dilated = reached * step > stride
        if dilated:
            dilation *= step
        else:
            reached *= step
        dilations = (dilation,) * depth
        own = multi_grid if i == len(depths) - 1 else ()
        if own:
            factor = dilation if multi_grid_kind == 'multiplier' else 1
            dilations = tuple(factor * number for number in own)
        first = dilations[0]
        halved = dilated and first_dilation == 'half'
        if halved and not (own and multi_grid_kind == 'absolute'):
            first //= 2
        stages.append(Stage(1 if dilated else step, first, dilations))
    return tuple(stages)


def strides(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Returns the pixels per position of each stage, from those of the first stage, 4.

    Args:
        stages: plan of each stage.
    """
    steps = (4 * stages[0].stride, *(stage.stride for stage in stages[1:]))
    return tuple(itertools.accumulate(steps, operator.mul))


def from_config(
    backbone: ConfigDict,
    depths: Sequence[int],
    *,
    first_dilation: Literal['full', 'half'] | None = None,
) -> tuple[Stage, ...]:
    """Plans the stages of `config.model.backbone`.

    Args:
        backbone: `config.model.backbone`; `stride`, `first_dilation` and `multi_grid*` are read.
        depths: number of blocks of each of the four stages.
        first_dilation: that of the family of networks, where users have no choice.

    Raises:
        InputError: as `plan`.
    """
    try:
        return plan(
            depths,
            stride=backbone.stride,
            first_dilation=first_dilation or backbone.first_dilation,
            multi_grid=tuple(backbone.multi_grid),
            multi_grid_kind=backbone.multi_grid_kind,
        )
    except ValueError as error:
        raise InputError(f'config.model.backbone.{error}') from error
