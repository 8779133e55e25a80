"""One way in which published files name the tensors of a backbone."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from ggcf_jax.models.layers.norm import Activation, Norm

# Name of an array in our networks -> its name in PyTorch's.
_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'gamma': 'gamma',
    'table': 'relative_position_bias_table',
    'mean': 'running_mean',
    'var': 'running_var',
    'cls_token': 'cls_token',
    'pos_embed': 'pos_embed',
}

Tensors = Mapping[str, Float[ndarray, '...']]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of naming tensors.

    Attributes:
        name: name of the layout, shown to the user.
        source: the code that writes such files.
        marks: regular expressions; each matches a name in every file of the layout.
        absent: regular expressions that match no name in any file of the layout.
        module: path of a convolution or norm in our backbone (`slots.expand`) -> its name in the
            file; '' for the network itself.
        heads: regular expression that the names of classifier tensors start with; these are left
            out.
        describe: tensors of the backbone -> fields of `config.model` that fit them.
        convert: tensors of the backbone -> the same ones as `module` names them, of the shapes that
            our arrays have; where files split or join what our layers do not.
        fresh: regular expression that matches the slots that files need not have: norms behind the
            stages, which segmentation networks add to a classifier. They start as the identity.
        norm: form of the scales of the file's batch norms.
        inputs: values of `config.model.input` that published files of the layout are used with.
        trained_input: the one that all of them were trained with; None if they differ.
        activation: activation that they were trained with.
    """

    name: str
    source: str
    marks: tuple[str, ...]
    absent: tuple[str, ...]
    module: Callable[[str], str]
    heads: str
    describe: Callable[[Tensors], dict[str, Any]]
    convert: Callable[[Tensors], Tensors] = dict
    fresh: str = ''
    norm: Norm = 'batch_norm'
    inputs: tuple[str, ...] = ('imagenet',)
    trained_input: str | None = 'imagenet'
    activation: Activation = 'relu'

    def matches(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names are a file of this layout."""
        names = list(names)
        marked = all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks)
        return marked and not any(re.fullmatch(a, name) for a in self.absent for name in names)

    def leaves_out(self, name: str) -> bool:
        """Whether the tensor of this name belongs to the classifier."""
        return re.match(self.heads, name) is not None

    def may_lack(self, slot: str) -> bool:
        """Whether files need not have this slot."""
        return re.fullmatch(self.fresh, slot) is not None

    def rename(self, slot: str) -> str:
        """Returns the name in the file of a slot, such as stages.0.2.layers.0.conv.kernel."""
        module, leaf = slot.rsplit('.', 1)
        name = self.module(module)
        return f'{name}.{_LEAVES[leaf]}' if name else _LEAVES[leaf]


def count(names: Iterable[str], pattern: str) -> int:
    """Counts the distinct values of a pattern's first group among names.

    Args:
        names: tensor names, such as layer1.0.conv1.weight.
        pattern: regular expression matched at the start of a name, such as r'layer1\\.(\\d+)'.
    """
    return len({found[1] for name in names if (found := re.match(pattern, name))})
