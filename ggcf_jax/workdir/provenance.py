"""`run.json`: command, versions, devices and source revision of a run, for its report."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import jax

from ggcf_jax import atomic

_PACKAGES = ('ggcf_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def save(workdir: pathlib.Path) -> None:
    """Writes `run.json` into the workdir of a run."""
    versions = {'python': platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = 'not installed (run from its source)'
    devices = jax.devices()
    content = {
        'command': shlex.join([pathlib.Path(sys.executable).name, *sys.argv]),
        'versions': versions,
        'devices': f'{len(devices)} x {devices[0].device_kind}',
        'platform': f'{platform.platform()}, {os.cpu_count()} CPU cores',
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'git': _revision(),
    }
    atomic.write(workdir / 'run.json', json.dumps(content, indent=2).encode())


def _revision() -> str | None:
    """Git revision of the source tree that this package runs from; None outside of git."""
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
