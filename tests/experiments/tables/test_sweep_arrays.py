"""Sweeps as array jobs."""

import json
import subprocess

from experiments.tables import sweep_arrays

COMMAND = ['bash', '-c', 'echo "$@"', 'sweep', 'run', '--out=a folder']


def test_an_element_of_slurm_runs_its_index(tmp_path):
    text = sweep_arrays.slurm(COMMAND, [0, 2, 5])
    assert '#SBATCH --array=0,2,5\n' in text
    (tmp_path / 'job').write_text(text)
    environment = {'SLURM_ARRAY_TASK_ID': '5', 'PATH': '/bin:/usr/bin'}
    out = subprocess.check_output(['bash', tmp_path / 'job'], env=environment, text=True)
    assert out == 'run --out=a folder --index=5\n'


def test_a_pod_of_gke_runs_its_index():
    job = json.loads(sweep_arrays.gke(COMMAND, [0, 2, 5], image='image', claim='disk'))
    assert job['spec']['completions'] == job['spec']['parallelism'] == 3
    [container] = job['spec']['template']['spec']['containers']
    environment = {'JOB_COMPLETION_INDEX': '1', 'PATH': '/bin:/usr/bin'}
    out = subprocess.check_output(container['command'], env=environment, text=True)
    assert out == 'run --out=a folder --index=2\n'
