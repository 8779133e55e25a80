"""Accelerators that programs are compiled for on a machine that has none.

XLA's compilers come with the extra `aot`: libtpu for TPUs, jax-cuda13-plugin for GPUs. They need a
description of the chip and the number of chips, not the chip itself.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from ggcf_jax.attention import cudnn
from ggcf_jax.attention import target as target_lib
from ggcf_jax.errors import InputError

# XLA:GPU's description of an H100 SXM (80 GB), as its own device query prints it.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


CUDNN = 91200  # version of cuDNN in that description, as JAX counts


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        platform: 'tpu' or 'cuda'.
        topology: name of a TPU slice, or hosts x GPUs a host x 1.
        devices: number of its chips that are used, from the first.
    """

    platform: str
    topology: str
    devices: int


TARGETS = {
    'h100': Target('cuda', '1x1x1', 1),
    'h100x2': Target('cuda', '1x8x1', 2),
    'h100x4': Target('cuda', '1x8x1', 4),
    'h100x8': Target('cuda', '1x8x1', 8),
    'v5e': Target('tpu', 'v5e:2x2', 1),
    'v5e:4x4': Target('tpu', 'v5e:4x4', 16),
    'v6e': Target('tpu', 'v6e:2x2', 1),
}
# Without a GPU to autotune on, XLA takes its default tiles for Triton products, and some shapes
# (f32[7,156,156] of GRID_8 at 97 x 97) have none. cuBLAS needs no tiles.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    'cuda': {'xla_gpu_enable_triton_gemm': False},
    'tpu': {},
}
_PACKAGES = {'tpu': ('libtpu', 'libtpu'), 'cuda': ('jax_plugins.xla_cuda13', 'jax-cuda13-plugin')}


def missing(target: Target) -> str | None:
    """Returns why this machine cannot compile for the target; None if it can."""
    module, package = _PACKAGES[target.platform]
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of the module
        found = False
    return None if found else f'{package} is not installed; install the extra aot'


def compiler(target: Target) -> str:
    """Returns name and version of the compiler of a target, such as 'libtpu 0.0.42'.

    Raises:
        InputError: the compiler of the target is not installed.
    """
    _check_installed(target)
    package = _PACKAGES[target.platform][1]
    return f'{package} {importlib.metadata.version(package)}'


def _check_installed(target: Target) -> None:
    reason = missing(target)
    if reason is not None:
        raise InputError(f'cannot compile for {target.topology} of {target.platform}: {reason}')


def devices(target: Target) -> list[jax.Device]:
    """Returns the devices of a target; programs can be compiled for them, but not run.

    Raises:
        InputError: the compiler of the target is not installed.
    """
    _check_installed(target)
    if target.platform == 'tpu':
        os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # do not look for a cloud machine's metadata
        os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = 'true'  # nothing runs: processes do not clash
        topology = topologies.get_topology_desc(target.topology, 'tpu')
    else:
        jax.devices()  # discovers plugins, the GPU's among them
        topology = topologies.get_topology_desc(
            '', 'cuda', target_config=_H100, topology=target.topology
        )
    return topology.devices[: target.devices]


@contextlib.contextmanager
def tracing(chips: Sequence[jax.Device]) -> Iterator[None]:
    """Traces inside as on a machine that has these devices.

    A mesh tells the platform, but nothing of a GPU. JAX asks the GPU of the machine that traces
    whether it has cuDNN: here the answers are those of the GPU that is compiled for.
    """
    if chips[0].platform != 'gpu':
        yield
        return
    major, minor = map(int, chips[0].compute_capability.split('.'))  # of CUDA devices alone
    answers: dict[str, Callable[..., object]] = {
        'check_cudnn_version': lambda: CUDNN,
        'check_compute_capability': lambda text: (major, minor) >= _version(text),
        'is_cuda_compute_capability_equal': lambda text: (major, minor) == _version(text),
    }
    before = {name: getattr(fused_attention_stablehlo, name) for name in answers}
    cudnn.forget_answers()
    for name, answer in answers.items():
        setattr(fused_attention_stablehlo, name, answer)
    try:
        with target_lib.tracing_for('gpu', (major, minor)):
            yield
    finally:
        for name, function in before.items():
            setattr(fused_attention_stablehlo, name, function)
        cudnn.forget_answers()


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split('.')))
