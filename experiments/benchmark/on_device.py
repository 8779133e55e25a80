"""Times attention on the accelerator of this machine beside the peers that run there, in bfloat16.

`experiments.benchmark.attention --device`. Before anything is timed, `attend` is compared with the
dense reference on the same device, values and gradients: fast kernels that are wrong stop here.
"""

import csv
import dataclasses
import functools
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmark import peers
from experiments.benchmark.peers import JaxAttention, TorchAttention
from ggcf_jax.attention import Full, Graph, Grid, Local, attend, parse, resolve_implementation
from ggcf_jax.distributed import chips
from ggcf_jax.errors import InputError

HEADS = 'local:8,16,24,grid:8,16,24,full'
CHECKED = 'local:8,local:3:shift,local:3@4,grid:8,block:8+4,row,column,cross,full'
MAPS = ((1, 128, 256), (8, 97, 97))  # batch, height and width
CHANNELS = (64, 128)
ROUNDS = 10
_TOLERANCE = 0.03  # of the largest magnitude; bfloat16 has eight bits

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """A time.

    Attributes:
        head: graph of the head.
        map: batch, height and width of the map.
        channels: number of channels of q, k and v.
        passes: 'forward' or 'both'.
        contender: what was timed; 'ours' is `attend`, with the implementation in parentheses.
        milliseconds: median of the rounds, nan where it failed.
        share: share of the floor, the time that the edges' products take at the peak of the chip;
            nan where the peak is not known.
        note: why it failed.
    """

    head: str
    map: str
    channels: int
    passes: str
    contender: str
    milliseconds: float
    share: float
    note: str = ''


def run(out: pathlib.Path) -> None:
    """Checks and times everything, and writes `<out>/device.csv` and `<out>/device.md`.

    Args:
        out: folder of the results.

    Raises:
        InputError: this machine has no accelerator, or its results differ from the reference's.
    """
    device = jax.devices()[0]
    if device.platform == 'cpu':
        raise InputError('--device needs a GPU or a TPU, and JAX finds only the CPU')
    check(parse(CHECKED), (1, 33, 50), 64)
    print(f'{device.device_kind}: equal to the reference', flush=True)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for graph in parse(HEADS):
        for shape in MAPS:
            for channels in CHANNELS:
                for row in time_graph(graph, shape, channels, ROUNDS):
                    rows.append(row)
                    print(row, flush=True)
                write(rows, out, device.device_kind)


def check(graphs: Sequence[Graph], shape: Shape, channels: int) -> None:
    """Compares `attend` with the reference in float32, values and gradients.

    Args:
        graphs: the graphs.
        shape: batch, height and width of the map.
        channels: number of channels.

    Raises:
        InputError: they differ.
    """
    arrays = _arrays(shape, channels)
    for graph in graphs:
        found = _both(_ours(graph, 'auto'))(*arrays)
        exact = [x.astype(jnp.float32) for x in arrays]
        expected = _both(_ours(graph, 'reference'))(*exact)
        for name, x, y in zip(('o', 'dq', 'dk', 'dv'), found, expected):
            error = float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
            if not error <= _TOLERANCE:
                by = resolve_implementation(graph, dtype='bfloat16', key_channels=channels)
                raise InputError(
                    f'{graph}: {name} of {by.implementation} differs from the reference by '
                    f'{error:.3g} of its largest magnitude'
                )


def time_graph(graph: Graph, shape: Shape, channels: int, rounds: int) -> Iterator[Row]:
    """Yields the times of a graph and of its peers, forward and with backward.

    Args:
        graph: the graph.
        shape: batch, height and width of the map.
        channels: number of channels.
        rounds: number of times that each call is timed.
    """
    b, h, w = shape
    by = resolve_implementation(graph, dtype='bfloat16', key_channels=channels)
    arrays = _arrays(shape, channels)
    flops = 4 * channels * b * graph.num_edges(h, w)
    peak = chips.peak_flops(jax.devices()[0].device_kind)
    # With the engine of XLA beside it, where that is not what 'auto' takes.
    jax_calls = {'ours (xla)': _ours(graph, 'xla')} | _jax_peers(graph, h, w)
    makers = {f'ours ({by.implementation})': functools.partial(_jax_call, _ours(graph, 'auto'))}
    makers |= {
        name: functools.partial(_jax_call, f) for name, f in jax_calls.items() if name not in makers
    }
    makers |= {
        name: functools.partial(_torch_call, build)
        for name, build in _torch_peers(graph, h, w).items()
    }
    for passes, factor in (('forward', 1.0), ('both', 3.5)):
        for name, make in makers.items():
            note = ''
            try:
                seconds = _seconds(make(arrays, passes), rounds)
            except Exception as error:  # a peer that has no such form, or out of memory
                seconds, note = float('nan'), f'{type(error).__name__}: {str(error)[:100]}'
            share = float('nan') if peak is None else flops * factor / peak / seconds
            size = f'{b}x{h}x{w}'
            yield Row(str(graph), size, channels, passes, name, seconds * 1e3, share, note)


def write(rows: Sequence[Row], out: pathlib.Path, device_kind: str) -> None:
    """Writes the rows as CSV, and as a Markdown table with a line for each case.

    Args:
        rows: the times.
        out: folder of the results.
        device_kind: name of the chip.
    """
    with (out / 'device.csv').open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        writer.writerows(dataclasses.astuple(row) for row in rows)
    lines = [
        f'{device_kind}, jax {jax.__version__}, torch {torch.__version__}, bfloat16',
        '',
        '| graph | map, width | passes | ms | share of the peak | peers, ms |',
        '|---|---|---|--:|--:|---|',
    ]
    cases: dict[tuple, list[Row]] = {}
    for row in rows:
        cases.setdefault((row.head, row.map, row.channels, row.passes), []).append(row)
    for (head, size, channels, passes), (ours, *others) in cases.items():
        times = ', '.join(
            f'{row.contender} {row.milliseconds:.3f}' if not row.note else f'{row.contender} none'
            for row in others
        )
        lines.append(
            f'| {head} | {size}, {channels} | {passes} | {ours.milliseconds:.3f} '
            f'| {ours.share:.0%} | {times} |'
        )
    (out / 'device.md').write_text('\n'.join(lines) + '\n')


def _arrays(shape: Shape, channels: int) -> list[jax.Array]:
    """Queries, keys, values and a cotangent [b, h, w, 1, channels] in bfloat16."""
    rng = np.random.default_rng(0)
    scales = (channels**-0.25, channels**-0.25, 1, 1)  # affinities of standard deviation 1
    sizes = (*shape, 1, channels)
    return [jnp.asarray(rng.standard_normal(sizes) * x, jnp.bfloat16) for x in scales]


def _both(f: JaxAttention) -> Callable[..., Sequence[jax.Array]]:
    """The output of f and the gradients of q, k and v, compiled."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> Sequence[jax.Array]:
        o, pull = jax.vjp(f, q, k, v)
        return [o, *pull(do)]

    return jax.jit(both)


def _ours(graph: Graph, implementation: str) -> JaxAttention:
    return lambda q, k, v: attend(q, k, v, graph, implementation=implementation)  # type: ignore[call-overload]


def _jax_peers(graph: Graph, h: int, w: int) -> dict[str, JaxAttention]:
    if not isinstance(graph, Full) or jax.devices()[0].platform != 'gpu':
        return {}

    def f(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        rows = (x.reshape(len(x), h * w, 1, -1) for x in (q, k, v))
        o = jax.nn.dot_product_attention(*rows, scale=1.0, implementation='cudnn')
        return o.reshape(q.shape)

    return {'jax dpa (cudnn)': f}


def _torch_peers(graph: Graph, h: int, w: int) -> dict[str, Callable[[], TorchAttention]]:
    """Builders of the peers in torch; {} where torch has no device but the CPU."""
    if not torch.cuda.is_available():
        return {}
    if isinstance(graph, Full):
        return {'sdpa': lambda: peers.sdpa_full(h, w)}
    if isinstance(graph, Grid):
        return {'sdpa groups': lambda: peers.grid_sdpa(h, w, graph.strides[0])}
    if not isinstance(graph, Local):
        return {}
    found: dict[str, Callable[[], TorchAttention]] = {
        'flex': lambda: peers.flex_local(h, w, graph.sizes[0]),
        'halo': lambda: peers.halo_local(h, w, graph.sizes[0]),
    }
    if importlib.util.find_spec('natten') is not None:
        found['natten (shifted border)'] = lambda: peers.natten_local(graph.sizes[0])
    return found


def _jax_call(f: JaxAttention, arrays: Sequence[jax.Array], passes: str) -> Callable[[], object]:
    compiled, given = (jax.jit(f), arrays[:3]) if passes == 'forward' else (_both(f), arrays)
    return lambda: jax.block_until_ready(compiled(*given))


def _torch_call(
    build: Callable[[], TorchAttention], arrays: Sequence[jax.Array], passes: str
) -> Callable[[], object]:
    with torch.device('cuda'):
        f = build()
        tensors = [
            torch.tensor(np.asarray(x[..., 0, :], np.float32)).to('cuda', torch.bfloat16)
            for x in arrays
        ]
    *leaves, do = tensors

    def forward() -> None:
        with torch.inference_mode():
            f(*leaves)
        torch.cuda.synchronize()

    def both() -> None:
        q, k, v = (x.detach().requires_grad_() for x in leaves)
        f(q, k, v).backward(do)
        torch.cuda.synchronize()

    return forward if passes == 'forward' else both


def _seconds(call: Callable[[], object], rounds: int) -> float:
    """Median time of a call; the first two compile and warm up."""
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
