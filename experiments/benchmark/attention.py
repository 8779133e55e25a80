"""Times the attention engine and its peers, interleaved, and writes tables.

    python -m experiments.benchmark.attention --out=runs/benchmark/attention

Every case writes <out>/<case>.json and is skipped when that file exists, so that an interrupted
command resumes; `--cases` selects cases by a regular expression. The tables over all cases in the
folder go to <out>/table.md. Run it from the root of the repository; needs the extra `parity`.

With `--device` the GPU or TPU of this machine is timed instead, in bfloat16 (`on_device`): results
in <out>/device.csv and <out>/device.md.
"""

import argparse
import dataclasses
import functools
import json
import math
import operator
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh

from experiments.benchmark import on_device, peers
from experiments.benchmark.peers import JaxAttention, TorchAttention
from experiments.benchmark.tables import SHARDED, Result, Timings, write_table
from experiments.common import cli
from ggcf_jax.attention import attend, graphs, top_k
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.distributed import mesh as mesh_lib

# Page faults of glibc's malloc double some of the times, those of the peers most: freed memory is
# kept.
MALLOC = {
    'MALLOC_MMAP_THRESHOLD_': str(1 << 30),
    'MALLOC_TRIM_THRESHOLD_': str(1 << 33),
    'MALLOC_TOP_PAD_': str(1 << 28),
}
MAPS = ((2, 97, 97), (1, 128, 256))
HEADS = 'local:8,16,24,grid:8,16,24,full'
MORE = 'local:8@4,block:16,cross'
MODULE = 'local:8,16,24,grid:8,16,24'
SMALL = 16384  # positions; the largest map on which peers may need memory of all pairs

Shape = tuple[int, int, int]  # batch, height, width
Call = Callable[[], object]


def cases() -> list[str]:
    """Returns the names of all cases, the most informative first."""
    names: list[str] = []
    for d in (64, 256):
        for b, h, w in reversed(MAPS):
            names += [f'{g}/{b}x{h}x{w}/d{d}' for g in graphs.parse(HEADS)]
    names += [f'{g}/1x128x256/d64' for g in graphs.parse(MORE)]
    names += ['module/1x128x256/d64', 'threshold/4096x2401/d0']
    names += [f'pruned-{g}/1x128x256/d64' for g in graphs.parse('local:24,grid:8,full')]
    sizes = ((32, 64), (64, 64), (64, 128), (128, 256), (256, 512), (512, 1024))
    return names + [f'scaling-local:8/1x{h}x{w}/d64' for h, w in sizes]


@dataclasses.dataclass(frozen=True)
class Peers:
    """The peers of one case by name.

    Attributes:
        torch: attention functions in torch.
        jax: attention functions in JAX.
    """

    torch: dict[str, TorchAttention]
    jax: dict[str, JaxAttention] = dataclasses.field(default_factory=dict)


def _square(numbers: tuple[int, int]) -> int:
    """The number that a graph has for both axes; the peers know no other graphs."""
    rows, columns = numbers
    if rows != columns:
        raise ValueError(f'the peers have no graph of {rows} x {columns}: give one number')
    return rows


def _peers_of_local(graph: graphs.Local, h: int, w: int, d: int) -> Peers:
    small, s = h * w < SMALL, _square(graph.sizes)
    if graph.border == 'shift':
        raise ValueError(f'the peers have no graph {graph}: their windows end at the border')
    if graph.dilation != 1:
        dilation = _square(graph.dilations)
        return Peers({'halo': peers.dilated(peers.halo_local, h, w, s, dilation)})
    found = {'halo': peers.halo_local(h, w, s)}
    if small or d <= 64:  # torch 2.13 takes more than 24 GB at 128 x 256 and d = 256
        found['flex'] = peers.flex_local(h, w, s)
    if small:
        found['sdpa mask'] = peers.sdpa_local(h, w, s)
    if small and s <= 8 and d <= 64:  # its backward pass keeps all unfolded windows
        found['unfold'] = peers.unfold_local(h, w, s)
    return Peers(found)


def _peers_of_grid(graph: graphs.Grid, h: int, w: int, d: int) -> Peers:
    return Peers({'sdpa groups': peers.grid_sdpa(h, w, _square(graph.strides))})


def _peers_of_full(graph: graphs.Full, h: int, w: int, d: int) -> Peers:
    if h * w >= SMALL:
        return Peers({'sdpa': peers.sdpa_full(h, w)})
    return Peers(
        {'sdpa': peers.sdpa_full(h, w), 'non-local': peers.non_local(h, w)},
        {'jax dpa': peers.jax_full(h, w)},
    )


def _peers_of_block(graph: graphs.Block, h: int, w: int, d: int) -> Peers:
    if graph.shift:
        raise ValueError(f'the peers have no graph {graph}: give the size alone')
    return Peers({'sdpa blocks': peers.block_sdpa(h, w, _square(graph.sizes))})


def _peers_of_cross(graph: graphs.Cross, h: int, w: int, d: int) -> Peers:
    return Peers({'criss-cross': peers.criss_cross(h, w)})


# Class of a graph -> function of (graph, h, w, d) to the peers that can run a case in bounded time.
PEERS: dict[type[Graph], Callable[[Any, int, int, int], Peers]] = {
    graphs.Local: _peers_of_local,
    graphs.Grid: _peers_of_grid,
    graphs.Full: _peers_of_full,
    graphs.Block: _peers_of_block,
    graphs.Cross: _peers_of_cross,
}


def _make_mesh(shape: Shape) -> Mesh | None:
    """Builds a mesh of one device a core: images are sharded where they divide, else rows.

    Returns:
        A mesh, or None where there is one device or nothing divides.
    """
    n, (b, h, _) = jax.device_count(), shape
    space = 1 if b % n == 0 else n
    if n == 1 or h % space:
        return None
    return mesh_lib.make_mesh(space=space)


@dataclasses.dataclass(frozen=True)
class Calls:
    """Calls of one contender that are timed.

    Attributes:
        forward: forward pass.
        both: forward and backward pass.
    """

    forward: Call
    both: Call


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of a case.

    Attributes:
        q, k, v: queries, keys and values [b, h, w, d] of one head.
        weight: cotangent of the output, [b, h, w, d].
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    weight: jax.Array

    @property
    def all(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Queries, keys, values and cotangent."""
        return self.q, self.k, self.v, self.weight


def _make_inputs(shape: Shape, d: int) -> Inputs:
    rng = np.random.default_rng(0)
    scales = (d**-0.25, d**-0.25, 1, 1)  # affinities of standard deviation 1
    arrays = [jnp.asarray(rng.standard_normal((*shape, d)) * s, jnp.float32) for s in scales]
    return Inputs(*arrays)


def _compile(f: JaxAttention, inputs: Inputs) -> list[jax.stages.Compiled]:
    """Compiles the forward pass, and forward and backward pass."""
    both = jax.value_and_grad(lambda q, k, v, weight: (f(q, k, v) * weight).sum(), (0, 1, 2))
    programs = (lambda q, k, v, weight: f(q, k, v), both)
    return [jax.jit(g).lower(*inputs.all).compile() for g in programs]


def _program_calls(programs: Sequence[jax.stages.Compiled], inputs: Inputs) -> Calls:
    forward, both = programs
    return Calls(
        forward=lambda: jax.block_until_ready(forward(*inputs.all)),
        both=lambda: jax.block_until_ready(both(*inputs.all)),
    )


def _jax_calls(f: JaxAttention, inputs: Inputs) -> Calls:
    return _program_calls(_compile(f, inputs), inputs)


def _torch_calls(f: TorchAttention, inputs: Inputs) -> Calls:
    *tensors, weight = (torch.tensor(np.asarray(x)) for x in inputs.all)
    leaves = [x.clone().requires_grad_() for x in tensors]

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return f(*tensors)

    def both() -> None:
        for x in leaves:
            x.grad = None
        (f(*leaves) * weight).sum().backward()

    return Calls(forward, both)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def interleaved(calls: Mapping[str, Call], budget: float, repeats: int = 7) -> Timings:
    """Runs all contenders in turn, at least three times.

    Args:
        calls: contender -> call to time.
        budget: seconds after which no further round is started.
        repeats: maximum number of rounds.

    Returns:
        Contender -> {'wall', 'cpu': best seconds, 'median': median wall seconds, 'runs': rounds},
        or {'error': text}.
    """
    results: Timings = {}
    alive: dict[str, tuple[list[float], list[float]]] = {}
    for name, call in calls.items():
        try:
            call()
            alive[name] = ([], [])
        except Exception as error:  # no backward pass on this platform, or out of memory
            results[name] = {'error': f'{type(error).__name__}: {str(error)[:120]}'}
    start = time.perf_counter()
    for done in range(repeats):
        for name, (walls, cpus) in alive.items():
            cpu, wall = _cpu_seconds(), time.perf_counter()
            calls[name]()
            walls.append(time.perf_counter() - wall)
            cpus.append(_cpu_seconds() - cpu)
        if done >= 2 and time.perf_counter() - start > budget:
            break
    for name, (walls, cpus) in alive.items():
        results[name] = {
            'wall': min(walls), 'cpu': min(cpus), 'median': statistics.median(walls),
            'runs': len(walls),
        }  # fmt: skip
    return results


def gemm() -> Call:
    """Returns a large float32 product, whose rate the exact FLOPs are compared with."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a).block_until_ready()


def _ours(graph: Graph, drop_rate: float | None = None) -> JaxAttention:
    """Returns our engine for one head, with Context Pruning unless `drop_rate` is None."""

    def f(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (x[:, :, :, None] for x in (q, k, v))
        return attend(q, k, v, graph, drop_rate=drop_rate)[:, :, :, 0]

    return f


def run_graph(
    graph: Graph, shape: Shape, d: int, budget: float, *, with_peers: bool = True
) -> Result:
    """Times one graph and its peers.

    Args:
        graph: graph of the head.
        shape: batch, height and width of the map.
        d: number of channels.
        budget: seconds for each direction.
        with_peers: whether to time the peers and our engine sharded, too.

    Returns:
        Times by direction and contender, FLOPs of the edges, temporary memory of our programs.
    """
    b, h, w = shape
    inputs = _make_inputs(shape, d)
    programs = _compile(_ours(graph), inputs)
    calls = {'ours': _program_calls(programs, inputs)}
    if with_peers:
        if mesh := _make_mesh(shape):
            sharding = mesh_lib.by_batch(mesh)
            sharded = Inputs(*(jax.device_put(x, sharding) for x in inputs.all))
            with jax.set_mesh(mesh):
                calls[SHARDED] = _jax_calls(_ours(graph), sharded)
        found = PEERS[type(graph)](graph, h, w, d)
        calls |= {name: _torch_calls(peer, inputs) for name, peer in found.torch.items()}
        calls |= {name: _jax_calls(peer, inputs) for name, peer in found.jax.items()}
    memory = [program.memory_analysis() for program in programs]
    return {
        'flops': 4 * d * b * graph.num_edges(h, w),
        'memory': [each.temp_size_in_bytes for each in memory if each is not None],
        'forward': interleaved(
            {'gemm': gemm()} | {name: each.forward for name, each in calls.items()}, budget
        ),
        'both': interleaved(
            {'gemm': gemm()} | {name: each.both for name, each in calls.items()}, budget
        ),
    }


def run_module(shape: Shape, d: int, budget: float) -> Result:
    """Times the six heads of the paper, one call each, and our FULL head.

    Args:
        shape: batch, height and width of the map.
        d: number of channels.
        budget: seconds for each direction.
    """
    inputs = _make_inputs(shape, d)
    heads = [_ours(graph) for graph in graphs.parse(MODULE)]

    def module(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return functools.reduce(operator.add, [head(q, k, v) for head in heads])

    calls = {
        'module': _jax_calls(module, inputs),
        'full': _jax_calls(_ours(graphs.Full()), inputs),
    }
    return {
        'forward': interleaved({name: each.forward for name, each in calls.items()}, budget),
        'both': interleaved({name: each.both for name, each in calls.items()}, budget),
    }


def run_pruned(graph: Graph, shape: Shape, d: int, budget: float) -> Result:
    """Times inference with Context Pruning and without.

    Args:
        graph: graph of the head.
        shape: batch, height and width of the map.
        d: number of channels.
        budget: seconds.
    """
    inputs = _make_inputs(shape, d)
    programs = {
        'none': jax.jit(_ours(graph)),
        'drop 0.5': jax.jit(_ours(graph, drop_rate=0.5)),
        'drop 0.9': jax.jit(_ours(graph, drop_rate=0.9)),
    }

    def call_of(program: JaxAttention) -> Call:
        return lambda: jax.block_until_ready(program(inputs.q, inputs.k, inputs.v))

    calls = {name: call_of(program) for name, program in programs.items()}
    return {'forward': interleaved(calls, budget)}


def run_threshold(rows: int, length: int, budget: float) -> Result:
    """Times the search for the largest half of each row: ours, torch kthvalue and both top-k.

    Args:
        rows: number of rows.
        length: length of a row.
        budget: seconds.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, length)), jnp.float32)
    t, n = torch.tensor(np.asarray(x)), length // 2
    block = x.reshape(-1, 128, length)  # one tile at a time, as in the engine
    ours = jax.jit(
        lambda x: jax.lax.map(lambda t: top_k.largest(t, None, lambda c: jnp.minimum(c, n)), x)
    )
    lax_top_k = jax.jit(lambda x: jax.lax.top_k(x, n)[0][:, -1])
    return {
        'forward': interleaved(
            {
                'ours': lambda: ours(block).block_until_ready(),
                'torch kthvalue': lambda: t >= t.kthvalue(length - n + 1, dim=-1, keepdim=True)[0],
                'torch topk': lambda: t >= t.topk(n, dim=-1)[0][:, -1:],
                'jax top_k': lambda: lax_top_k(x).block_until_ready(),
            },
            budget,
        ),
        'pairs': rows * length,
    }


def run_case(name: str, budget: float) -> Result:
    """Runs a case.

    Args:
        name: name of the case, one of `cases`.
        budget: seconds for each direction.
    """
    kind, size, width = name.split('/')
    d = int(width.removeprefix('d'))
    if kind == 'threshold':
        rows, length = map(int, size.split('x'))
        return run_threshold(rows, length, budget)
    b, h, w = map(int, size.split('x'))
    if kind == 'module':
        return run_module((b, h, w), d, budget)
    variant, _, heads = kind.rpartition('-')
    graph = graphs.parse(heads)[0]
    if variant == 'pruned':
        return run_pruned(graph, (b, h, w), d, budget)
    return run_graph(graph, (b, h, w), d, budget, with_peers=variant != 'scaling')


def main(options: argparse.Namespace) -> None:
    """Runs the selected cases that have no result."""
    if options.device:
        # torch shares the GPU. JAX reads it when it looks for devices.
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
        on_device.run(options.out)
        return
    names = [name for name in cases() if re.search(options.cases, name)]
    if options.list:
        print('\n'.join(names))
        return
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        # The allocator reads them when a process starts.
        command = [sys.executable, '-m', 'experiments.benchmark.attention', *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **MALLOC})
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    # A second way to use the cores, for `_make_mesh`; other calls stay on the first device.
    jax.config.update('jax_num_cpu_devices', cores)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = options.out / (re.sub(r'[:/]', '_', name) + '.json')
        if path.exists():
            continue
        start = time.perf_counter()
        result = {
            'case': name,
            'date': time.strftime('%Y-%m-%d'),
            'cores': torch.get_num_threads(),
            'versions': [jax.__version__, torch.__version__],
            **run_case(name, options.budget),
        }
        path.write_text(json.dumps(result, indent=1))
        ours = result['forward'].get('ours', {}).get('wall', math.nan)
        print(f'{name}: {ours * 1e3:.1f} ms, {time.perf_counter() - start:.0f} s', flush=True)
    write_table(options.out)
    print((options.out / 'table.md').read_text())


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        '--out',
        default='runs/benchmark/attention',
        type=cli.path,
        help='folder of the results [runs/benchmark/attention]',
    )
    parser.add_argument(
        '--cases', default='.', help='regular expression of the cases to run, see --list [all]'
    )
    parser.add_argument(
        '--budget', default=3.0, type=float, help='seconds for a case and direction [3.0]'
    )
    parser.add_argument(
        '--device', action='store_true', help='time the GPU or TPU of this machine instead'
    )
    parser.add_argument('--list', action='store_true', help='print the cases and stop')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser(), writes=lambda options: not options.list)
