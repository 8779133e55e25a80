"""Times the attention engine against its peers, interleaved, and writes tables.

    python -m experiments.benchmark.attention --out=runs/benchmark/attention

Every case writes <out>/<case>.json and is skipped when that file is there, so a run may be cut off
and resumed; `--cases` takes a part of them by a regular expression. The tables over all cases in
the folder go to <out>/table.md. Run it from the root of the repository; needs the parity extra.
"""

import argparse
import json
import math
import os
import pathlib
import re
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmark import peers
from experiments.benchmark.tables import DEALT, write_table
from ggcf_jax.attention import attend, graphs, top_k
from ggcf_jax.distributed import mesh as mesh_lib

# Page faults of glibc's malloc double some times, those of the peers most: keep freed memory.
MALLOC = {
    'MALLOC_MMAP_THRESHOLD_': str(1 << 30),
    'MALLOC_TRIM_THRESHOLD_': str(1 << 33),
    'MALLOC_TOP_PAD_': str(1 << 28),
}
MAPS = ((2, 97, 97), (1, 128, 256))
HEADS = 'local:8,16,24,grid:8,16,24,full'
MODULE = 'local:8,16,24,grid:8,16,24'
SMALL = 16384  # positions; the largest map on which peers may need memory of all pairs


def cases():
    """Names of all cases, the most telling first."""
    names = []
    for d in (64, 256):
        for b, h, w in reversed(MAPS):
            names += [f'{g}/{b}x{h}x{w}/d{d}' for g in graphs.parse(HEADS)]
    names += ['module/1x128x256/d64', 'threshold/4096x2401/d0']
    names += [f'pruned-{g}/1x128x256/d64' for g in graphs.parse('local:24,grid:8,full')]
    sizes = ((32, 64), (64, 64), (64, 128), (128, 256), (256, 512), (512, 1024))
    return names + [f'scaling-local:8/1x{h}x{w}/d64' for h, w in sizes]


def _peers_of_local(graph, h, w, d):
    small, s = h * w < SMALL, graph.size
    found = {'halo': ('torch', peers.halo_local(h, w, s))}
    if small or d <= 64:  # torch 2.13 takes more than 24 GB at 128 x 256 and d = 256
        found['flex'] = ('torch', peers.flex_local(h, w, s))
    if small:
        found['sdpa mask'] = ('torch', peers.sdpa_local(h, w, s))
    if small and s <= 8 and d <= 64:  # its backward pass keeps all unfolded windows
        found['unfold'] = ('torch', peers.unfold_local(h, w, s))
    return found


def _peers_of_grid(graph, h, w, d):
    return {'sdpa groups': ('torch', peers.grid_sdpa(h, w, graph.stride))}


def _peers_of_full(graph, h, w, d):
    found = {'sdpa': ('torch', peers.sdpa_full(h, w))}
    if h * w < SMALL:
        found['non-local'] = ('torch', peers.non_local(h, w))
        found['jax dpa'] = ('jax', peers.jax_full(h, w))
    return found


# Class of a graph -> function of (graph, h, w, d) to the peers that can run a case in bounded time:
# name -> (framework, function).
PEERS = {
    graphs.Local: _peers_of_local,
    graphs.Grid: _peers_of_grid,
    graphs.Full: _peers_of_full,
}


def _dealt(shape):
    """How one device a core would share a case: images where they divide, else rows of the map.

    Returns:
      A sharding, or None where there is one device or nothing divides.
    """
    n, (b, h, _) = jax.device_count(), shape
    space = 1 if b % n == 0 else n
    if n == 1 or h % space:
        return None
    return mesh_lib.by_batch(mesh_lib.make_mesh(space=space))


def _compile(f, arrays, weight):
    """Compiled programs of (*arrays, weight): forward, and forward + backward."""
    both = jax.value_and_grad(lambda *x: (f(*x[:-1]) * x[-1]).sum(), (0, 1, 2))
    programs = (lambda *x: f(*x[:-1]), both)
    return [jax.jit(g).lower(*arrays, weight).compile() for g in programs]


def _timed(programs, arrays, weight):
    """Calls of what `_compile` gives."""
    return [lambda p=p: jax.block_until_ready(p(*arrays, weight)) for p in programs]


def _calls(framework, f, arrays, weight):
    """Timed calls of one contender: forward, and forward + backward."""
    if framework == 'jax':
        return _timed(_compile(f, arrays, weight), arrays, weight)
    tensors = [torch.tensor(np.asarray(x)) for x in arrays]
    leaves = [x.clone().requires_grad_() for x in tensors]
    weight = torch.tensor(np.asarray(weight))

    def forward():
        with torch.inference_mode():
            return f(*tensors)

    def both():
        for x in leaves:
            x.grad = None
        (f(*leaves) * weight).sum().backward()

    return forward, both


def _cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def interleaved(calls, budget, repeats=7):
    """Runs all contenders in turn, at least three times and until `budget` seconds are over.

    Returns:
      name -> {'wall', 'cpu': best seconds, 'median': median wall seconds}, or {'error': text}.
    """
    results, alive = {}, {}
    for name, call in calls.items():
        try:
            call()
            alive[name] = ([], [])
        except Exception as error:  # a peer without a backward pass on this platform, or memory
            results[name] = {'error': f'{type(error).__name__}: {str(error)[:120]}'}
    start = time.perf_counter()
    for done in range(repeats):
        for name, (walls, cpus) in alive.items():
            cpu, wall = _cpu(), time.perf_counter()
            calls[name]()
            walls.append(time.perf_counter() - wall)
            cpus.append(_cpu() - cpu)
        if done >= 2 and time.perf_counter() - start > budget:
            break
    for name, (walls, cpus) in alive.items():
        results[name] = {
            'wall': min(walls), 'cpu': min(cpus), 'median': statistics.median(walls),
            'runs': len(walls),
        }  # fmt: skip
    return results


def gemm():
    """A large float32 product, whose rate is what exact FLOPs are compared with."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a).block_until_ready()


def _inputs(b, h, w, d):
    rng = np.random.default_rng(0)
    scales = (d**-0.25, d**-0.25, 1, 1)  # affinities of standard deviation 1
    return [jnp.asarray(rng.standard_normal((b, h, w, d)) * s, jnp.float32) for s in scales]


def _ours(graph, **options):
    def f(q, k, v):
        return attend(q[:, :, :, None], k[:, :, :, None], v[:, :, :, None], graph, **options)[
            :, :, :, 0
        ]

    return f


def run_graph(graph, shape, d, budget, with_peers=True):
    """One graph against its peers: times, FLOPs, temporary memory."""
    b, h, w = shape
    *arrays, weight = _inputs(b, h, w, d)
    programs = _compile(_ours(graph), arrays, weight)
    calls = {'ours': _timed(programs, arrays, weight)}
    if with_peers:
        if sharding := _dealt(shape):
            dealt = [jax.device_put(x, sharding) for x in (*arrays, weight)]
            with jax.set_mesh(sharding.mesh):
                shared = _compile(_ours(graph), dealt[:-1], dealt[-1])
            calls[DEALT] = _timed(shared, dealt[:-1], dealt[-1])
        for name, peer in PEERS[type(graph)](graph, h, w, d).items():
            calls[name] = _calls(*peer, arrays, weight)
    result = {
        'flops': 4 * d * b * graph.num_edges(h, w),
        'memory': [p.memory_analysis().temp_size_in_bytes for p in programs],
    }
    for which, part in enumerate(('forward', 'both')):
        timed = {'gemm': gemm()} | {name: c[which] for name, c in calls.items()}
        result[part] = interleaved(timed, budget)
    return result


def run_module(shape, d, budget):
    """The six heads of the paper, one call each, against our own FULL head."""
    *arrays, weight = _inputs(*shape, d)
    heads = graphs.parse(MODULE)

    def module(q, k, v):
        return sum(_ours(graph)(q, k, v) for graph in heads)

    both = {'module': module, 'full': _ours(graphs.Full())}
    calls = {name: _calls('jax', f, arrays, weight) for name, f in both.items()}
    return {
        part: interleaved({name: c[i] for name, c in calls.items()}, budget)
        for i, part in enumerate(('forward', 'both'))
    }


def run_pruned(graph, shape, d, budget):
    """Pruned inference against the unpruned head."""
    *arrays, _ = _inputs(*shape, d)
    options = {'none': {}, 'drop 0.5': {'drop_rate': 0.5}, 'drop 0.9': {'drop_rate': 0.9}}
    programs = {name: jax.jit(_ours(graph, **o)) for name, o in options.items()}
    calls = {name: lambda p=p: jax.block_until_ready(p(*arrays)) for name, p in programs.items()}
    return {'forward': interleaved(calls, budget)}


def run_threshold(rows, length, budget):
    """The largest half of each row: our search against torch kthvalue and both top-k."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, length)), jnp.float32)
    t, n = torch.tensor(np.asarray(x)), length // 2
    block = x.reshape(-1, 128, length)  # as the engine meets them, a tile at a time
    ours = jax.jit(
        lambda x: jax.lax.map(lambda t: top_k.largest(t, None, lambda c: jnp.minimum(c, n)), x)
    )
    by_top_k = jax.jit(lambda x: jax.lax.top_k(x, n)[0][:, -1])
    return {
        'forward': interleaved(
            {
                'ours': lambda: ours(block).block_until_ready(),
                'torch kthvalue': lambda: t >= t.kthvalue(length - n + 1, dim=-1, keepdim=True)[0],
                'torch topk': lambda: t >= t.topk(n, dim=-1)[0][:, -1:],
                'jax top_k': lambda: by_top_k(x).block_until_ready(),
            },
            budget,
        ),
        'pairs': rows * length,
    }


def run_case(name, budget):
    """The result of one case, by its name."""
    kind, size, d = name.split('/')
    d, numbers = int(d[1:]), tuple(map(int, size.split('x')))
    if kind == 'module':
        return run_module(numbers, d, budget)
    if kind == 'threshold':
        return run_threshold(*numbers, budget)
    if kind.startswith('pruned-'):
        return run_pruned(graphs.parse(kind[7:])[0], numbers, d, budget)
    if kind.startswith('scaling-'):
        return run_graph(graphs.parse(kind[8:])[0], numbers, d, budget, with_peers=False)
    return run_graph(graphs.parse(kind)[0], numbers, d, budget)


def main():
    """Runs the cases that are asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='runs/benchmark/attention', type=pathlib.Path)
    parser.add_argument('--cases', default='.', help='regular expression; see --list')
    parser.add_argument('--budget', default=3.0, type=float, help='seconds a case and direction')
    parser.add_argument('--list', action='store_true', help='print the cases and stop')
    options = parser.parse_args()
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
    # A second way to use the cores, for `_dealt`; other calls stay on the first device.
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


if __name__ == '__main__':
    main()
