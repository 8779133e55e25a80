"""CPU devices: one for each core that a run may use, which share the images of a batch."""

import os
from collections.abc import Iterable, Sequence

import jax
import jaxlib
from jax.sharding import Mesh
from jaxtyping import PyTree

# What says how many CPU devices there are, besides `jax_num_cpu_devices`.
_VARIABLE = 'JAX_NUM_CPU_DEVICES'
_FLAG = 'xla_force_host_platform_device_count'
# XLA:CPU ends the process if a device waits this long for another one, by default 40 seconds:
# no sign of a fault where a machine is busy with other work. A jaxlib that does not know a flag
# stops at it.
_PATIENCE = '--xla_cpu_collective_call_terminate_timeout_seconds=3600'
_KNOWN_TO = '0.10.', '0.11.', '0.12.'
# Parameters for each pixel of a device's images from which one device trains faster than several,
# and how many more an array counts for which the devices meet, in its gradient and in the sums of
# its norm: fitted to two cores of a Xeon and of a Zen 5 (docs/benchmark.md#backbones-on-a-cpu).
_MANY_PARAMETERS = 300
_OF_A_MEETING = 80_000
_made = 0  # number of devices that `one_a_core` chose
_LOWEST = 19  # priority of a thread: Linux runs it where nothing else wants the core


def one_a_core(batches: Iterable[int]) -> int | None:
    """Makes one CPU device of each core; to be called before JAX looks for devices.

    XLA:CPU hands every operation to all cores and waits for the last of them, so that small ones
    leave cores idle; devices go through whole networks side by side. GPUs and TPUs stay as they
    are, and so does a number that the user gave to JAX.

    Args:
        batches: numbers of images that devices have to share equally. With fewer devices than cores
            each has several cores.

    Returns:
        Number of devices, the largest one that divides all batches; None where the user gave one.
    """
    global _made
    if _VARIABLE in os.environ or _FLAG in os.environ.get('XLA_FLAGS', ''):
        return None
    batches = tuple(batches)
    cores = len(os.sched_getaffinity(0))
    count = max(n for n in range(1, cores + 1) if all(batch % n == 0 for batch in batches))
    jax.config.update('jax_num_cpu_devices', count)
    if count > 1 and jaxlib.__version__.startswith(_KNOWN_TO):
        os.environ['XLA_FLAGS'] = f'{_PATIENCE} {os.environ.get("XLA_FLAGS", "")}'
    _made = count
    return count


def of_training(params: PyTree, pixels: int) -> Sequence[jax.Device]:
    """The devices that train a network fastest: all, or one CPU device, which then has all cores.

    Of several CPU devices each goes over all parameters, and they meet for each gradient. Where
    images are few and small this takes longer than the cores of one device are idle. Devices that
    `one_a_core` did not make stay, and so do those of several processes.

    Args:
        params: parameters or their shapes, without stacks (`models.stacking`).
        pixels: number of pixels that the devices go through together.
    """
    devices = jax.devices()
    if devices[0].platform != 'cpu' or jax.process_count() > 1 or len(devices) != _made:
        return devices
    cost = sum(leaf.size + _OF_A_MEETING for leaf in jax.tree.leaves(params))
    few = cost * len(devices) >= _MANY_PARAMETERS * pixels
    return devices[:1] if few else devices


def niceness_beside(mesh: Mesh) -> int:
    """How much threads that load images give way to the devices, see `LoaderOptions.niceness`.

    CPU devices meet for every sum over the batch, and wait for one whose core loads an image. While
    they wait, their cores are free for that.

    Args:
        mesh: devices of the run.
    """
    return _LOWEST if mesh.devices.flat[0].platform == 'cpu' else 0
