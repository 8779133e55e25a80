"""Sweeps as array jobs."""

import json
import subprocess

import jsonschema
import pytest

from experiments.tables import sweep_arrays
from tests.helpers import ROOT

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


@pytest.mark.parametrize('place', [{'claim': 'disk'}, {'claim': None, 'account': 'of-the-bucket'}])
def test_a_job_of_gke_is_one(place):
    job = json.loads(sweep_arrays.gke(COMMAND, [0, 2], image='image', **place))
    schema = json.loads((ROOT / 'tests' / 'assets' / 'jobset_schema.json').read_text())
    for name in ('spec', 'replicatedJobs'):  # whose template is such a job
        schema = schema['properties'][name]
    schema = schema['items']['properties']['template']['properties']['spec']
    assert not list(jsonschema.Draft7Validator(schema).iter_errors(job['spec']))
    pod = job['spec']['template']['spec']
    # What backoffLimitPerIndex asks for, which the schema does not say.
    assert job['spec']['completionMode'] == 'Indexed' and pod['restartPolicy'] == 'Never'
    volumes = {volume['name'] for volume in pod['volumes']}
    assert volumes == {mount['name'] for mount in pod['containers'][0]['volumeMounts']}
    assert ('runs' in volumes) == ('account' not in place)
    assert pod.get('serviceAccountName') == place.get('account')
