"""The CPU is never taken by accident, and idle GPUs are noticed."""

import types

import pytest

from ggcf_jax.distributed import accelerator_builds, chips, platforms
from ggcf_jax.errors import InputError


def _jax(chosen, backend):
    """Stands in for a JAX that was told to take `chosen` and takes `backend`."""

    def default_backend():
        if isinstance(backend, Exception):
            raise backend
        return backend

    config = types.SimpleNamespace(jax_platforms=chosen)
    return types.SimpleNamespace(config=config, default_backend=default_backend)


@pytest.mark.parametrize(
    ('chosen', 'backend', 'installed', 'message'),
    [
        (None, 'cpu', (), None),
        (None, 'gpu', ('pathlib',), None),
        ('cpu', 'cpu', ('pathlib',), None),
        (
            None,
            'cpu',
            ('nowhere.at_all', 'pathlib'),
            r'\(pathlib\) but finds none',
        ),
        ('cuda', RuntimeError('no driver'), (), "no device of the platform 'cuda': no driver"),
        ('cuda', AssertionError(), (), "no device of the platform 'cuda': none is there"),
    ],
)
def test_the_cpu_is_taken_where_it_was_asked_for(monkeypatch, chosen, backend, installed, message):
    monkeypatch.setattr(platforms, 'jax', _jax(chosen, backend))
    monkeypatch.setattr(accelerator_builds, '_MODULES', installed)
    if message is None:
        platforms.check()
        return
    with pytest.raises(InputError, match=message):
        platforms.check()


def test_gpus_that_are_left_idle(tmp_path):
    for name in ('nvidia0', 'nvidia1', 'nvidia10', 'nvidiactl', 'nvidia-uvm', 'null'):
        (tmp_path / name).touch()
    assert platforms.gpus_of_machine(tmp_path) == 3
    assert platforms.unused(8, 8) is None and platforms.unused(0, 1) is None
    assert 'uses 1 of the 8 GPUs' in platforms.unused(8, 1)
    assert "install 'ggcf_jax[cuda]'" in platforms.unused(8, 0)


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('TPU v3', 61.5e12),
        ('TPU v5', 459e12),
        ('TPU v5 lite', 197e12),
        ('TPU v6 lite', 918e12),
        ('TPU7x', 1153.5e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA H200', 989e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('NVIDIA A100 80GB PCIe', 312e12),
        ('NVIDIA A10G', 125e12),
        ('NVIDIA L4', 121e12),
        ('NVIDIA L40S', 362e12),
        ('NVIDIA L40', None),
        ('NVIDIA RTX A1000', None),
        ('cpu', None),
    ],
)
def test_peaks_by_the_names_of_devices(kind, peak):
    assert chips.peak_flops(kind) == peak
