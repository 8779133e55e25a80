"""How published files name the tensors of a backbone.

A layout is found by the names in a file. Adding one is adding an entry to a list `LAYOUTS`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.norm import Norm

# Prefixes under which whole networks keep their backbone; everything beside it is a head.
_TRUNKS = ('backbone.', 'body.')
_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of naming tensors.

    Attributes:
        name: for people. source: the code that writes such files.
        marks: regular expressions; each matches a name in every file of the layout.
        absent: ones that match no name.
        module: path of a convolution or norm in our backbone (`slots.expand`) -> the file's name.
        heads: regular expression of names that are left out: classifiers.
        describe: tensors -> fields of `config.model` that fit.
        norm: form of the norms' scales.
    """

    name: str
    source: str
    marks: tuple[str, ...]
    absent: tuple[str, ...]
    module: Callable[[str], str]
    heads: str
    describe: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]
    norm: Norm = 'batch_norm'

    def matches(self, names: Iterable[str]) -> bool:
        """Whether these are names of this layout."""
        names = list(names)
        marked = all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks)
        return marked and not any(re.fullmatch(a, name) for a in self.absent for name in names)

    def leaves_out(self, name: str) -> bool:
        """Whether a tensor belongs to the classifier."""
        return re.match(self.heads, name) is not None

    def rename(self, slot: str) -> str:
        """Name of a slot, e.g. stages.0.2.layers.0.conv.kernel, in the file."""
        module, leaf = slot.rsplit('.', 1)
        return f'{self.module(module)}.{_LEAVES[leaf]}'


def trunk(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Takes the backbone out of a file's tensors, without the prefixes that wrappers add.

    `module.` is PyTorch's DataParallel, `resinit.` and `prefix.` are openseg's and torchcv's names
    for the stem. Counters (`num_batches_tracked`) are dropped.

    Returns:
        (tensors of the backbone, names of the others).
    """
    names = {name: name.removeprefix('module.') for name in tensors}
    names = {name: new for name, new in names.items() if not new.endswith('num_batches_tracked')}
    heads = []
    for prefix in _TRUNKS:
        if any(new.startswith(prefix) for new in names.values()):
            heads = [name for name, new in names.items() if not new.startswith(prefix)]
            names = {
                name: new.removeprefix(prefix)
                for name, new in names.items()
                if new.startswith(prefix)
            }
    return {re.sub(r'^(resinit|prefix)\.', '', new): tensors[n] for n, new in names.items()}, heads


def detect(tensors: Mapping[str, np.ndarray], path) -> Layout:
    """Finds the layout of a backbone's tensors (`trunk`).

    Raises:
        InputError: none that we know.
    """
    for layout in known():
        if layout.matches(tensors):
            return layout
    raise InputError(
        f'{path} has no layout that we know ({", ".join(layout.name for layout in known())}); its '
        f'{len(tensors)} tensors start with {", ".join(list(tensors)[:5])}'
    )


def known() -> list[Layout]:
    """All layouts."""
    from ggcf_jax.models.pretrained import mobilenet, resnet, wide_resnet

    return [*resnet.LAYOUTS, *wide_resnet.LAYOUTS, *mobilenet.LAYOUTS]


def fields_text(fields: Mapping[str, Any]) -> str:
    """`config.model` fields as flags are written."""
    return ', '.join(f'config.model.{name}={value!r}' for name, value in fields.items())


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand at the group of `pattern` among the names."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})
