"""Reading tensors from files: safetensors, or PyTorch's own format where torch is installed."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from ggcf_jax import places
from ggcf_jax.errors import InputError

# Entries of a training snapshot that hold the model's tensors.
_WRAPPERS = ('state_dict', 'model')


def read(path: str | pathlib.Path) -> dict[str, Float32[np.ndarray, '...']]:
    """Reads all tensors of a file.

    Args:
        path: `.safetensors`, or `.pth`, `.pt`, `.pth.tar` or `.bin` (needs torch; nothing but
            tensors and plain containers is unpickled).

    Returns:
        Name -> array; kernels of convolutions are transposed from PyTorch's [out, in, h, w] to
        [h, w, in, out], and those of linear layers, matrices called weight, from [out, in] to
        [in, out]. Names of nested dictionaries are joined by dots.

    Raises:
        InputError: no such file, another format, a damaged file, or torch is not installed.
    """
    path = places.expand(path)
    if not path.is_file():
        raise InputError(f'config.model.backbone.weights={str(path)!r}: there is no such file')
    if path.suffix == '.safetensors':
        tensors = _read_safetensors(path)
    elif path.suffix in ('.pth', '.pt', '.tar', '.bin'):
        tensors = _read_torch(path)
    else:
        raise InputError(
            f'{path}: the ending {path.suffix!r} is not one of .safetensors, .pth, .pt, .pth.tar, '
            '.bin'
        )
    if not tensors:
        raise InputError(f'{path} holds no tensors; is it a state dict?')
    lost = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if lost:
        more = f' and {len(lost) - 3} more' if len(lost) > 3 else ''
        raise InputError(
            f'{path} has tensors with values that are NaN or infinite: '
            f'{", ".join(lost[:3])}{more}; take a file from before the training diverged'
        )
    return {name: _with_our_axes(name, tensor) for name, tensor in tensors.items()}


def _with_our_axes(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 4:
        return np.ascontiguousarray(x.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(x.T) if x.ndim == 2 and name.endswith('weight') else x


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    try:
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:
        raise InputError(f'{path} cannot be read as safetensors: {error}') from error
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} needs torch to be read: pip install 'ggcf_jax[parity]', or convert it to "
            '.safetensors on a machine that has torch (docs/pretrained.md)'
        ) from error
    try:
        loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f'{path} cannot be read as a PyTorch file of tensors ({first}); if it holds more than '
            'tensors and you trust it, convert it to .safetensors (docs/pretrained.md)'
        ) from error
    if not isinstance(loaded, Mapping):
        raise InputError(f'{path} holds a {type(loaded).__name__}, not a state dict')
    for wrapper in _WRAPPERS:
        if isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    tensors = {}
    for name, value in _flatten(loaded).items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().to(torch.float32).numpy()
    return tensors


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f'{prefix}{name}.')
        else:
            flat[f'{prefix}{name}'] = value
    return flat
