"""Freed memory stays with a process that computes on the CPU, unless the user chose otherwise."""

import os
import subprocess
import sys

import pytest

from ggcf_jax.distributed import accelerator_builds, host_memory
from tests.helpers import ROOT

glibc = pytest.mark.skipif(not host_memory._is_glibc(), reason='another C library than glibc')

# Page faults of blocks as large as those of a training step, in a thread, after the first one.
PROGRAM = """
import resource, sys, threading
from ggcf_jax.distributed import host_memory
told = host_memory.keep_pages()
import numpy as np

def step():
    np.ones(2**25, np.uint8)  # 8192 pages
    np.ones(2**27, np.uint8)  # 32768 pages

def work():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@glibc
@pytest.mark.parametrize(
    ('variables', 'told', 'kept'),
    [
        ({}, 'True', True),
        ({'MALLOC_ARENA_MAX': '2'}, 'False', False),
        ({'GLIBC_TUNABLES': 'glibc.malloc.arena_max=2'}, 'False', False),
    ],
)
def test_blocks_are_cleared_once(variables, told, kept):
    names = ('GLIBC_TUNABLES', 'PYTHONMALLOC')
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith('MALLOC_') and name not in names
    }
    process = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env=environment | {'PYTHONPATH': str(ROOT)} | variables,
        capture_output=True,
        text=True,
    )
    found, faults = process.stdout.split()
    assert found == told, process.stderr
    # Huge pages, where the system gives them unasked, are cleared at once: 512 small ones.
    assert int(faults) < 100 if kept else int(faults) > 3 * 32768 / 512, faults


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory, '_is_glibc', lambda: False)
    monkeypatch.setattr(host_memory.ctypes, 'CDLL', None)
    assert not host_memory.keep_pages()


@pytest.mark.parametrize(
    ('variable', 'arguments', 'builds', 'cpu'),
    [
        (None, ['main.py'], [], True),
        (None, ['main.py'], ['libtpu'], False),
        (None, ['main.py', '--platform=cpu'], ['libtpu'], True),
        (None, ['main.py', '--platform=gpu'], ['libtpu'], False),
        ('cpu', ['main.py'], ['libtpu'], True),
        ('cuda', ['main.py'], ['jax_plugins.xla_cuda12'], False),
    ],
)
def test_only_what_computes_on_the_cpu(monkeypatch, variable, arguments, builds, cpu):
    monkeypatch.setattr(accelerator_builds, 'installed', lambda: builds)
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    if variable:
        monkeypatch.setenv('JAX_PLATFORMS', variable)
    assert host_memory.is_for_cpu(arguments) == cpu
