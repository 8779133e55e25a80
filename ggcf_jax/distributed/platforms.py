"""The kind of devices that a run computes on: chosen, and never the CPU by accident."""

import pathlib

import jax

from ggcf_jax.distributed import accelerator_builds
from ggcf_jax.errors import InputError

# Choices of `--platform`, by JAX's names; '' leaves it to JAX.
PLATFORMS = {'': '', 'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}


def choose(platform: str) -> None:
    """Tells JAX the devices to use, before it looks for them.

    Args:
        platform: a key of `PLATFORMS`.
    """
    if platform:
        jax.config.update('jax_platforms', PLATFORMS[platform])


def check() -> None:
    """Refuses to compute on the CPU where JAX is installed for accelerators but finds none.

    JAX itself falls back to the CPU, at best with a warning, and a run would take days. The CPU is
    taken where it was asked for, by `--platform=cpu` or the variable JAX_PLATFORMS.

    Raises:
        InputError: there are no devices of the chosen kind, or only the CPU.
    """
    # JAX adds the names of its options at run time.
    chosen = jax.config.jax_platforms or ''  # type: ignore[attr-defined]
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter where no platform is left
        raise InputError(
            f'JAX finds no device of the platform {chosen!r}: {str(error) or "none is there"}; '
            'choose another --platform (or JAX_PLATFORMS), or look for the cause with nvidia-smi '
            'or on the page of the TPU'
        ) from error
    if backend != 'cpu' or chosen:
        return
    if installed := accelerator_builds.installed():
        raise InputError(
            f'JAX is installed for accelerators ({", ".join(installed)}) but finds none, and would '
            'compute on the CPU: look for the cause (nvidia-smi, CUDA_VISIBLE_DEVICES, the '
            'warnings above), or give --platform=cpu'
        )


def gpus_of_machine(devices: pathlib.Path = pathlib.Path('/dev')) -> int:
    """Counts the NVIDIA GPUs of this machine (or container), used by JAX or not.

    Args:
        devices: folder of the device files.
    """
    return len(list(devices.glob('nvidia[0-9]*')))


def unused(machine: int, used: int) -> str | None:
    """Says that GPUs of this machine are left idle; None if none are.

    Args:
        machine: number of GPUs of the machine.
        used: number of them that the processes of the run on this machine use together.
    """
    if used >= machine:
        return None
    if used == 0:
        return (
            f'this machine has {machine} NVIDIA GPUs and the run uses none: install '
            "'ggcf_jax[cuda]', or JAX for your CUDA"
        )
    return (
        f'the run uses {used} of the {machine} GPUs of this machine: is that meant? '
        'CUDA_VISIBLE_DEVICES and the launcher decide; one process can use them all'
    )
