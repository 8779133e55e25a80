"""Whole runs through `train_and_evaluate` and `main.py`, on a tiny CamVid."""

import functools
import json
import math
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import ggcf_jax
from ggcf_jax import config as config_lib
from ggcf_jax import data, evaluate, models, train
from ggcf_jax.data import pipeline
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import cpu_devices
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference, metrics
from ggcf_jax.models import stacking
from ggcf_jax.models.layers import repeat
from ggcf_jax.training import overview, train_step
from ggcf_jax.training import state as state_lib
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.metrics_log import read_rows
from tests.helpers import ROOT, load_config, one_device


def _rows(workdir):
    """The rows of metrics.jsonl without times and rates."""
    return [
        {k: v for k, v in row.items() if not k.endswith(('_sec', 'per_sec'))}
        for row in read_rows(workdir)
    ]


def _final(workdir, config):
    """Parameters and statistics of the latest checkpoint."""
    _, params, stats = models.abstract(config, 11)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    restored = checkpoints.restore(workdir, params, stats, sharding, 'latest')
    return restored.step, jax.device_get((restored.params, restored.stats))


def _assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_run_leaves_what_it_promises(tiny_run):
    config, workdir, evaluation = tiny_run
    rows = _rows(workdir)
    assert [row['step'] for row in rows] == [2, 4, 6, 6, 8, 10, 12, 12]
    row = rows[-1]
    assert row['val/miou'] == evaluation.miou == metrics.mean_iou(evaluation.matrix)
    assert {f'val/iou/{name}' for name in evaluation.classes} < set(row)
    # Every labelled pixel of the three images was counted.
    assert evaluation.matrix.sum() == 3 * 38 * 56
    assert (workdir / 'report.html').stat().st_size > 10_000
    assert len(list((workdir / 'panels' / '00000012').glob('*.png'))) == 2
    assert list(workdir.glob('events.out.tfevents.*'))
    first, second = (r for r in read_rows(workdir)[:2])
    assert first['train/step_sec'] > 0 and second['train/data_wait_sec'] >= 0
    saved = json.loads((workdir / 'evaluations' / 'validation_00000012.json').read_text())
    assert saved['matrix'] == evaluation.matrix.tolist()
    assert json.loads((workdir / 'run.json').read_text())['versions']['jax'] == jax.__version__
    assert load_config('from_workdir', str(workdir)).to_dict() == config.to_dict()


@pytest.mark.slow
def test_same_seed_gives_the_same_run(tiny_run, tmp_path):
    config, workdir, evaluation = tiny_run
    config = config.copy_and_resolve_references()
    # Neither changes anything.
    config.train.profile, config.train.gradient_norms = '3:4', True
    again = train.train_and_evaluate(config, tmp_path / 'again')
    assert list((tmp_path / 'again' / 'profile').rglob('*.xplane.pb'))
    rows = _rows(tmp_path / 'again')
    assert all(row.pop('train/grad_norm/classifier') > 0 for row in rows if 'train/loss' in row)
    found = [{k: v for k, v in row.items() if '/grad_norm/' not in k} for row in rows]
    assert found == _rows(workdir)
    np.testing.assert_array_equal(again.matrix, evaluation.matrix)
    _assert_same_bits(_final(tmp_path / 'again', config), _final(workdir, config))


@pytest.mark.slow
def test_a_start_tells(tiny_run, tmp_path, capsys):
    config, _, _ = tiny_run
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {'train.steps': 1, 'train.log_every': 1, 'train.warmup_steps': 0}
    )
    train.train_and_evaluate(config, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    labels = [line.split()[0] for line in lines[:9]]
    assert labels == [
        'devices', 'memory', 'mesh', 'network', 'parameters', 'weights', 'data', 'precision',
        'steps',
    ]  # fmt: skip
    assert 'from scratch' in lines[5]
    assert lines[9] == 'compiling the training step'
    assert lines[10].startswith('compiled the training step in ')
    assert ' GiB on each device' in lines[11] and lines[12].startswith('first step done ')
    # The one step was the price of the start: no rate is made of it.
    assert lines[13].startswith('step 1/1') and 'images/s' not in lines[13]
    assert read_rows(tmp_path)[0]['train/images_per_sec'] is None


def test_a_start_takes_the_devices_that_are_faster(tiny_run, tmp_path, monkeypatch):
    """Parameters without stacks and pixels decide, those of one forward and backward pass."""
    config, _, _ = tiny_run
    config = config.copy_and_resolve_references()
    config.train.batch_size, config.train.accumulate, config.data.crop_size = 16, 2, (64, 48)
    config.model.backbone.name = 'resnet50'
    asked = []

    def of_training(params, pixels):
        asked.append((sum(x.size for x in jax.tree.leaves(params)), len(jax.tree.leaves(params))))
        asked.append(pixels)
        return jax.devices()[:1]

    monkeypatch.setattr(cpu_devices, 'of_training', of_training)
    mesh = train._checked(config, tmp_path, accept_changes=False).mesh
    _, params, _ = models.abstract(config, 1)
    alone = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    stacks = models.unstacked_for(mesh_lib.make_mesh(jax.devices()), *models.abstract(config, 1))
    apart = jax.eval_shape(functools.partial(stacking.unstack, stacks=stacks), params)
    assert len(jax.tree.leaves(apart)) > len(jax.tree.leaves(params))  # ResNet-50 has stacks
    assert asked == [(alone, len(jax.tree.leaves(apart))), 8 * 64 * 48]
    assert list(mesh.devices.flat) == jax.devices()[:1]
    assert overview.describe_devices(mesh).startswith('1 of 8 x cpu (cpu): faster')


@pytest.mark.slow
def test_finished_run_only_evaluates(tiny_run, capsys):
    config, workdir, _ = tiny_run
    before = (workdir / 'metrics.jsonl').read_bytes()
    evaluation = train.train_and_evaluate(config, workdir)
    assert 'finished at step 12; only evaluating' in capsys.readouterr().out
    best = max(
        (json.loads(p.read_text()) for p in (workdir / 'evaluations').glob('*.json')),
        key=lambda e: (e['miou'], e['step']),
    )
    assert evaluation.miou == best['miou']
    assert (workdir / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
def test_named_checkpoint_and_split_are_evaluated(tiny_run):
    config, workdir, evaluation = tiny_run
    latest = evaluate.evaluate_workdir(config, workdir, 'validation', 12)
    np.testing.assert_array_equal(latest.matrix, evaluation.matrix)
    on_train = evaluate.evaluate_workdir(config, workdir, 'train', 'latest')
    assert on_train.matrix.sum() == 6 * 38 * 56
    with pytest.raises(InputError, match="no split 'test'"):
        evaluate.evaluate_workdir(config, workdir, 'test', 'best')


def _confusion(tiny_run, devices, space, multiple):
    """Matrix of the latest checkpoint on a mesh, images padded to `multiple`."""
    config, workdir, _ = tiny_run
    dataset = data.build(config.data)
    graphdef, params, stats = models.abstract(config, 11)
    mesh = mesh_lib.make_mesh(jax.devices()[:devices], space)
    restored = checkpoints.restore(workdir, params, stats, mesh_lib.replicated(mesh), 'latest')
    batches = pipeline.evaluation_batches(
        dataset, 'validation', multiple=multiple, max_sizes=1, batch_size=devices // space
    )
    evaluate_validation = evaluator.Evaluator(
        evaluator.make_eval_step(graphdef, 11, mesh, inference.SINGLE),
        batches,
        mesh,
        loader=pipeline.LoaderOptions(1),
    )
    with jax.set_mesh(mesh), Progress() as progress:
        return evaluate_validation(restored.params, restored.stats, progress).matrix


@pytest.mark.slow
def test_evaluation_on_any_mesh_counts_the_same(tiny_run):
    """One device as eight, and 2 x 2, data x space, as one: padded alike, since heads see it."""
    pairs = [
        (_confusion(tiny_run, 1, 1, 8), tiny_run[2].matrix),
        (_confusion(tiny_run, 4, 2, 16), _confusion(tiny_run, 1, 1, 16)),
    ]
    for found, expected in pairs:
        assert np.abs(found - expected).sum() <= 4  # ties of float rounding
        assert found.sum() == expected.sum() > 0


@pytest.mark.slow
def test_workdir_of_another_run_is_left_alone(tiny_run):
    config, workdir, _ = tiny_run
    other = config.copy_and_resolve_references()
    other.train.learning_rate = 0.01
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
    with pytest.raises(InputError, match=r'another configuration:\n  train.learning_rate: 0.05'):
        train.train_and_evaluate(other, workdir)
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


@pytest.mark.slow
def test_divergence_stops_with_a_clear_error(tiny_run, tmp_path):
    config, _, _ = tiny_run
    config = config.copy_and_resolve_references()
    config.train.learning_rate = 1e30
    config.train.max_skipped = 2
    with pytest.raises(train.NotFinite, match=r'not finite in the last \d+ steps.*learning_rate'):
        train.train_and_evaluate(config, tmp_path / 'diverged')


@pytest.mark.slow
def test_evaluations_that_failed_or_were_interrupted_are_made_up_for(
    tiny_run, tmp_path, monkeypatch, capsys
):
    """What is evaluated is saved before: no step is lost, and the log is that of a whole run."""
    config, whole, _ = tiny_run
    config = config.copy_and_resolve_references()
    workdir = tmp_path / 'run'

    def out_of_memory(*unused):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')

    def interrupted(*unused):
        signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as patched:
        patched.setattr(evaluator.Evaluator, '__call__', out_of_memory)
        with pytest.raises(InputError, match=r'evaluation does not fit .*eval.batch_size'):
            train.train_and_evaluate(config, workdir)
        assert checkpoints.steps(workdir) == {3: None, 6: None}
        patched.setattr(evaluator.Evaluator, '__call__', interrupted)
        assert train.train_and_evaluate(config, workdir) is None
        text = capsys.readouterr().out
        assert 'resuming at step 6 of 12' in text
        assert 'stopped by SIGUSR1 during the evaluation of step 6, which is saved' in text
    config.eval.max_sizes = 2  # a cure that changes nothing here
    with monkeypatch.context() as patched:
        # Killed after the row of the last evaluation, before its step has a score.
        patched.setattr(checkpoints.Checkpointer, 'score', lambda self, step, miou: None)
        train.train_and_evaluate(config, workdir)
    assert checkpoints.steps(workdir)[12] is None
    evaluation = train.train_and_evaluate(config, workdir)
    assert 'resuming at step 12 of 12' in capsys.readouterr().out
    assert evaluation.miou == checkpoints.steps(workdir)[12]
    _assert_same_bits(_final(workdir, config), _final(whole, config))
    rows = [row for row in _rows(workdir) if 'run/segment' not in row]
    assert rows == _rows(whole)
    assert [each.changes for each in workdir_config.segments(workdir)] == [
        {'eval.max_sizes': (1, 2)}
    ]


@pytest.mark.slow
def test_equal_blocks_are_saved_in_stacks_and_go_on_from_them(tiny_run, tmp_path, monkeypatch):
    """CPUs train them in arrays of their own (`models.stacking`): a run ends in the same bits."""
    config = tiny_run[0].copy_and_resolve_references()
    config.model.backbone.name, config.model.context = 'resnet18', 'none'
    config.train.update(steps=4, eval_every=2, ema_decay=0.5)
    evaluation = train.train_and_evaluate(config, tmp_path / 'whole')
    params = checkpoints.restore(
        tmp_path / 'whole',
        *models.abstract(config, 11)[1:],
        mesh_lib.replicated(mesh_lib.make_mesh()),
        'latest',
    ).params
    kernel = params['backbone']['stages'][0][1]['blocks']['layers'][0]['conv']['kernel']
    assert kernel.shape == (1, 3, 3, 4, 4)

    with monkeypatch.context() as patched:
        patched.setattr(
            evaluator.Evaluator, '__call__', lambda *_: signal.raise_signal(signal.SIGUSR1)
        )
        assert train.train_and_evaluate(config, tmp_path / 'resumed') is None
    assert list(checkpoints.steps(tmp_path / 'resumed')) == [2]
    resumed = train.train_and_evaluate(config, tmp_path / 'resumed')
    assert (resumed.matrix == evaluation.matrix).all()
    _assert_same_bits(*(_final(tmp_path / name, config) for name in ('resumed', 'whole')))
    again = evaluate.evaluate_workdir(config, tmp_path / 'whole', 'validation', 'latest')
    assert (again.matrix == evaluation.matrix).all()


@pytest.mark.slow
def test_accepted_changes_begin_a_segment(tiny_run, tmp_path):
    config, whole, _ = tiny_run
    workdir = shutil.copytree(whole, tmp_path / 'run')
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {
            'train.steps': 20,
            'train.learning_rate': 0.01,
            'train.clip_norm': 1.0,
            'train.ema_decay': 0.9,
            'train.log_every': 5,
            'train.gradient_norms': True,
            'train.ema_statistics': 'averaged',
            'train.start_from': str(whole),  # a resumed run goes on from its own checkpoint
            'train.frozen': 'backbone.stem,backbone.stages.0',
        }
    )
    train.train_and_evaluate(config, workdir, accept_changes=True)
    _, before = _final(whole, config)
    _, after = _final(workdir, config)
    for part, is_frozen in (('stem', True), ('stages', False)):
        trees = ([tree['backbone'][part] for tree in trees] for trees in (before, after))
        assert all(map(np.array_equal, *map(jax.tree.leaves, trees))) == is_frozen
    rows = _rows(workdir)
    assert rows[:-5] == _rows(whole)
    segment, first, _, second, last = rows[-5:]
    assert segment == {'step': 12, 'run/segment': 1}
    assert [row['step'] for row in (first, second, last)] == [15, 20, 20]
    # Means over the steps since the change: of a loss, not of less or more of it.
    assert all(1 < row['train/loss'] < 4 for row in (first, second))
    assert all(0 < row['train/grad_norm/backbone.stages.3.0'] < 9 for row in (first, second))
    assert first['train/learning_rate'] == pytest.approx(0.01 * (6 / 20) ** 0.9, rel=1e-3)
    (segment,) = workdir_config.segments(workdir)
    assert segment.step == 12 and segment.changes['train.clip_norm'] == (0.0, 1.0)
    report = (workdir / 'report.html').read_text()
    assert 'Segments' in report and 'train.clip_norm' in report


@pytest.mark.slow
def test_a_run_without_progress_stops_and_evaluates_its_loss_in_windows(tiny_run, tmp_path, capsys):
    """After one evaluation that is no better than what stands in the log; it stays finished."""
    config, whole, _ = tiny_run
    workdir = shutil.copytree(whole, tmp_path / 'run')
    log = workdir / 'metrics.jsonl'
    log.write_text(re.sub(r'"val/miou": [\d.]+', '"val/miou": 1.0', log.read_text()))
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {
            'train.steps': 20,
            'train.schedule_steps': 12,
            'train.eval_every': 2,
            'train.patience': 2,  # with that of step 12, which is as good as that of step 6
            'train.validation_loss': True,
            'eval.window': (24, 32),
        }
    )
    evaluation = train.train_and_evaluate(config, workdir)
    assert 'stopped early: no better mIoU in 2 evaluations' in capsys.readouterr().out
    row = _rows(workdir)[-1]
    assert row['step'] == 14 and row['val/miou'] == evaluation.miou
    saved = json.loads((workdir / 'evaluations' / 'validation_00000014.json').read_text())
    assert saved['inference'] == 'windows 24x32 every 16x22'
    assert workdir_config.segments(workdir)[0].changes['eval.window'] == ([], [24, 32])
    # The mean over the labelled pixels of all images, with the weights of the classes.
    model = ggcf_jax.load(workdir, 14)
    dataset = data.build(config.data)
    weights = np.array(data.class_weights_of(config, dataset))
    total = weight = 0.0
    for record in map(dataset.source('validation').__getitem__, range(3)):
        label = dataset.decoder.label(record['label'], record['name'])
        image = dataset.decoder.image(record['image'], record['name'])
        found = model.probabilities(image)[label != 255]
        truth = label[label != 255]
        own = weights[truth]
        total -= (own * np.log(found[np.arange(len(truth)), truth])).sum()
        weight += own.sum()
    assert row['val/loss'] == pytest.approx(total / weight, rel=1e-4)
    assert 'validation loss' in (workdir / 'report.html').read_text()

    train.train_and_evaluate(config, workdir)
    assert 'finished at step 14; only evaluating' in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_in_one_line(tmp_path):
    """Here while the data set is built."""
    code = (
        'import runpy, signal, sys\n'
        'from ggcf_jax import data\n'
        'data.build = lambda unused: signal.raise_signal(signal.SIGUSR1)\n'
        f'runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")\n'
    )
    command = [
        sys.executable,
        '-c',
        code,
        f'--config={ROOT / "configs" / "camvid.py"}',
        f'--workdir={tmp_path / "run"}',
    ]
    done = _run(command)
    assert (done.stdout, done.returncode) == ('', 128 + signal.SIGUSR1)
    assert done.stderr == 'stopped by SIGUSR1 before the first step: nothing is lost\n'
    assert not (tmp_path / 'run').exists()


def _command(config, workdir, steps):
    """main.py as a user calls it, on one device."""
    overrides = {
        'data.manual_dir': config.data.manual_dir,
        'data.data_dir': config.data.data_dir,
        'train.steps': steps,
        'train.eval_every': 20,
        'train.checkpoint_every': 5,
        'train.log_every': 5,
    }
    for name in ('data.crop_size', 'data.threads', 'model.backbone.name', 'model.backbone.width',
                 'model.heads', 'model.ggcf.channels', 'model.ggcf.key_channels',
                 'model.ggcf.value_channels', 'model.aux_channels', 'model.dropout',
                 'train.batch_size', 'train.learning_rate', 'eval.batch_size',
                 'eval.panels'):  # fmt: skip
        node = config
        for part in name.split('.'):
            node = node[part]
        overrides[name] = node
    return [
        sys.executable,
        str(ROOT / 'main.py'),
        f'--config={ROOT / "configs" / "camvid.py"}',
        f'--workdir={workdir}',
        *(f'--config.{name}={value}' for name, value in overrides.items()),
    ]


def _environment():
    return dict(one_device(), PYTHONUNBUFFERED='1')


def _run(command):
    return subprocess.run(command, env=_environment(), capture_output=True, text=True)


def _run_and_signal(command, line, number):
    """Runs until it prints a line that starts with `line`, sends the signal, reads to the end."""
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        output = []
        for text in process.stdout:
            output.append(text)
            if text.startswith(line):
                process.send_signal(number)
                break
        output += process.stdout
    return process.returncode, ''.join(output)


@pytest.mark.slow
def test_killed_and_stopped_run_ends_in_the_bits_of_an_undisturbed_one(tiny_run, tmp_path):
    config, _, _ = tiny_run
    steps = 60
    whole = _run(_command(config, tmp_path / 'whole', steps))
    assert whole.returncode == 0, whole.stderr

    disturbed = _command(config, tmp_path / 'disturbed', steps)
    code, output = _run_and_signal(disturbed, 'step 15/60', signal.SIGTERM)
    assert code == 0, output
    assert 'stopped by SIGTERM after step' in output
    stopped = max(_steps(tmp_path / 'disturbed'))
    assert 15 <= stopped < 45

    code, output = _run_and_signal(disturbed, 'step 45/60', signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert f'resuming at step {stopped}' in output
    assert max(_steps(tmp_path / 'disturbed')) < steps

    resumed = _run(disturbed)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resuming at step' in resumed.stdout

    config = config.copy_and_resolve_references()
    expected = _final(tmp_path / 'whole', config)
    assert expected[0] == steps
    _assert_same_bits(_final(tmp_path / 'disturbed', config), expected)
    assert _rows(tmp_path / 'disturbed') == _rows(tmp_path / 'whole')


def _steps(workdir):
    return [int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()] or [0]


CONFIGS = (
    'street_scenes', 'camvid', 'cityscapes', 'cityscapes_sota', 'ade20k', 'ade20k:convnext_t',
    'ade20k:swin_t', 'folder',
)  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'variant', 'backbone', 'others', 'fields'),
    [
        ('cityscapes', 'r101', 42_623_936, 7_718_054, {'model.norm': 'batch_norm'}),
        ('cityscapes', 'r50', 23_631_808, 7_718_054, {'model.norm': 'batch_norm'}),
        ('cityscapes', 'wr38', 105_070_912, 14_795_942, {'model.norm': 'abs_gamma'}),
        ('cityscapes', 'openseg', 42_623_936, 10_082_726, {'model.input': 'caffe'}),
        ('cityscapes', 'mmseg', 42_519_392, 7_718_054, {'data.photometric': 1.0}),
        ('ade20k', 'convnext_t', 27_821_472, 3_294_374, {'train.optimizer': 'adamw'}),
        ('ade20k', 'swin_t', 27_520_698, 3_294_374, {'train.decay': 'kernels'}),
        ('ade20k', 'mit_b0', 3_319_392, 1_598_630, {'train.head_multiplier': 10.0}),
        ('street_scenes', 'demo', 693_432, 272_582, {}),
        ('street_scenes', 'small', 309_456, 122_342, {}),
    ],
)
def test_variant_is_a_network(name, variant, backbone, others, fields):
    """Of so many parameters, and its batch can be sharded over as many devices as it has images."""
    config = load_config(name, variant)
    config_lib.check(config, config.train.batch_size)
    _, params, _ = models.abstract(config, 19)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(params['backbone']) == backbone
    assert count(params) - backbone == others
    for field, value in fields.items():
        section, key = field.split('.')
        assert config[section][key] == value


def test_unknown_variant():
    with pytest.raises(InputError, match=r'cityscapes.py:r51 is not one of r101, r50'):
        load_config('cityscapes', 'r51')


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds_and_steps(name, monkeypatch):
    """The architecture of every config, made narrow, on a small crop."""
    # As accelerators get it: the unrolled loops of CPUs take three times as long to compile.
    monkeypatch.setattr(repeat, 'scan', jax.lax.scan)
    config = load_config(*name.split(':'))
    config.train.warmup_steps = 0  # its first step changes nothing
    if name != 'street_scenes':  # one config keeps its six heads: they take long to compile
        config.model.heads = 'local:2,grid:2'
    config.model.backbone.width = 4
    config.model.ggcf.update(channels=8, key_channels=4, value_channels=4)
    config.model.aux_channels = 4
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    network = models.abstract(config, 7)
    state = state_lib.creator(config, 7, mesh)()
    before = jax.device_get(state.params)  # the step takes the state's memory
    step = train_step.build(config.train, (), network, mesh)
    rng = np.random.default_rng(0)
    batch = {
        'image': rng.integers(0, 255, (2, 33, 41, 3)).astype(np.uint8),
        'label': rng.integers(0, 7, (2, 33, 41)).astype(np.uint8),
    }
    after = step(state, batch)
    assert int(after.consecutive_skips) == 0 and np.isfinite(float(after.metric_sums['loss']))
    # By NumPy: for JAX every shape is a program.
    changed = jax.tree.map(lambda a, b: (a != b).any(), before, jax.device_get(after.params))
    assert np.mean(jax.tree.leaves(changed)) > 0.5
