"""A sweep as an array job: one element for each run that is not finished, for SLURM and for GKE."""

import json
import shlex
from collections.abc import Sequence


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


def gke(command: Sequence[str], indices: Sequence[int], *, image: str, claim: str) -> str:
    """An indexed Job for `kubectl apply -f -`, as JSON, which is YAML.

    Args:
        command: command that finishes a run, without `--index`.
        indices: numbers of the runs.
        image: image of this repository with its extra `cuda`.
        claim: persistent volume claim of a disk that all pods share, mounted at /runs.
    """
    numbers = ' '.join(map(str, indices))
    script = (
        f'indices=({numbers}); exec {shlex.join(command)} '
        '--index="${indices[$JOB_COMPLETION_INDEX]}"'
    )
    container = {
        'name': 'sweep',
        'image': image,
        'command': ['bash', '-c', script],
        'resources': {'limits': {'nvidia.com/gpu': 1}},
        'volumeMounts': [{'name': 'runs', 'mountPath': '/runs'}],
    }
    pod = {
        'restartPolicy': 'OnFailure',
        'terminationGracePeriodSeconds': 25,
        'containers': [container],
        'volumes': [{'name': 'runs', 'persistentVolumeClaim': {'claimName': claim}}],
    }
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
