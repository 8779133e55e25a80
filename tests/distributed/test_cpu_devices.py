"""One CPU device for each core, where the images of a batch divide and nobody said otherwise."""

import os
import subprocess
import sys
import types

import jax
import jaxlib
import numpy as np
import pytest

from ggcf_jax.distributed import cpu_devices
from tests.helpers import ROOT, one_device


def test_threads_give_way_to_the_cores_alone():
    devices = np.array(jax.devices('cpu')[:1])
    assert cpu_devices.niceness_beside(jax.sharding.Mesh(devices, 'data')) == 19
    accelerator = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform='tpu')]))
    assert cpu_devices.niceness_beside(accelerator) == 0


@pytest.fixture
def made(monkeypatch):
    """Numbers of devices that were made, on a machine of four cores."""
    numbers = []
    monkeypatch.setattr(jax.config, 'update', lambda name, value: numbers.append((name, value)))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 2, 3})
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
    monkeypatch.delenv('JAX_NUM_CPU_DEVICES', raising=False)
    monkeypatch.setattr(cpu_devices, '_made', 0)
    return numbers


@pytest.mark.parametrize(
    ('batches', 'count'), [((8, 4), 4), ((4, 6), 2), ((8, 1), 1), ((9, 3), 3), ((3, 6), 3)]
)
def test_batches_divide(made, batches, count):
    assert cpu_devices.one_a_core(batches) == count
    assert made == [('jax_num_cpu_devices', count)]
    assert cpu_devices._made == count
    # Devices wait for each other on a busy machine, too.
    waits = cpu_devices._PATIENCE in os.environ['XLA_FLAGS']
    assert waits == (count > 1 and jaxlib.__version__.startswith(cpu_devices._KNOWN_TO))
    assert os.environ['XLA_FLAGS'].endswith('--xla_cpu_enable_fast_math=false')


def test_jaxlib_knows_the_flag():
    """Of a version that is new, add it to `_KNOWN_TO` if it does; else it stops at the flag."""
    assert jaxlib.__version__.startswith(cpu_devices._KNOWN_TO)
    code = 'import jax; assert len(jax.devices()) == 2'
    given = {'XLA_FLAGS': cpu_devices._PATIENCE, 'JAX_NUM_CPU_DEVICES': '2'}
    environment = os.environ | given | {'JAX_PLATFORMS': 'cpu'}
    subprocess.run([sys.executable, '-c', code], env=environment, check=True)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('JAX_NUM_CPU_DEVICES', '1'),
        ('XLA_FLAGS', '--xla_force_host_platform_device_count=8'),
    ],
)
def test_a_given_number_stays(made, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert cpu_devices.one_a_core((8,)) is None
    assert made == [] and not cpu_devices._made


@pytest.fixture
def two_devices(monkeypatch):
    """Two devices of their platform in one process, as `one_a_core` makes them."""

    def make(platform='cpu'):
        devices = [types.SimpleNamespace(platform=platform) for _ in range(2)]
        monkeypatch.setattr(jax, 'devices', lambda: devices)
        return devices

    monkeypatch.setattr(cpu_devices, '_made', 2)
    return make


def _arrays(number, size):
    """Shapes of so many arrays, with so many elements together."""
    first, others = size - number + 1, number - 1
    return [jax.ShapeDtypeStruct((n,), np.float32) for n in (first, *[1] * others)]


def test_few_pixels_are_of_one_device(two_devices):
    """ResNet-18 on four and on sixteen images of 129 x 129 (docs/benchmark.md)."""
    devices, params = two_devices(), _arrays(62, 11_176_512)
    assert cpu_devices.of_training(params, 4 * 129**2) == devices[:1]
    assert cpu_devices.of_training(params, 16 * 129**2) == devices


def test_many_arrays_on_few_pixels_are_of_one_device(two_devices):
    """MobileNetV2, and as many parameters in as many arrays as ResNet-18 has."""
    devices = two_devices()
    assert cpu_devices.of_training(_arrays(158, 1_811_712), 4 * 129**2) == devices[:1]
    assert cpu_devices.of_training(_arrays(62, 1_811_712), 4 * 129**2) == devices


def test_other_devices_share_any_images(two_devices, monkeypatch):
    devices = two_devices('gpu')
    assert cpu_devices.of_training(_arrays(1, 10**9), 1) == devices
    devices = two_devices()
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    assert cpu_devices.of_training(_arrays(1, 10**9), 1) == devices
    monkeypatch.setattr(jax, 'process_count', lambda: 1)
    assert cpu_devices.of_training(_arrays(1, 10**9), 1) == devices[:1]
    monkeypatch.setattr(cpu_devices, '_made', 0)  # the user gave their number
    assert cpu_devices.of_training(_arrays(1, 10**9), 1) == devices


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='one core')
def test_main_shares_batches_among_cores():
    """The devices that a process has; `main.py` itself would train."""
    program = (
        'import jax, main; from tests.helpers import load_config; config = load_config("camvid"); '
        'config.train.batch_size, config.train.accumulate, config.eval.batch_size = 8, 4, 6; '
        'print(main._devices_of_cores(config), jax.device_count())'
    )
    environment = one_device()
    del environment['JAX_NUM_CPU_DEVICES']
    process = subprocess.run(
        [sys.executable, '-c', program], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert process.stdout == '2 2\n', process.stderr
