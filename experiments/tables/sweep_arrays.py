"""A sweep as an array job: one element for each run that is not finished, for SLURM and for GKE."""

import json
import shlex
from collections.abc import Sequence
from typing import Any


def slurm(command: Sequence[str], indices: Sequence[int]) -> str:
    """A script for `sbatch`.

    Args:
        command: command that finishes a run, without `--index`.
        indices: numbers of the runs.
    """
    return f"""#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --array={','.join(map(str, indices))}
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=sweep-%A-%a.log
# An element that ran out of time or was preempted resumes where it was saved.
exec {shlex.join(command)} --index="$SLURM_ARRAY_TASK_ID"
"""


def gke(
    command: Sequence[str],
    indices: Sequence[int],
    *,
    image: str,
    claim: str | None,
    account: str | None = None,
) -> str:
    """An indexed Job for `kubectl apply -f -`, as JSON, which is YAML.

    Args:
        command: command that finishes a run, without `--index`.
        indices: numbers of the runs.
        image: image of this repository with its extra `cuda`, and `gcs` for runs in a bucket.
        claim: persistent volume claim of a disk that all pods share, mounted at /runs; None where
            the runs lie in a bucket.
        account: service account of the pods, which may read and write the bucket; None for the
            default one.
    """
    numbers = ' '.join(map(str, indices))
    script = (
        f'indices=({numbers}); exec {shlex.join(command)} '
        '--index="${indices[$JOB_COMPLETION_INDEX]}"'
    )
    # A pod's own disk holds what is staged from a bucket.
    volumes: list[dict[str, Any]] = [{'name': 'cache', 'emptyDir': {}}]
    mounts = [{'name': 'cache', 'mountPath': '/cache'}]
    if claim is not None:
        volumes.append({'name': 'runs', 'persistentVolumeClaim': {'claimName': claim}})
        mounts.append({'name': 'runs', 'mountPath': '/runs'})
    container = {
        'name': 'sweep',
        'image': image,
        'command': ['bash', '-c', script],
        'env': [{'name': 'GGCF_JAX_CACHE', 'value': '/cache'}],
        'resources': {'limits': {'nvidia.com/gpu': 1}},
        'volumeMounts': mounts,
    }
    pod: dict[str, Any] = {
        # Failures are counted by element with this policy only (backoffLimitPerIndex).
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': 25,
        'containers': [container],
        'volumes': volumes,
    }
    if account is not None:
        pod['serviceAccountName'] = account
    job = {
        'apiVersion': 'batch/v1',
        'kind': 'Job',
        'metadata': {'name': 'sweep'},
        'spec': {
            'completionMode': 'Indexed',
            'completions': len(indices),
            'parallelism': len(indices),
            'backoffLimitPerIndex': 20,  # preempted machines
            'template': {'spec': pod},
        },
    }
    return json.dumps(job, indent=2)
