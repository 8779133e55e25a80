"""Which JAX for accelerators is installed, found without importing JAX."""

import importlib.util

# Modules that come with a JAX for accelerators.
_MODULES = (
    'jax_plugins.xla_cuda12',
    'jax_plugins.xla_cuda13',
    'jax_plugins.xla_rocm60',
    'jax_plugins.xla_rocm7',
    'libtpu',
)


def installed() -> list[str]:
    """The modules for accelerators that are installed."""
    return [name for name in _MODULES if _is_installed(name)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of the module
        return False
