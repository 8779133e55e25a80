"""A digest of the code that a prediction runs through: results of other code are other results."""

import hashlib
import importlib.metadata
import pathlib
import sys

from flax import nnx

from ggcf_jax.models.segmenter import Segmenter

_PACKAGE = pathlib.Path(__file__).parent.parent
# Where the pixels of an image become the labels that are written.
_ROOMS = ('attention', 'data/records', 'evaluation', 'models', 'prediction')
_FILES = ('data/transforms.py', 'atomic.py')
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy', 'opencv-python-headless', 'imagecodecs', 'pillow')
_OWN = ('ggcf_jax', 'flax', 'jax')  # packages whose modules are known without being looked at


def digest(network: Segmenter) -> str:
    """A text that changes with the code that computes predictions.

    That is the code of this package between an image file and its labels, that of backbones,
    context modules and graphs of other packages in the network, and the versions of the libraries.
    Comments count as well: it may change without a change of results, but not the other way round.
    Devices do not count.

    Args:
        network: network that predicts.
    """
    files = [path for room in _ROOMS for path in sorted((_PACKAGE / room).rglob('*.py'))]
    files += [_PACKAGE / name for name in _FILES]
    found = hashlib.sha256()
    for path in files:
        found.update(f'{path.relative_to(_PACKAGE)}\n'.encode())
        found.update(path.read_bytes())
    kinds = {type(module) for _, module in nnx.iter_modules(network)}
    kinds |= {type(graph) for graph in network.heads}
    for name in sorted({kind.__module__ for kind in kinds}):
        source = getattr(sys.modules.get(name), '__file__', None)
        if name.split('.')[0] not in _OWN and source:
            found.update(f'{name}\n'.encode())
            found.update(pathlib.Path(source).read_bytes())
    for name in _LIBRARIES:
        try:
            found.update(f'{name} {importlib.metadata.version(name)}\n'.encode())
        except importlib.metadata.PackageNotFoundError:  # OpenCV comes under several names
            found.update(f'{name}\n'.encode())
    return found.hexdigest()[:16]
