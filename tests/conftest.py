"""Eight virtual CPU devices for every test, and compiled programs kept between runs.

The fixtures are in `tests/fixtures.py`.
"""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import signal
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
# Tests run tiny shapes once: most of their time is compilation, and these settings leave a quarter
# of it. jaxlib 0.11 no longer knows the last flag, and stops at a flag that it does not know.
_FLAGS = ['--xla_force_host_platform_device_count=8', '--xla_cpu_parallel_codegen_split_count=1']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')

# A background job of a script ignores Ctrl-C, and so would the programs that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all tests are imported: what imports make stays

# Every compiled program holds about 2 MB, those of single operations as well.
_GROWTH = 1 << 30  # bytes by which a process grows before it forgets its programs
_next_size = 0


def pytest_configure(config) -> None:
    # The process that only hands out tests to others need not wait for the imports.
    if config.getoption('dist', 'no') == 'no':
        config.pluginmanager.import_plugin('tests.fixtures')


def pytest_collection_finish() -> None:
    """Tracing makes many objects that live: looking through all of them often takes a tenth."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    global _next_size
    size = _resident()
    if not _next_size:
        _next_size = size + _GROWTH
    elif size > _next_size:
        sys.modules['jax'].clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _next_size = _resident() + _GROWTH


def _resident() -> int:
    """Memory of this process, in bytes."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')
