"""A process that computes on the CPU starts anew with an allocator that keeps memory."""

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
host_memory.keep()

def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b'x' * 2**27  # 32768 pages of 4 KiB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *sys.argv[1:])

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


glibc = pytest.mark.skipif(not host_memory._is_glibc(), reason='another C library')


def _run(folder, arguments, tunables) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments],
        env=os.environ | {'PYTHONPATH': f'{ROOT}:{folder}', 'GLIBC_TUNABLES': tunables},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@glibc
@pytest.mark.parametrize('tunables', ['', 'glibc.malloc.tcache_count=4', 'glibc.malloc.hugetlb=0'])
def test_large_blocks_are_kept(tmp_path, tunables):
    (tmp_path / 'program.py').write_text(PROGRAM)
    process = _run(tmp_path, ['program.py', 'an argument', '--flag=*'], tunables)
    *begun, last = process.stdout.splitlines()
    assert len(begun) == 2 and len(set(begun)) == 1, process.stderr  # one process
    faults, arguments = last.split(maxsplit=1)
    assert arguments == 'an argument --flag=*'
    assert int(faults) < 1.5 * 32768  # of the first of three blocks alone


@glibc
@pytest.mark.skipif(not host_memory._may_be_asked_for(), reason='huge pages for all, or for none')
@pytest.mark.parametrize(('tunables', 'huge'), [('', True), (':glibc.malloc.hugetlb=0', False)])
def test_large_blocks_are_huge_pages(tmp_path, tunables, huge):
    (tmp_path / 'program.py').write_text(PROGRAM)
    process = _run(tmp_path, ['program.py'], f'glibc.malloc.mmap_max=9{tunables}')  # none is kept
    faults = int(process.stdout.split()[-1])
    # Fragmented memory has no huge pages for all of them.
    assert faults < 32768 if huge else faults >= 3 * 32768, process.stdout


@glibc
@pytest.mark.parametrize('own', ['', 'glibc.malloc.arena_max=4', 'glibc.malloc.mmap_max=9'])
def test_what_the_environment_says_stays(monkeypatch, own):
    monkeypatch.setenv('GLIBC_TUNABLES', own)
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '4096')
    monkeypatch.setattr(host_memory, '_is_own_process', lambda: True)
    monkeypatch.setattr(host_memory, '_may_be_asked_for', lambda: False)
    started = []
    monkeypatch.setattr(host_memory.os, 'execv', lambda *_: started.append(True))
    host_memory.keep()
    said = dict(each.split('=') for each in os.environ['GLIBC_TUNABLES'].split(':'))
    expected = {'glibc.malloc.arena_max': '1', 'glibc.malloc.mmap_max': '0'}
    assert said == expected | dict(each.split('=') for each in [own] if each)
    host_memory.keep()
    assert len(started) == 1  # the program started anew finds all of it


@pytest.mark.parametrize(
    ('arguments', 'starts'),
    [
        (['-m', 'program'], 2),
        # As a notebook runs a file in its own process.
        (['-c', 'import runpy, sys; sys.argv = ["program.py"]; runpy.run_path("program.py")'], 1),
    ],
)
@glibc
def test_only_a_process_of_its_own_starts_anew(tmp_path, arguments, starts):
    (tmp_path / 'program.py').write_text(PROGRAM)
    process = _run(tmp_path, arguments, '')
    assert process.stdout.count('begins') == starts, process.stderr


@pytest.mark.parametrize('modes', ['always madvise [never]', '[always] madvise never', None])
def test_no_huge_pages_to_ask_for(monkeypatch, tmp_path, modes):
    file = tmp_path / 'enabled'
    if modes:
        file.write_text(modes)
    monkeypatch.setattr(host_memory, '_MODES', file)
    assert not host_memory._may_be_asked_for()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory, '_is_glibc', lambda: False)
    monkeypatch.setattr(host_memory, '_is_own_process', lambda: True)
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
    monkeypatch.setattr(host_memory.os, 'execv', None)
    host_memory.keep()
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
