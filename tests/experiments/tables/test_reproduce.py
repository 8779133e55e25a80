import json
import pathlib
import sys

import pytest

from experiments.common import cli, paper
from experiments.tables import reproduce, speed, sweep, sweep_runs
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import provenance
from tests.helpers import ROOT

_EVALUATION = {
    'step': 50_000, 'split': 'validation', 'dataset': 'cityscapes', 'classes': ['road'],
    'colors': [[0, 0, 0]], 'matrix': [[1]], 'miou': 0.5, 'pixel_accuracy': 0.5,
    'iou': {'road': 0.5}, 'absent': [],
}  # fmt: skip

# In place of main.py: a run with metrics of 8 images/s and evaluations of 30 s. Steps of a long run
# are not the last ones where it is told to stop early.
_PROGRAM = """
import json, pathlib, sys
flags = dict(each.split("=", 1) for each in sys.argv[1:])
workdir = pathlib.Path(flags["--workdir"])
with open({log!r}, "a") as log: log.write(json.dumps(flags) + "\\n")
if "--mode" in flags: sys.exit(5)
steps = int(flags.get("--config.train.steps", 50000))
(workdir / "evaluations").mkdir(parents=True)
(workdir / "checkpoints").mkdir()
rows = [{{"step": 10, "train/images_per_sec": 1.0}}, {{"step": 20, "train/images_per_sec": 8.0}},
        {{"step": 30, "train/images_per_sec": None}}, {{"step": steps, "val/evaluation_sec": 30.0}}]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(workdir / "run.json").write_text(json.dumps({{"devices": "8 x Example"}}))
evaluation = json.loads({evaluation!r}) | {{"step": steps}}
name = f"validation_{{steps:08d}}.json"
(workdir / "evaluations" / name).write_text(json.dumps(evaluation))
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Function that returns the flags of all runs that were started."""
    monkeypatch.chdir(ROOT)
    log = tmp_path / 'log'
    log.touch()
    program = tmp_path / 'main.py'
    program.write_text(_PROGRAM.format(log=str(log), evaluation=json.dumps(_EVALUATION)))
    monkeypatch.setattr(sweep, '_MAIN', program)
    here = {'versions': {}, 'devices': '8 x Example', 'platform': 'here', 'git': 'abc'}
    monkeypatch.setattr(speed, '_computes_with', lambda: here)
    weights = tmp_path / 'weights.pth'
    weights.touch()

    def flags():
        return [json.loads(line) for line in log.read_text().splitlines()]

    flags.here = here
    return flags


def _main(action, tmp_path, *arguments):
    command = [action, f'--out={tmp_path / "out"}', *arguments]
    return reproduce.main(cli.parse(reproduce.make_parser(), command))


def _table2(tmp_path):
    weights = tmp_path / 'weights.pth'
    return ('--table=2', '--seeds=2', f'--ade20k={tmp_path}', f'--resnet50={weights}')


def test_hours_follow_from_a_short_run_of_each_row(started, tmp_path):
    assert _main('plan', tmp_path, *_table2(tmp_path)) == 0
    assert len(started()) == 3
    for flags in started():
        assert flags['--config.train.steps'] == '40'
        assert flags['--config.model.backbone.weights'] == str(tmp_path / 'weights.pth')
        assert flags['--config.data.manual_dir'] == str(tmp_path)
        assert flags['--config.model.input'] == 'auto'
        assert not (pathlib.Path(flags['--workdir']) / 'checkpoints').exists()
    text = (tmp_path / 'out' / 'plan.md').read_text()
    # 900,000 steps of 8 at 8 images/s, 18 evaluations of 30 s, two seeds; the pruned row is one
    # more evaluation of each.
    assert '| Baseline | 33.3 | 900,000 | 8 | 30 | 2 of 2 | 500.3 |' in text
    assert 'Table 2, configs/ade20k.py on 8 x Example' in text
    assert f'About {6 * (900_000 + 18 * 30) / 3600 + 2 * 30 / 3600:.0f} hours' in text
    assert '| ISA, 160,000 steps of 16 | 42.59 |' in text
    # Again nothing is measured; with other devices everything.
    assert _main('plan', tmp_path, *_table2(tmp_path)) == 0
    assert len(started()) == 3
    started.here['devices'] = '4 x Other'
    assert _main('plan', tmp_path, *_table2(tmp_path)) == 0
    assert len(started()) == 6


def test_runs_of_one_recipe_of_others_are_shown_with_their_mean():
    shown = reproduce._peers(paper.PEERS_CITYSCAPES)
    assert ('CCNet, 60,000 steps', '79.74, 79.22, 78.40 (mean 79.12)') in [x[:2] for x in shown]


def test_a_dirty_source_is_measured_anew(started, tmp_path):
    started.here['git'] = 'abc-dirty'
    overrides = ('model.backbone.width=8',)
    for expected in (3, 6):
        speed.measure('configs/ade20k.py', tmp_path / 'speed', overrides)
        assert len(started()) == expected


def test_runs_that_are_begun_or_finished_take_less(started, tmp_path):
    measured = speed.Speed(8.0, 30.0, 'x')
    full = next(
        run for run in sweep_runs.runs('configs/cityscapes.py', tmp_path, 1) if run.row == 'FULL'
    )
    whole = speed.seconds(full, measured)
    assert whole == 50_000 + 10 * 30 + 30
    full.workdir.mkdir(parents=True)
    (full.workdir / 'metrics.jsonl').write_text('{"step": 12000}\n')
    assert speed.seconds(full, measured) == whole - 12_000 - 2 * 30
    full.trained.result.parent.mkdir()
    full.trained.result.write_text(json.dumps(_EVALUATION))
    assert speed.seconds(full, measured) == 30


def test_views_of_an_evaluation_cost_their_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (run,) = sweep_runs.runs('configs/cityscapes_sota.py', tmp_path, 1)
    run.trained.result.parent.mkdir(parents=True)
    run.trained.result.write_text(json.dumps(_EVALUATION))
    pixels = 2 * sum(scale**2 for scale in (0.5, 0.75, 1, 1.25, 1.5, 1.75))
    assert speed.seconds(run, speed.Speed(8.0, 30.0, 'x')) == pytest.approx(30 * pixels)


def test_run_measures_then_trains_and_table_shows_it(started, tmp_path, capsys):
    arguments = (
        *_table2(tmp_path), '--seeds=1', '--config.train.steps=9',
    )  # fmt: skip
    # The pruned row fails: this main.py evaluates nothing.
    assert _main('run', tmp_path, *arguments) == 1
    assert 'ContextPruning, seed 0: ended with code 5' in capsys.readouterr().err
    assert [flags['--config.train.steps'] for flags in started()[:3]] == ['40'] * 3
    assert {flags['--config.train.steps'] for flags in started()[3:]} == {'9'}
    assert _main('table', tmp_path, *arguments) == 0
    assert '3 of 3 runs are finished' in capsys.readouterr().out
    assert _main('table', tmp_path, '--table=4') == 0
    assert 'Table 4: none of its 3 runs is finished' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'Tables 1 and 3: --cityscapes and --resnet101 is missing'),
        (('--table=2', '--ade20k=x'), 'Table 2: --resnet50 is missing; .*--table=NUMBER'),
        (('--jobs=0',), '--jobs and --seeds must be at least 1'),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(started, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        _main('plan', tmp_path, *arguments)
    assert started() == []


def test_a_run_that_fails_is_named_with_its_log(started, tmp_path, monkeypatch):
    program = tmp_path / 'broken.py'
    program.write_text('import sys; sys.exit("no memory")')
    monkeypatch.setattr(sweep, '_MAIN', program)
    with pytest.raises(InputError, match=r'Baseline, seed 0: ended with code 1; see .*\.log'):
        _main('plan', tmp_path, *_table2(tmp_path))


def test_what_computes_is_asked_of_another_process():
    found = speed._computes_with()
    assert found == json.loads(json.dumps(provenance.current())) | {'devices': found['devices']}
    assert 'cpu' in found['devices'] and found['versions']['python'] == sys.version.split()[0]


def test_every_row_of_the_paper_is_planned(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for study in reproduce.STUDIES:
        rows = {row.name for run in sweep_runs.runs(study.config, tmp_path, 1) for row in run.rows}
        if study.tables != (4,):
            published = paper.TABLE1 if 1 in study.tables else paper.TABLE2
            assert rows == set(published)
        assert any(study.expected(row) for row in rows)


def test_jobs_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setattr(sweep.platforms, 'gpus_of_machine', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert [share.gpus for share in sweep._shares(1)] == [None]
    assert [share.gpus for share in sweep._shares(2)] == ['0,1', '2,3']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7,3')
    assert [share.gpus for share in sweep._shares(3)] == ['5', '7', '3']
    with pytest.raises(InputError, match='--jobs=4: there are 3 GPUs'):
        sweep._shares(4)
    monkeypatch.setattr(sweep.platforms, 'gpus_of_machine', lambda: 0)
    assert [share.gpus for share in sweep._shares(2)] == [None, None]
