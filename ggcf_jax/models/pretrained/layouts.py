"""The supported layouts of published files, and how a file's layout is recognised.

A layout is recognised by the names in a file. Adding one is adding an entry to a list `LAYOUTS` of
one of the modules here.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from numpy import ndarray

from ggcf_jax.errors import InputError
from ggcf_jax.models.pretrained import convnext, dinov2, mit, mobilenet, resnet, swin, wide_resnet
from ggcf_jax.models.pretrained.layout import Layout, Tensors

LAYOUTS = (
    *resnet.LAYOUTS,
    *wide_resnet.LAYOUTS,
    *mobilenet.LAYOUTS,
    *convnext.LAYOUTS,
    *dinov2.LAYOUTS,
    *mit.LAYOUTS,
    *swin.LAYOUTS,
)

# Prefixes under which whole networks keep their backbone; everything beside it is a head.
_TRUNKS = ('backbone.', 'body.', 'segformer.', 'encoder.')

# Prefixes that wrappers put before all names of a network: PyTorch's DataParallel, torch.compile,
# Lightning and others whose module has the network as an attribute.
_WRAPPERS = ('module.', '_orig_mod.', 'model.', 'net.', 'network.')


def wrappers(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the prefixes of wrappers before the names of a file, the outermost first.

    Beside a wrapped network a file may have tensors of losses and metrics, so that a prefix counts
    if most names have it.

    Args:
        names: names of all tensors of a file.
    """
    names, found = list(names), []
    while True:
        for prefix in _WRAPPERS:
            inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            if 2 * len(inside) > len(names):
                found.append(prefix)
                names = inside
                break
        else:
            return tuple(found)


class Trunk(NamedTuple):
    """The backbone in a file.

    Attributes:
        tensors: its tensors, by names without prefix.
        others: names of the file's other tensors.
        prefix: what stood before the names in the file; '' if nothing.
    """

    tensors: dict[str, Float[ndarray, '...']]
    others: list[str]
    prefix: str


def trunk(tensors: Tensors) -> Trunk:
    """Takes the backbone out of a file's tensors, without the prefixes that wrappers add.

    Those of `wrappers` are, then `encoder.` of segmentation_models.pytorch and the like; `resinit.`
    and `prefix.` are openseg's and torchcv's names for the stem. Counters (`num_batches_tracked`)
    are dropped.

    Args:
        tensors: all tensors of a file.
    """
    names = {name: name for name in tensors if not name.endswith('num_batches_tracked')}
    heads: list[str] = []
    found = [*wrappers(names)]
    for prefix in found:
        heads += [name for name, new in names.items() if not new.startswith(prefix)]
        names = {n: new.removeprefix(prefix) for n, new in names.items() if new.startswith(prefix)}
    for prefix in _TRUNKS:
        if any(new.startswith(prefix) for new in names.values()):
            found.append(prefix)
            heads += [name for name, new in names.items() if not new.startswith(prefix)]
            names = {
                name: new.removeprefix(prefix)
                for name, new in names.items()
                if new.startswith(prefix)
            }
    own = {re.sub(r'^(resinit|prefix)\.', '', new): tensors[n] for n, new in names.items()}
    return Trunk(own, heads, ''.join(found))


def detect(tensors: Tensors, path: str | pathlib.Path) -> Layout:
    """Recognises the layout of a backbone's tensors (`trunk`).

    Args:
        tensors: tensors of the backbone.
        path: file they were read from, for the error message.

    Raises:
        InputError: they match none of the supported layouts.
    """
    for layout in LAYOUTS:
        if layout.matches(tensors):
            return layout
    raise InputError(
        f'{path} matches none of the supported layouts '
        f'({", ".join(layout.name for layout in LAYOUTS)}); its {len(tensors)} tensors start with '
        f'{", ".join(list(tensors)[:5])}'
    )


def fields_text(fields: Mapping[str, Any]) -> str:
    """Writes fields of `config.model` as they are given on the command line."""
    return ', '.join(f'config.model.{name}={value!r}' for name, value in fields.items())
