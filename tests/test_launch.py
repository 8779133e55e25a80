"""The scripts of launch/, with stand-ins for the programs of a cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jsonschema
import pytest
import yaml

import main as main_lib
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.metrics_log import read_rows
from tests.helpers import ROOT, one_device

ASSETS = ROOT / 'tests' / 'assets'
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))


@pytest.fixture
def run(tmp_path):
    """Function that starts a script; programs of the cluster are those that the test writes."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    started = []

    def write(name: str, text: str) -> None:
        (programs / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (programs / name).chmod(0o755)

    def start(script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        environment = os.environ | {'PATH': f'{programs}:{os.environ["PATH"]}', **variables}
        process = subprocess.Popen(
            [LAUNCH / script, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    start.write, start.folder = write, tmp_path
    yield start
    for process in started:
        if process.poll() is None:  # with all that it has started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    if shutil.which('shellcheck') is None:
        pytest.skip('shellcheck is not installed')
    found = subprocess.run(['shellcheck', script], capture_output=True, text=True)
    assert not found.stdout


def test_one_process_on_all_gpus(run):
    run.write('python', 'echo "$PWD $*"; echo "$XLA_FLAGS $XLA_PYTHON_CLIENT_MEM_FRACTION"')
    process = run('gpus.sh', '--config=c.py', XLA_FLAGS='--given')
    out = process.communicate(timeout=30)[0].splitlines()
    assert out[0] == f'{ROOT} main.py --platform=gpu --config=c.py'
    assert out[1].startswith('--given --xla') and out[1].endswith(' 0.92')


# Starts the command twice, as srun does on two machines, and hands SIGTERM on.
SRUN = """
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost "$@" &
done
trap 'kill $(jobs -p)' TERM
code=0
for job in $(jobs -p); do
  wait "$job"; one=$?
  while kill -0 "$job" 2>/dev/null; do wait "$job"; one=$?; done
  ((one > 0 && one != 143)) && code=$one # 143: the signal ended the waiting
done
exit $code
"""


def _slurm(run):
    run.write('srun', SRUN)
    run.write('scontrol', 'echo "scontrol $*"')
    return {'SLURM_JOB_ID': '77', 'SLURM_SUBMIT_DIR': str(run.folder)}


def test_slurm_starts_the_processes(run):
    variables = _slurm(run)
    run.write('python', 'echo "$SLURM_PROCID of $SLURM_NTASKS: $*"')
    process = run('slurm.sh', '--config=c.py', '--workdir=w', **variables)
    out = process.communicate(timeout=30)[0]
    assert sorted(out.splitlines()) == [
        f'{i} of 2: main.py --config=c.py --workdir=w' for i in '01'
    ]
    assert process.returncode == 0


def test_slurm_goes_back_into_the_queue_when_its_time_is_over(run):
    variables = _slurm(run)
    run.write(
        'python', "trap 'echo saved; exit 0' TERM; echo begun; while true; do sleep 0.1; done"
    )
    process = run('slurm.sh', **variables)
    assert [process.stdout.readline().strip() for _ in range(2)] == ['begun', 'begun']
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=30)[0].splitlines()
    assert out.count('saved') == 2 and out[-1] == 'scontrol requeue 77'
    assert process.returncode == 0


def test_slurm_tells_a_failure(run):
    variables = _slurm(run)
    run.write('python', 'exit $((SLURM_PROCID * 2))')
    process = run('slurm.sh', **variables)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 2 and 'requeue' not in out


# A cloud that preempts the slice in the middle of the first run.
GCLOUD = """
echo "$*" >>calls
case "$*" in
  *'queued-resources create'*) echo ACTIVE >state ;;
  *'queued-resources delete'*) rm state ;;
  *'queued-resources describe'*) cat state ;;
  *main.py*) [[ -e ran ]] || { touch ran; echo SUSPENDED >state; exit 1; } ;;
esac
"""


def test_a_slice_is_asked_for_again_after_a_preemption(run):
    run.write('gcloud', GCLOUD)
    process = run(
        'tpu.sh',
        'slice',
        '--workdir=gs://bucket/a run',
        PROJECT='p',
        ZONE='z',
        TYPE='v5litepod-16',
        RUNTIME='r',
        SOURCE='https://example.com/ggcf_jax',
        PAUSE='0',
    )
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0, out
    calls = (run.folder / 'calls').read_text().splitlines()
    asked = [call.split()[3] for call in calls if 'queued-resources' in call]
    assert [call for call in asked if call != 'describe'] == [
        'create',
        'delete',
        'create',
        'delete',
    ]
    ran = [call for call in calls if 'main.py' in call]
    assert len(ran) == 2
    assert ran[0].endswith(r'main.py --platform=tpu --workdir=gs://bucket/a\ run')


def test_a_run_that_fails_on_a_slice_is_not_repeated(run):
    run.write('gcloud', GCLOUD.replace('echo SUSPENDED >state; ', ''))
    variables = dict.fromkeys(('PROJECT', 'ZONE', 'TYPE', 'RUNTIME', 'SOURCE'), 'x')
    process = run('tpu.sh', 'slice', PAUSE='0', **variables)
    assert 'the run failed' in process.communicate(timeout=60)[0]
    assert process.returncode == 1


def test_the_jobset_is_one():
    """Against a part of the published schema, which takes no other field."""
    schema = jsonschema.Draft7Validator(json.loads((ASSETS / 'jobset_schema.json').read_text()))
    jobset = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
    assert not list(schema.iter_errors(jobset))
    [hosts] = jobset['spec']['replicatedJobs']
    hosts['template']['spec']['backoffLimt'] = 0
    hosts['template']['spec']['completions'] = '2'
    assert len(list(schema.iter_errors(jobset))) == 2


@pytest.mark.soak
@pytest.mark.slow
def test_slurm_trains_on_two_processes(run, tiny_run):
    """The true program, under SLURM's variables: stopped by the end of its time, and resumed."""
    config, _, _ = tiny_run
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {
            'train.steps': 40,
            'train.eval_every': 40,
            'train.checkpoint_every': 40,
            'train.log_every': 1,
            'train.batch_size': 2,
            'eval.batch_size': 2,
        }
    )
    workdir_config.save(config, run.folder)
    variables = _slurm(run) | {
        'PYTHON': sys.executable,
        'PYTHONPATH': str(ROOT),
        'SLURM_SUBMIT_DIR': str(ROOT),
        'XLA_FLAGS': one_device()['XLA_FLAGS'],
        'JAX_NUM_CPU_DEVICES': '1',
    }
    command = [
        'slurm.sh',
        f'--config={ROOT / "configs" / "from_workdir.py"}:{run.folder}',
        f'--workdir={run.folder / "run"}',
    ]
    process = run(*command, **variables)
    printed = []
    for line in process.stdout:
        printed.append(line.rstrip())
        if re.match(r'step +\d+/40', line):
            break
    process.send_signal(signal.SIGTERM)
    printed += process.communicate(timeout=600)[0].splitlines()
    assert process.returncode == 0, printed
    assert any('2 x cpu (cpu), 2 processes' in line for line in printed)
    assert printed[-1] == 'scontrol requeue 77'
    [stopped] = [line for line in printed if line.startswith('stopped by SIGTERM after step')]
    step = int(stopped.split()[5].rstrip(','))
    assert list(checkpoints.steps(run.folder / 'run')) == [step]

    process = run(*command, **variables)
    out = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and 'requeue' not in out, out
    assert f'resuming at step {step} of 40' in out
    miou = checkpoints.steps(run.folder / 'run')
    assert list(miou) == [step, 40] and miou[40] is not None
    steps = [row['step'] for row in read_rows(run.folder / 'run') if 'train/loss' in row]
    assert steps == [*range(1, 41)]


def test_the_jobset_starts_what_main_takes():
    jobset = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
    name = jobset['metadata']['name']
    [hosts] = jobset['spec']['replicatedJobs']
    job = hosts['template']['spec']
    assert job['completions'] == job['parallelism'] and job['completionMode'] == 'Indexed'
    [container] = job['template']['spec']['containers']
    command = container['command']
    assert command[:2] == ['python', 'main.py']
    given = dict(each.removeprefix('--').split('=', 1) for each in command[2:])
    assert given['coordinator'] == f'{name}-{hosts["name"]}-0-0.{name}:12345'
    assert given['num_processes'] == str(job['completions'])
    known = set(main_lib.flags.FLAGS)
    assert {each for each in given if not each.startswith('config.')} <= known
