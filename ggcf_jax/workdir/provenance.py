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
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from ggcf_jax import atomic, json_files
from ggcf_jax.errors import InputError

FILE_NAME = 'run.json'

_PACKAGES = ('ggcf_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def current(devices: Sequence[jax.Device] | None = None) -> dict[str, Any]:
    """What this process computes with: versions, devices, machine and source revision.

    Args:
        devices: devices that are used; None for all.
    """
    versions = {'python': platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = 'not installed (run from its source)'
    devices = jax.devices() if devices is None else devices
    return {
        'versions': versions,
        'devices': f'{len(devices)} x {devices[0].device_kind}',
        'platform': f'{platform.platform()}, {os.cpu_count()} CPU cores',
        'git': _revision(),
    }


def save(workdir: pathlib.Path, machines: Sequence[str], mesh: Mesh) -> None:
    """Writes `run.json` into the workdir of a run.

    Args:
        workdir: directory of the run.
        machines: name of the machine of each process.
        mesh: devices of the run.
    """
    content = {
        'command': shlex.join([pathlib.Path(sys.executable).name, *sys.argv]),
        **current([*mesh.devices.flat]),
        'machines': list(machines),
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }
    atomic.write(workdir / FILE_NAME, json.dumps(content, indent=2).encode())


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads what `save` wrote; {} where the file is missing.

    Args:
        workdir: directory of a run.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return {}
    try:
        content = json_files.parse_object(path.read_bytes())
        for name in content:
            if name == 'versions':
                json_files.need(content, name, _is_versions, 'an object of texts')
            elif name == 'machines':
                json_files.need(content, name, _is_texts, 'a list of texts')
            else:
                json_files.need(content, name, _is_text_or_none, 'a text')
    except ValueError as error:
        raise InputError(f'{path} is damaged ({error}); restore or delete it') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    return content


def _is_versions(value: Any) -> bool:
    return value is None or json_files.is_mapping(value, json_files.is_text)


def _is_texts(value: Any) -> bool:
    return json_files.is_list(value, json_files.is_text)


def _is_text_or_none(value: Any) -> bool:
    return value is None or json_files.is_text(value)


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
