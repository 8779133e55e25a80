"""A process that computes on the CPU starts anew with an allocator that suits XLA:CPU."""

import os
import subprocess
import sys

import pytest

from ggcf_jax.distributed import accelerator_builds, host_memory
from tests.helpers import ROOT

# Page faults of blocks as large as those of a training step, in a thread, after the first block.
PROGRAM = """
import os, resource, sys, threading
from ggcf_jax.distributed import host_memory

print('begins', os.getpid(), flush=True)
if 'WITHOUT_JEMALLOC' in os.environ:
    host_memory._find_jemalloc = lambda: None
host_memory.choose_allocator()

def work():
    b'x' * 2**27  # 32768 pages of 4 KiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b'x' * 2**27
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(host_memory.describe())
    print(*sys.argv[1:])

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
ALL = 3 * 32768  # page faults where no page is kept and none is huge
NONE = {variable: None for variable in ('LD_PRELOAD', 'MALLOC_CONF', 'GLIBC_TUNABLES')}
WITHOUT = {'WITHOUT_JEMALLOC': '1'}
ADVICE = '; jemalloc is faster (docs/performance.md#on-a-cpu)'

needs_jemalloc = pytest.mark.skipif(
    host_memory._find_jemalloc() is None, reason='jemalloc is not installed'
)
asks = pytest.mark.skipif(
    not (host_memory._is_glibc() and host_memory._may_be_asked_for()),
    reason='this system gives huge pages to all programs, or to none',
)


def _run(folder, arguments, variables) -> subprocess.CompletedProcess:
    environment = os.environ | NONE | {'PYTHONPATH': f'{ROOT}:{folder}'} | variables
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def _page_faults(folder, variables, starts) -> tuple[int, str]:
    """Page faults of the program and what it says of its allocator, if it began `starts` times."""
    (folder / 'program.py').write_text(PROGRAM)
    process = _run(folder, ['program.py', 'an argument', '--flag=*'], variables)
    assert not process.stderr
    *begun, faults, allocator, arguments = process.stdout.splitlines()
    assert len(begun) == starts and len(set(begun)) == 1, process.stdout  # one process
    assert arguments == 'an argument --flag=*'
    return int(faults), allocator


@needs_jemalloc
def test_jemalloc_keeps_memory(tmp_path):
    faults, allocator = _page_faults(tmp_path, {}, starts=2)
    assert faults < 1000
    assert allocator == 'libjemalloc.so.2, which keeps it'


BLOCKS = """
import resource
from ggcf_jax.distributed import host_memory

host_memory.choose_allocator()
peaks = []
for _ in range(40):
    blocks = [bytes(2**16) for _ in range(400)]
    del blocks  # 25 MiB side by side
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(host_memory.describe())
print((peaks[-1] - peaks[4]) // 1024)
"""


@needs_jemalloc
def test_blocks_that_were_given_back_are_used_again(tmp_path):
    (tmp_path / 'blocks.py').write_text(BLOCKS)
    allocator, growth = _run(tmp_path, ['blocks.py'], {}).stdout.splitlines()
    assert allocator == 'libjemalloc.so.2, which keeps it'
    assert int(growth) < 50  # MiB


@needs_jemalloc
@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({'LD_PRELOAD': 'libjemalloc.so.2'}, 'libjemalloc.so.2'),
        ({'MALLOC_CONF': 'narenas:1'}, f"the C library's allocator{ADVICE}"),
        ({'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}, f"the C library's allocator{ADVICE}"),
    ],
)
def test_what_the_user_chose_stays(tmp_path, variables, expected):
    assert _page_faults(tmp_path, variables, starts=1)[1] == expected


@asks
@pytest.mark.parametrize('variables', [WITHOUT, {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=4'}])
def test_huge_pages_from_glibc(tmp_path, variables):
    faults, allocator = _page_faults(tmp_path, variables, starts=2)
    assert faults < ALL // 3  # fragmented memory has no huge pages for all of them
    assert allocator == f"the C library's allocator with huge pages{ADVICE}"


@asks
def test_small_pages_where_huge_ones_are_turned_off(tmp_path):
    variables = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}
    faults, _ = _page_faults(tmp_path, variables, starts=1)
    assert faults >= ALL


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
    process = _run(tmp_path, arguments, {})
    assert process.stdout.count('begins') == starts, process.stderr


@pytest.fixture
def bare(monkeypatch):
    """A system with glibc, huge pages for those that ask and no jemalloc; nothing is chosen."""
    for variable in NONE:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(host_memory, '_find_jemalloc', lambda: None)
    monkeypatch.setattr(host_memory, '_is_glibc', lambda: True)
    monkeypatch.setattr(host_memory, '_may_be_asked_for', lambda: True)


@pytest.mark.parametrize(
    ('variables', 'library', 'expected'),
    [
        ({}, None, {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}),
        ({}, '/a/b.so', {'LD_PRELOAD': '/a/b.so', 'MALLOC_CONF': host_memory._KEEP}),
        (
            {'LD_PRELOAD': 'libasan.so', 'GLIBC_TUNABLES': 'glibc.rtld.nns=4'},
            '/a/b.so',
            {'LD_PRELOAD': '/a/b.so:libasan.so', 'MALLOC_CONF': host_memory._KEEP},
        ),
        (
            {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=4'},
            '/a/b.so',
            {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1'},
        ),
        ({'LD_PRELOAD': 'libtcmalloc_minimal.so.4'}, '/a/b.so', {}),
        ({'MALLOC_CONF': ''}, '/a/b.so', {}),
        ({'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}, '/a/b.so', {}),
    ],
)
def test_variables(bare, monkeypatch, variables, library, expected):
    monkeypatch.setattr(host_memory, '_find_jemalloc', lambda: library)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert host_memory._variables() == expected


@pytest.mark.parametrize('modes', ['always madvise [never]', '[always] madvise never', None])
def test_nothing_to_ask_for(monkeypatch, tmp_path, modes):
    file = tmp_path / 'enabled'
    if modes:
        file.write_text(modes)
    monkeypatch.setattr(host_memory, '_MODES', file)
    assert not host_memory._may_be_asked_for()


def test_another_c_library_is_left_alone(bare, monkeypatch):
    monkeypatch.setattr(host_memory, '_is_glibc', lambda: False)
    assert not host_memory._variables()


def test_huge_pages_are_not_asked_for_in_vain(bare, monkeypatch):
    monkeypatch.setattr(host_memory, '_may_be_asked_for', lambda: False)
    assert not host_memory._variables()


def test_jemalloc_of_a_conda_environment(monkeypatch, tmp_path):
    library = tmp_path / 'environment' / 'lib' / 'libjemalloc.so.2'
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(host_memory.sys, 'prefix', str(tmp_path / 'environment'))
    monkeypatch.setattr(host_memory.sys, 'platform', 'linux')
    assert host_memory._find_jemalloc() == str(library)
    # The loader would take what follows a space for the name of another library.
    (tmp_path / 'environment').rename(tmp_path / 'an environment')
    monkeypatch.setattr(host_memory.sys, 'prefix', str(tmp_path / 'an environment'))
    monkeypatch.setattr(host_memory.ctypes.util, 'find_library', lambda name: 'libjemalloc.so.1')
    assert host_memory._find_jemalloc() is None
    monkeypatch.setattr(host_memory.ctypes.util, 'find_library', lambda name: 'libjemalloc.so.2')
    assert host_memory._find_jemalloc() == 'libjemalloc.so.2'
    monkeypatch.setattr(host_memory.sys, 'platform', 'darwin')
    assert host_memory._find_jemalloc() is None


def test_what_the_loader_ignored_is_not_claimed(bare, monkeypatch, tmp_path):
    (tmp_path / 'maps').write_text('7f00-7f01 r-xp 00000000 fe:00 1 /lib/libc.so.6')
    monkeypatch.setattr(host_memory, '_MAPS', tmp_path / 'maps')
    monkeypatch.setenv('LD_PRELOAD', '/nowhere/libjemalloc.so.2')
    monkeypatch.setenv('MALLOC_CONF', host_memory._KEEP)
    assert 'libjemalloc' not in host_memory.describe()
    (tmp_path / 'maps').write_text('7f00-7f01 r-xp 00000000 fe:00 1 /nowhere/libjemalloc.so.2')
    assert host_memory.describe() == 'libjemalloc.so.2, which keeps it'


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
