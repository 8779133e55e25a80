import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from experiments.common import cli, paper
from experiments.tables import sweep, sweep_runs, table1
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import evaluations
from tests.helpers import ROOT, load_config

_STEPS = load_config('street_scenes').train.steps
_CONFIGS = ('street_scenes', 'camvid', 'cityscapes', 'ade20k')


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('name', _CONFIGS)
def test_rows_are_the_papers_and_pruned_ones_are_not_trained(name, tmp_path):
    found = sweep_runs.runs(f'configs/{name}.py', tmp_path, 1)
    published = paper.TABLE2 if name == 'ade20k' else paper.TABLE1
    assert {row.name for run in found for row in run.rows} == set(published)
    assert {run.row for run in found} == {
        row for row in published if not row.endswith('+ ContextPruning')
    }
    for run in found:
        assert all(row.name == f'{run.row} + ContextPruning' for row in run.evaluated)
        assert len({row.result for row in run.rows}) == len(run.rows)


def test_rows_of_another_function_share_the_runs_of_equal_rows(tmp_path):
    peers = sweep_runs.runs('configs/camvid.py', tmp_path, 1, sweep='peers')
    ours = {run.row: run for run in sweep_runs.runs('configs/camvid.py', tmp_path, 1)}
    by_row = {run.row: run for run in peers}
    assert by_row['FULL'].trained == ours['FULL'].trained
    assert dict(by_row['PSPNet'].trained.overrides) == {'model.context': 'psp', 'seed': '0'}
    with pytest.raises(InputError, match=r'configs/folder.py has no peers\(\); give it one'):
        sweep_runs.runs('configs/folder.py', tmp_path, 1, sweep='peers')


def test_runs_are_numbered_seed_by_seed_each_in_a_place_of_its_own(tmp_path):
    found = sweep_runs.runs('configs/cityscapes.py:r50', tmp_path, 2, ['train.steps=9'])
    assert [run.index for run in found] == list(range(len(found)))
    assert [run.seed for run in found] == sorted(run.seed for run in found)
    assert len({run.workdir for run in found}) == len(found)
    full = next(run for run in found if run.row == 'FULL')
    assert full.flags('configs/cityscapes.py:r50') == [
        '--config=configs/cityscapes.py:r50',
        '--config.train.steps=9',
        '--config.model.heads=full',
        '--config.seed=0',
        f'--workdir={tmp_path}/full/seed_0',
    ]
    _finish(full, 0.5)
    assert not full.finished
    assert full.flags('configs/cityscapes.py:r50') == [
        '--config=configs/cityscapes.py:r50',
        '--config.train.steps=9',
        '--config.model.heads=full',
        '--config.eval.pruning=full:drop=0.5',
        '--config.seed=0',
        f'--workdir={tmp_path}/full/seed_0',
        '--mode=evaluate',
        '--checkpoint=latest',
    ]
    _finish(full, 0.5, full.evaluated[0])
    assert full.finished


def test_a_row_is_finished_by_an_evaluation_of_the_data_of_training(tmp_path):
    """Not by one that someone made of other images before."""
    found = sweep_runs.runs('configs/camvid.py', tmp_path, 1, ['train.steps=9'])
    full = next(run for run in found if run.row == 'FULL')
    row = full.evaluated[0]
    own = {'by': 'training', 'data': 'mine', 'images': 3}
    other = evaluations.Conditions(
        'evaluate', row.plan, 'validation', 'other', 3, 32, 8, 'float32', 0.0
    ).content
    _finish(full, 0.5, conditions=own)
    _finish(full, 0.9, row, conditions=other)
    assert not row.finished
    config = row.config
    made = other | {
        'data': 'mine',
        'size_multiple': config.eval.size_multiple,
        'max_sizes': config.eval.max_sizes,
        'dtype': config.train.dtype,
    }
    _finish(full, 0.4, row, conditions=made)
    assert row.finished and row.evaluation()['miou'] == 0.4
    assert len(list((full.workdir / 'evaluations').iterdir())) == 3


def test_training_is_finished_by_its_own_evaluation_whatever_eval_asks_for(tmp_path):
    found = sweep_runs.runs('configs/camvid.py', tmp_path, 1, ['eval.flip=True', 'train.steps=9'])
    full = next(run for run in found if run.row == 'FULL')
    assert full.trained.result.name == 'validation_00000009.json'
    assert 'flip' in full.evaluated[0].result.name


def test_a_row_that_evaluates_what_no_row_trains_is_refused(tmp_path):
    path = tmp_path / 'lonely.py'
    path.write_text(
        pathlib.Path('configs/camvid.py').read_text().partition('def sweep')[0]
        + 'def sweep():\n    yield "A", {"model.heads": "full"}\n'
        '    yield "B", {"model.heads": "grid:4", "eval.flip": True}\n'
    )
    with pytest.raises(InputError, match=r"row 'B' evaluates a run with .*grid:4"):
        sweep_runs.runs(str(path), tmp_path / 'out', 1)


@pytest.mark.parametrize(
    ('path', 'common', 'message'),
    [
        ('configs/none.py', (), 'there is no such file'),
        ('configs/folder.py', (), r'has no sweep\(\)'),
        ('configs/camvid.py', ('train.stps=3',), 'Did you mean "steps"'),
        ('configs/camvid.py', ('train.steps=many',), 'many'),
        ('configs/camvid.py', ('seed',), 'field=value'),
    ],
)
def test_bad_sweeps_are_refused_before_anything_runs(path, common, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sweep_runs.runs(path, tmp_path, 1, common)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program in place of main.py: GRID rows fail, FULL waits for SIGTERM, others are done.

    Evaluations, which find a workdir, are done at once. Cores are written to the workdir.
    """
    program = tmp_path / 'main.py'
    program.write_text(
        'import os, pathlib, signal, sys, time\n'
        'flags = dict(each.split("=", 1) for each in sys.argv[1:])\n'
        'heads = flags.get("--config.model.heads", "")\n'
        'if heads.startswith("grid"): sys.exit(3)\n'
        'workdir = pathlib.Path(flags["--workdir"])\n'
        'evaluating = "--mode" in flags\n'
        'workdir.mkdir(parents=True, exist_ok=evaluating)\n'
        'if heads == "full" and not evaluating:\n'
        '    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n'
        '    (workdir / "waiting").touch()\n'
        '    time.sleep(60)\n'
        '(workdir / "compiled").write_text(os.environ["JAX_COMPILATION_CACHE_DIR"])\n'
        '(workdir / "cores").write_text(str(sorted(os.sched_getaffinity(0))))\n'
        '(workdir / "evaluations").mkdir(exist_ok=True)\n'
        'pruned = "_whole-image-pruning-local-drop-0.5-grid-drop-0.5" if evaluating else ""\n'
        f'name = f"validation_{_STEPS:08d}{{pruned}}.json"\n'
        f'(workdir / "evaluations" / name).write_text({json.dumps(_content(0.5))!r})\n'
    )
    monkeypatch.setattr(sweep, '_MAIN', program)


def test_failures_do_not_stop_the_others(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    todo = [
        run
        for run in sweep_runs.runs('configs/street_scenes.py', tmp_path / 'out', 1)
        if run.row in ('Baseline', 'GRID_10', 'ASPP')
    ]
    failed = sweep.run('configs/street_scenes.py', todo, 2, tmp_path / 'kept')
    assert len(failed) == 1 and 'GRID_10, seed 0: ended with code 3' in failed[0]
    assert [run.finished for run in todo] == [True, True, False]
    assert (todo[0].workdir / 'compiled').read_text() == str(tmp_path / 'kept')


def test_evaluations_follow_their_run(stand_in, tmp_path):
    found = sweep_runs.runs('configs/street_scenes.py', tmp_path / 'out', 1)
    run = next(run for run in found if run.row == '{LOCAL, GRID}_{8,16,24}')
    assert sweep.run('configs/street_scenes.py', [run], 1, tmp_path / 'kept') == []
    assert run.finished and len(run.rows) == 2


def test_what_another_sweep_of_the_folder_has_finished_is_not_started(stand_in, tmp_path, capsys):
    run = sweep_runs.runs('configs/street_scenes.py', tmp_path / 'out', 1)[0]
    assert sweep.run('configs/street_scenes.py', [run, run], 1, tmp_path / 'kept') == []
    assert 'Baseline, seed 0: was done' in capsys.readouterr().out


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs two cores to share out')
def test_jobs_have_cores_of_their_own(stand_in, tmp_path):
    found = sweep_runs.runs('configs/street_scenes.py', tmp_path / 'out', 2)
    todo = [run for run in found if run.row == 'Baseline']
    assert sweep.run('configs/street_scenes.py', todo, 2, tmp_path / 'kept') == []
    cores = [set(json.loads((run.workdir / 'cores').read_text())) for run in todo]
    assert cores[0] | cores[1] == os.sched_getaffinity(0) and not cores[0] & cores[1]


def test_sigterm_is_passed_on_once_and_nothing_more_is_started(stand_in, tmp_path):
    found = {
        run.row: run for run in sweep_runs.runs('configs/street_scenes.py', tmp_path / 'out', 1)
    }
    todo = [found['FULL'], found['Baseline']]
    # Sends SIGTERM to this process once the first run waits.
    helper = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import os, pathlib, signal, sys, time\n'
            'path = pathlib.Path(sys.argv[1])\n'
            'while not path.exists(): time.sleep(0.05)\n'
            f'os.kill({os.getpid()}, signal.SIGTERM)\n',
            str(todo[0].workdir / 'waiting'),
        ]
    )
    before = signal.getsignal(signal.SIGTERM)
    failed = sweep.run('configs/street_scenes.py', todo, 1, tmp_path / 'kept')
    helper.wait()
    assert signal.getsignal(signal.SIGTERM) is before
    assert 'FULL, seed 0: ended with code 0' in failed[0]
    assert failed[1] == 'Baseline, seed 0: not started'


def _content(miou: float) -> dict:
    iou = {'road': miou, 'train': None}
    return {
        'step': _STEPS, 'split': 'validation', 'dataset': 'street_scenes', 'classes': list(iou),
        'colors': [[0, 0, 0]] * 2, 'matrix': [[1, 0], [0, 0]], 'miou': miou,
        'pixel_accuracy': 0.5, 'iou': iou, 'absent': [],
    }  # fmt: skip


def _finish(
    run: sweep_runs.Run, miou: float, row: sweep_runs.Row | None = None, **more: dict
) -> None:
    row = row or run.trained
    row.result.parent.mkdir(parents=True, exist_ok=True)
    row.result.write_text(json.dumps(_content(miou) | more))
    rows = [{'step': 1, 'train/elapsed_sec': 3.0}, {'step': 1, 'val/miou': miou}]
    (run.workdir / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def test_table_of_what_is_finished(tmp_path):
    found = sweep_runs.runs('configs/street_scenes.py', tmp_path, 2)
    with pytest.raises(InputError, match='none of the 32 runs'):
        table1.write(found, tmp_path)
    for run in found:
        if run.row == 'FULL':
            _finish(run, 0.25 + 0.02 * run.seed)
            _finish(run, 0.24 + 0.03 * run.seed, run.evaluated[0])
        elif run.row == 'ASPP' and run.seed == 0:
            _finish(run, 0.3)
    text = table1.write(found, tmp_path)
    assert '3 of 32 runs are finished' in text
    assert '| FULL | `full` | 2 | 26.00 +- 1.41 | +0.00 +- 0.00 | 78.8 | +0.0 |' in text
    assert '| ASPP | `aspp` | 1 | 30.00 | +5.00 | 77.8 | -1.0 |' in text
    assert (
        '| FULL + ContextPruning | `full`, pruned `full:drop=0.5` | 2 | 25.50 +- 2.12 '
        '| -0.50 +- 0.71 | 79.1 | +0.3 |'
    ) in text
    assert '| FULL | 26.0 |  |' in text
    lines = list(csv.DictReader((tmp_path / 'table.csv').open()))
    assert [(line['row'], line['seed'], line['miou']) for line in lines] == [
        ('ASPP', '0', '0.3'), ('FULL', '0', '0.25'), ('FULL + ContextPruning', '0', '0.24'),
        ('FULL', '1', '0.27'), ('FULL + ContextPruning', '1', '0.27'),
    ]  # fmt: skip
    assert {line['train_sec'] for line in lines} == {'3'}


def test_fields_that_are_auto_have_the_values_of_the_run(tmp_path):
    common = ['model.input=auto', f'model.backbone.weights={tmp_path / "gone.pth"}']
    run = sweep_runs.runs('configs/ade20k.py', tmp_path, 1, common)[0]
    config = run.trained.config.copy_and_resolve_references()
    config.model.input = 'caffe'
    workdir_config.save(config, run.workdir)
    (run.workdir / 'checkpoints' / '00000010').mkdir(parents=True)
    again = sweep_runs.runs('configs/ade20k.py', tmp_path, 1, common)[0]
    assert again.trained.config.model.input == 'caffe'


def test_some_rows_only(tmp_path, capsys):
    def listed(*arguments):
        command = ['list', '--config=configs/camvid.py', f'--out={tmp_path}', '--seeds=2']
        code = sweep.main(cli.parse(sweep.make_parser(), [*command, *arguments]))
        return code, capsys.readouterr()

    code, output = listed('--row=FULL', '--row=GRID_{8,16,24}')
    assert code == 0
    lines = output.out.splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    assert len(lines) == 4 and all(' FULL, seed' in line for line in lines[::2])
    code, output = listed('--row=FULL', f'--index={numbers[2]}')
    assert output.out.splitlines() == [lines[2]]
    message = rf'{numbers[1]} is not one of \[{numbers[0]}, {numbers[2]}\]'
    with pytest.raises(InputError, match=message):
        listed('--row=FULL', f'--index={numbers[1]}')
    with pytest.raises(InputError, match="--row='FUL' is not one of 'Baseline', 'ASPP'"):
        listed('--row=FUL')


def test_a_sweep_in_a_bucket_needs_no_common_disk(bucket_services, monkeypatch, capsys, tmp_path):
    bucket_services('gs')
    command = ['gke', '--config=configs/camvid.py', '--seeds=1', '--row=FULL', '--image=image']
    here = ['--out=gs://bucket/sweep', '--account=of-the-bucket']
    monkeypatch.setattr(sys, 'argv', ['sweep', *command, *here])
    options = cli.parse(sweep.make_parser(), [*command, *here])
    assert sweep.main(options) == 0
    job = json.loads(capsys.readouterr().out)
    [container] = job['spec']['template']['spec']['containers']
    assert '--out=gs://bucket/sweep' in container['command'][-1]
    assert 'account' not in container['command'][-1] and 'image' not in container['command'][-1]
    run = types.SimpleNamespace(workdir=options.out / 'full' / 'seed_0')
    assert sweep._log(run) is None
    options.out = tmp_path
    with pytest.raises(InputError, match=r'--claim=PERSISTENT_VOLUME_CLAIM is missing; or give a'):
        sweep._array(options, [0])
