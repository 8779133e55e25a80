"""A file that a network in torch wrote, read by ours: features of equal inputs."""

import functools

import jax
import numpy as np
import safetensors.torch
import torch
from flax import nnx

from ggcf_jax.models import pretrained

SIZE = (65, 97)


def save(path, tensors):
    """As published: nested entries are a PyTorch file, plain ones a safetensors file."""
    if path.suffix == '.safetensors':
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def prefixed(prefix, network):
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def image_of(size=SIZE):
    return np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)


def imported_into(make, path, norm):
    """A backbone with the weights of a file, and what the importer says."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    imported = pretrained.load(path, pretrained.shapes_of(nnx.as_pure(state)), norm)
    arrays = jax.tree_util.tree_map_with_path(
        lambda p, _: imported.arrays[jax.tree_util.keystr(p, simple=True, separator='.')],
        nnx.as_pure(state),
    )
    return functools.partial(features_of, graphdef, arrays), imported


def features_of(graphdef, arrays, x):
    return jax.jit(lambda arrays, x: nnx.merge(graphdef, arrays)(x, train=False))(arrays, x)


def assert_equal_features(ours, network, x):
    with torch.no_grad():
        theirs = network(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert len(ours) == len(theirs) == 4
    for stage, (a, b) in enumerate(zip(ours, theirs), 1):
        b = b.permute(0, 2, 3, 1).numpy()
        assert a.shape == b.shape
        assert 1e-3 < np.abs(b).max() < 1e6, 'the comparison would not tell anything'
        error = np.abs(a - b).max() / np.abs(b).max()
        print(f'stage {stage}: relative error {error:.1e}')
        assert error < 1e-4, f'stage {stage}'


def randomise_all(network, seed):
    """Random numbers for every parameter, so that none can be left out unseen; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.3, 1.0, generator=generator)
            else:
                fan = max(1, parameter[0].numel())
                parameter.normal_(0.0, fan**-0.5, generator=generator)
    return network.eval()
