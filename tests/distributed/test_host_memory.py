"""A process that computes on the CPU starts anew with an allocator that asks for huge pages."""

import os
import subprocess
import sys

import pytest

from ggcf_jax.distributed import accelerator_builds, host_memory
from tests.helpers import ROOT

# Page faults of blocks as large as those of a training step, in a thread.
PROGRAM = """
import os, resource, sys, threading
from ggcf_jax.distributed import host_memory

print('begins', os.getpid(), flush=True)
host_memory.use_huge_pages()

def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b'x' * 2**27  # 32768 pages of 4 KiB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *sys.argv[1:])

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


asks = pytest.mark.skipif(
    not (host_memory._is_glibc() and host_memory._may_be_asked_for()),
    reason='this system gives huge pages to all programs, or to none',
)


def _run(folder, arguments, tunables) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments],
        env=os.environ | {'PYTHONPATH': f'{ROOT}:{folder}', 'GLIBC_TUNABLES': tunables},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@asks
@pytest.mark.parametrize(
    ('tunables', 'starts'),
    [('', 2), ('glibc.malloc.arena_max=4', 2), ('glibc.malloc.hugetlb=0', 1)],
)
def test_large_blocks_are_huge_pages(tmp_path, tunables, starts):
    (tmp_path / 'program.py').write_text(PROGRAM)
    process = _run(tmp_path, ['program.py', 'an argument', '--flag=*'], tunables)
    *begun, last = process.stdout.splitlines()
    assert len(begun) == starts and len(set(begun)) == 1, process.stderr  # one process
    faults, arguments = last.split(maxsplit=1)
    assert arguments == 'an argument --flag=*'
    # Fragmented memory has no huge pages for all of them.
    assert int(faults) < 32768 if starts == 2 else int(faults) >= 3 * 32768, faults


@pytest.mark.parametrize(
    ('arguments', 'starts'),
    [
        (['-m', 'program'], 2),
        # As a notebook runs a file in its own process.
        (['-c', 'import runpy, sys; sys.argv = ["program.py"]; runpy.run_path("program.py")'], 1),
    ],
)
@asks
def test_only_a_process_of_its_own_starts_anew(tmp_path, arguments, starts):
    (tmp_path / 'program.py').write_text(PROGRAM)
    process = _run(tmp_path, arguments, '')
    assert process.stdout.count('begins') == starts, process.stderr


@pytest.mark.parametrize('modes', ['always madvise [never]', '[always] madvise never', None])
def test_nothing_to_ask_for(monkeypatch, tmp_path, modes):
    file = tmp_path / 'enabled'
    if modes:
        file.write_text(modes)
    monkeypatch.setattr(host_memory, '_MODES', file)
    monkeypatch.setattr(host_memory, '_is_glibc', lambda: True)
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
    monkeypatch.setattr(host_memory.os, 'execv', None)
    host_memory.use_huge_pages()
    assert 'GLIBC_TUNABLES' not in os.environ


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory, '_is_glibc', lambda: False)
    monkeypatch.setattr(host_memory, '_may_be_asked_for', lambda: True)
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
    monkeypatch.setattr(host_memory.os, 'execv', None)
    host_memory.use_huge_pages()
    assert 'GLIBC_TUNABLES' not in os.environ


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
