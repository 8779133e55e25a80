"""Graph Guided Context Fusion for semantic segmentation in JAX.

    from ggcf_jax import Local, attend
    y = attend(q, k, v, Local(8))                # attention over the neighbours of a graph

    import ggcf_jax
    model = ggcf_jax.load('runs/camvid')         # a trained model
    labels = model.predict('photo.jpg')

Training is `ggcf_jax.train.train_and_evaluate(config, workdir)`, with a configuration that starts
from `ggcf_jax.config.default()`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggcf_jax.attention import (
        Full,
        Grid,
        Learned,
        Local,
        attend,
        attention_weights,
        parse,
    )
    from ggcf_jax.workdir.model import load

__version__ = '0.1.0'
__all__ = [
    'Full',
    'Grid',
    'Learned',
    'Local',
    '__version__',
    'attend',
    'attention_weights',
    'load',
    'parse',
]

# Names are imported when they are used: worker processes that decode images import this package and
# do without jax, and `attend` does without what the data and the checkpoints need.
_MODULES = {
    'ggcf_jax.attention': (
        'Full', 'Grid', 'Learned', 'Local', 'attend', 'attention_weights', 'parse',
    ),
    'ggcf_jax.workdir.model': ('load',),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    """The public names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
