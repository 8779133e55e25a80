"""When cuDNN's fused attention applies: graphs, dtypes, channels, devices."""

import jax.numpy as jnp

from ggcf_jax.attention import cudnn, cudnn_sums, union
from ggcf_jax.attention.cudnn import MULTIPLE, hides_by_channels
from ggcf_jax.attention.graph import knows_border
from ggcf_jax.attention.graphs import Block, Column, Cross, Full, Graph, Grid, Local, Row, Union
from ggcf_jax.attention.kernels import Case, refusal_of_mesh
from ggcf_jax.attention.target import Device

DTYPES = (jnp.bfloat16, jnp.float16)

_GRAPHS = (Full, Local, Grid, Row, Column, Block)
_LEAST_SCALE = 2.0**-10  # below, hidden scores might be seen
_LONGEST_BIAS = 2048  # positions of a sequence all of whose pairs are in the program
_MOST_SEQUENCES = 65535  # blocks along an axis of a CUDA grid


class CudnnKernels:
    """`kernels.Kernels` of cuDNN."""

    platform = 'gpu'

    def refusal(self, case: Case, device: Device, *, here: bool) -> str | None:
        """Why cuDNN cannot compute an attention on a device; None if it can."""
        if device.platform != self.platform:
            return f'it runs on NVIDIA GPUs, not on a {device.platform.upper()}'
        capability = device.compute_capability
        if capability is None:
            return 'it is not known for which NVIDIA GPU is compiled'
        if capability < (8, 0):
            return f'it needs compute capability 8.0, the GPU has {capability[0]}.{capability[1]}'
        refused = _refusal_of_arguments(case) or _refusal_of_shape(case)
        if refused is not None:
            return refused
        most = self.most_channels(device)
        by_channels = hides_by_channels(case.channels[0], most)
        channels = _num_channels(case, by_channels=by_channels)
        if channels > most:
            with_valid = ' with valid' if 'valid' in case.extras else ''
            return (
                f'it takes {most} channels on compute capability {capability[0]}.{capability[1]}, '
                f'and {case.graph.kind()}{with_valid} needs {channels}'
            )
        where = _differing_windows(case)
        if where is not None and not by_channels:
            return (
                f'{where}, {case.graph.kind()} needs {sum(cudnn.TILE)} channels more than the '
                f'{case.channels[0]}, and {most} is the most'
            )
        return cudnn.refusal_of_jax(channels, jnp.dtype(case.dtypes[0]).name) if here else None

    def most_channels(self, device: Device) -> int:
        """The largest number of channels that it takes on a device."""
        return 256 if (device.compute_capability or (0, 0)) >= (9, 0) else 128


def _differing_windows(case: Case) -> str | None:
    """Where the windows of LOCAL are moved by what the program does not know; None if nowhere."""
    if _has_local(case.graph) and dict(case.mesh).get('space', 1) > 1:
        return 'where devices share rows'
    if knows_border(case.graph) and 'valid' in case.extras:
        return 'where images of a batch end in different places'
    return None


def _num_channels(case: Case, *, by_channels: bool) -> int:
    """Number of channels that q and k get for cuDNN; those of v are taken in parts."""
    hiding = (
        sum(cudnn.TILE) if _has_local(case.graph) and by_channels else int('valid' in case.extras)
    )
    return -(-(case.channels[0] + hiding) // MULTIPLE) * MULTIPLE


def _refusal_of_arguments(case: Case) -> str | None:
    graph, (of_q, of_v) = case.graph, case.dtypes
    if not isinstance(graph, (*_GRAPHS, Cross, Union)):
        return f'it has no form of {graph.kind()} graphs'
    if of_q != of_v or of_q not in DTYPES:
        names = ' and '.join(dict.fromkeys(jnp.dtype(x).name for x in (of_q, of_v)))
        return f'it takes bfloat16 or float16 alike for q, k and v, not {names}'
    unknown = case.extras & {'bias', 'pruning', 'random_pruning'}
    if unknown:
        return f'it does not know {", ".join(sorted(unknown))}'
    if len(_parts(graph)) > 1 and 'valid' in case.extras and knows_border(graph):
        return f'what a part of {graph} hides depends on where each image ends'
    if needs_sums(case) and cudnn_sums.missing() is not None:
        return cudnn_sums.missing()
    hides = _has_local(graph) or 'valid' in case.extras
    if hides and not abs(case.scale) >= _LEAST_SCALE:
        return f'a scale of {case.scale} is too small to hide positions from each other'
    return None


def _refusal_of_shape(case: Case) -> str | None:
    refused = refusal_of_mesh(case)
    if refused is not None or case.shape is None:
        return refused
    b, h, w = case.shape
    if not isinstance(b, int):
        return 'the batch is symbolic'
    first, *rest = _parts(case.graph)
    sequences = max(b * h * w // _sequence_length(part, h, w) for part in (first, *rest))
    if sequences > _MOST_SEQUENCES:
        return f'it takes {_MOST_SEQUENCES} sequences, and here are about {sequences}'
    # A part hides what those before it see by a bias of all pairs of a sequence.
    longest = max((_sequence_length(part, h, w) for part in rest), default=0)
    if longest > _LONGEST_BIAS:
        return f'{longest} positions of a part of {case.graph} are more than {_LONGEST_BIAS}'
    return None


def needs_sums(case: Case) -> bool:
    """Whether the log-sum-exps are needed, which JAX's public function rounds."""
    return bool(case.extras & {'return_lse', 'registers'}) or len(_parts(case.graph)) > 1


def _parts(graph: Graph) -> list[Graph]:
    """The graphs that are attended to one after the other: a union's, or the graph itself."""
    found = union.split(graph) if isinstance(graph, (Cross, Union)) else None
    return [graph] if found is None else [found[0], *(rest.graph for rest in found[1])]


def _has_local(graph: Graph) -> bool:
    return any(isinstance(part, Local) for part in _parts(graph))


def _sequence_length(graph: Graph, h: int, w: int) -> int:
    """About how many queries stand in a sequence of a graph's engine."""
    if isinstance(graph, Local):
        members = [-(-n // d) for n, d in zip((h, w), graph.dilations)]
        return min(members[0], cudnn.TILE[0]) * min(members[1], cudnn.TILE[1])
    if isinstance(graph, Grid):
        return max(1, h // graph.strides[0]) * max(1, w // graph.strides[1])
    if isinstance(graph, Block):
        return min(h, graph.sizes[0]) * min(w, graph.sizes[1])
    if isinstance(graph, (Row, Column)):
        return w if isinstance(graph, Row) else h
    return h * w
