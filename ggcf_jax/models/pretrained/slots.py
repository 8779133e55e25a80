"""The arrays of a backbone, one by one, whether its blocks are stored singly or stacked.

Checkpoints are read by names alone, so that stacks are known here by the name that `Repeated` gives
them; where there is a network, `models.parameters` knows them from its modules.
"""

import dataclasses
import re
from collections.abc import Mapping

# A block in a stage, or blocks of equal shape stacked on a leading axis (`layers.repeat`).
_BLOCK = re.compile(r'(?P<stage>\w+\.\d+)\.(?P<item>\d+)\.(?P<stacked>blocks\.)?(?P<rest>.+)')


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one array of a layer is stored.

    Attributes:
        path: path of the stored array that contains it.
        index: index of the block in a stacked array; () where it is the whole stored array.
        shape: shape of the one array.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]


def expand(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Lists the arrays of a backbone under names that do not depend on the stacking.

    Args:
        shapes: path of a stored array, e.g. `stages.2.1.blocks.layers.0.conv.kernel`, -> shape.

    Returns:
        Name -> slot; blocks are counted through the stage: `stages.2.5.layers.0.conv.kernel`.
    """
    counts: dict[str, dict[int, int]] = {}
    for path, shape in shapes.items():
        if found := _BLOCK.fullmatch(path):
            items = counts.setdefault(found['stage'], {})
            items[int(found['item'])] = shape[0] if found['stacked'] else 1
    slots = {}
    for path, shape in shapes.items():
        found = _BLOCK.fullmatch(path)
        if not found:
            slots[path] = Slot(path, (), tuple(shape))
            continue
        items = counts[found['stage']]
        first = sum(items[item] for item in range(int(found['item'])))
        if not found['stacked']:
            slots[f'{found["stage"]}.{first}.{found["rest"]}'] = Slot(path, (), tuple(shape))
            continue
        for i in range(shape[0]):
            name = f'{found["stage"]}.{first + i}.{found["rest"]}'
            slots[name] = Slot(path, (i,), tuple(shape[1:]))
    return slots
