"""Training that starts from weights."""

import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from ggcf_jax import config as config_lib
from ggcf_jax import data, models, train
from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.models.layers.norm import ACTIVATIONS
from ggcf_jax.models.pretrained import layouts, slots
from ggcf_jax.models.segmenter import INPUTS
from ggcf_jax.training import auto_fields, optim, warm_start
from ggcf_jax.training import state as state_lib
from ggcf_jax.workdir import checkpoints, classes
from ggcf_jax.workdir import config as workdir_config
from tests.helpers import make_tiny_config


def _state(config, seed, num_classes=5):
    """A state with every array different from what a fresh one has."""
    network = models.abstract(config, num_classes)
    _, params, stats = network
    rng = np.random.default_rng(seed)
    params, stats = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype), (params, stats)
    )
    tx = optim.optimizer(config.train, models.stacks(*network))
    return state_lib.TrainState(
        step=jax.numpy.int32(3),
        seed=jax.numpy.uint32(0),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        ema_params=params if config.train.ema_decay else None,
        metric_sums={name: jax.numpy.float32(0) for name in state_lib.METRICS},
        consecutive_skips=jax.numpy.int32(0),
    )


def _leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _write_weights(config, path, layout='torchvision ResNet'):
    """A file that fits the config's backbone, of a layout; returns its tensors."""
    _, params, stats = models.abstract(config, 1)
    shapes = pretrained.shapes_of(params['backbone']) | pretrained.shapes_of(stats['backbone'])
    layout = next(x for x in layouts.LAYOUTS if x.name == layout)
    rng = np.random.default_rng(7)
    tensors = {}
    for name, slot in slots.expand(shapes).items():
        value = rng.uniform(0.2, 0.4, slot.shape).astype(np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        tensors[layout.rename(name)] = np.ascontiguousarray(value)
    safetensors.numpy.save_file(tensors, path)
    return tensors


@pytest.mark.slow
def test_backbone_of_a_run_of_ours(tiny_config, camvid_folder, tmp_path):
    """There with another number of classes and blocks that are not stacked."""
    there = make_tiny_config(camvid_folder, tmp_path)
    there.model.backbone.update(name='resnet34', multi_grid=(1, 2, 4))
    workdir = tmp_path / 'there'
    workdir_config.save(there, workdir)
    checkpointer = checkpoints.Checkpointer(workdir)
    source = _state(there, seed=1, num_classes=3)
    checkpointer.save(int(source.step), source.to_trees(), miou=0.5)
    checkpointer.close()

    tiny_config.model.backbone.name = 'resnet34'
    tiny_config.model.backbone.weights = str(workdir)
    fresh = _state(tiny_config, seed=2)
    lines = []
    state = warm_start.with_weights(tiny_config, fresh, lines.append)
    assert len(lines) == 1 and 'checkpoint 3' in lines[0]
    before, after = _leaves((fresh.params, fresh.stats)), _leaves((state.params, state.stats))
    saved = _leaves((source.params, source.stats))
    for name, value in after.items():
        if '.backbone.' not in name:
            np.testing.assert_array_equal(value, before[name])
    name = 'backbone.stages.3.{}.layers.0.conv.kernel'
    np.testing.assert_array_equal(
        after['0.' + name.format('1.blocks')][1], saved['0.' + name.format('2')]
    )
    changed = [n for n, value in after.items() if (value != before[n]).any()]
    assert changed == [n for n in after if '.backbone.' in n]

    tiny_config.model.backbone.width = 8
    with pytest.raises(InputError, match=r'(?s)does not fit.*backbone is resnet34 of width 4'):
        warm_start.check(tiny_config)


@pytest.mark.slow
def test_whole_network_of_a_run(tiny_config, camvid_folder, tmp_path):
    """Its classifiers too, if the classes are the same."""
    there = make_tiny_config(camvid_folder, tmp_path)
    workdir = tmp_path / 'there'
    workdir_config.save(there, workdir)
    classes.save(data.build(there.data), workdir)
    source = _state(there, seed=1, num_classes=11)
    checkpointer = checkpoints.Checkpointer(workdir)
    checkpointer.save(int(source.step), source.to_trees(), miou=0.5)
    checkpointer.close()
    saved = _leaves((source.params, source.stats))
    names = classes.of_run(there, workdir).names

    tiny_config.train.start_from = str(workdir)
    warm_start.check(tiny_config)
    for given, number, remark in (
        (names, 11, ''),
        (names[::-1], 11, 'the classifiers are drawn anew'),
        (names[:3], 3, 'the classifiers are drawn anew'),
    ):
        lines = []
        fresh = _state(tiny_config, seed=2, num_classes=number)
        state = warm_start.with_weights(tiny_config, fresh, lines.append, classes=given)
        (line,) = lines
        assert 'checkpoint 3' in line and remark in line and ('anew' in line) == bool(remark)
        drawn = _leaves((fresh.params, fresh.stats))
        for name, value in _leaves((state.params, state.stats)).items():
            expected = drawn if remark and 'classifier.' in name else saved
            np.testing.assert_array_equal(value, expected[name])

    tiny_config.model.ggcf.channels = 12
    with pytest.raises(InputError, match=r'(?s)does not fit config.model .*8\] there, .*12\] here'):
        warm_start.check(tiny_config)
    tiny_config.model.backbone.weights = 'file'
    with pytest.raises(InputError, match=r'has a backbone of its own; leave .*weights'):
        warm_start.check(tiny_config)
    tiny_config.model.backbone.weights = None
    tiny_config.train.start_from = 'nowhere'
    with pytest.raises(InputError, match='there is no such folder; give the workdir'):
        warm_start.check(tiny_config)


@pytest.fixture
def exported(tmp_path):
    """A file with the members of one of exported programs."""
    path = tmp_path / 'model.ggcf'
    with zipfile.ZipFile(path, 'w') as file:
        for name in ('metadata.json', 'weights.npz', 'any.jax_export'):
            file.writestr(name, b'')
    return path


def test_places_that_are_no_run_are_told_with_the_one_to_give(
    tiny_config, untrained_run, exported, tmp_path
):
    cure = 'give the workdir of a run, or a model that --mode=export --format=folder wrote'
    inside = untrained_run / 'checkpoints'
    for place in (inside, next(inside.iterdir())):
        for field in ('train.start_from', 'model.backbone.weights'):
            config = tiny_config.copy_and_resolve_references()
            config.update_from_flattened_dict({field: str(place)})
            message = f"config.{field}='{place}' lies inside of a run; give its .*{untrained_run}'"
            with pytest.raises(InputError, match=message):
                warm_start.check(config)
    tiny_config.model.backbone.weights = str(exported)
    with pytest.raises(InputError, match=f'is a file of exported programs; {cure}'):
        warm_start.check(tiny_config)
    tiny_config.model.backbone.weights = None
    tiny_config.train.start_from = str(exported)
    with pytest.raises(InputError, match=f'model.ggcf. is a file; {cure}'):
        warm_start.check(tiny_config)
    tiny_config.train.start_from = str(tmp_path)
    with pytest.raises(InputError, match='is not the workdir of a run'):
        warm_start.check(tiny_config)


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_weights(tiny_config, tmp_path, capsys, monkeypatch):
    # A step that learns nothing: what was imported is what is saved.
    idle = jax.jit(lambda state, batch: state.replace(step=state.step + 1))
    monkeypatch.setattr(train.train_step, 'build', lambda *unused: idle)
    path = tmp_path / 'weights.safetensors'
    tensors = _write_weights(tiny_config, path)
    tiny_config.model.backbone.weights = str(path)
    tiny_config.train.steps = 1
    workdir = tmp_path / 'run'
    train.train_and_evaluate(tiny_config, workdir)
    assert f'{path}: torchvision ResNet, {len(tensors)} tensors' in capsys.readouterr().out
    saved = _leaves(checkpoints.restore_as_saved(workdir).params)
    np.testing.assert_array_equal(
        saved['backbone.stem.0.conv.kernel'], tensors['conv1.weight'].transpose(2, 3, 1, 0)
    )
    path.unlink()
    train.train_and_evaluate(tiny_config, workdir)
    assert 'finished at step 1' in capsys.readouterr().out
    with pytest.raises(InputError, match='there is no such file'):
        train.train_and_evaluate(tiny_config, tmp_path / 'another')
    assert not (tmp_path / 'another').exists()


def test_averages_start_from_the_weights_too(tiny_config, tmp_path):
    tiny_config.train.ema_decay = 0.9
    tiny_config.model.backbone.weights = str(tmp_path / 'weights.safetensors')
    _write_weights(tiny_config, tiny_config.model.backbone.weights)
    state = _state(tiny_config, 1)
    begun = warm_start.with_weights(tiny_config, state)
    for new, averaged in zip(*map(jax.tree.leaves, (begun.params, begun.ema_params))):
        np.testing.assert_array_equal(new, averaged)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.params, begun.params))))


def test_the_start_says_what_is_missing_or_unusual(tiny_config, tmp_path):
    state, lines = _state(tiny_config, 1), []
    assert warm_start.with_weights(tiny_config, state, lines.append) is state
    tiny_config.model.backbone.expected_weights = 'a ResNet trained on ImageNet'
    warm_start.with_weights(tiny_config, state, lines.append)
    assert lines[0] == 'from scratch, random parameters'
    assert lines[1].startswith(lines[0] + '; the figures of this recipe need a ResNet trained on')

    tiny_config.model.backbone.weights = str(tmp_path / 'resnet.safetensors')
    _write_weights(tiny_config, tmp_path / 'resnet.safetensors')
    for name, warned in (('imagenet', False), ('caffe', True)):
        tiny_config.model.input = name
        lines.clear()
        warm_start.with_weights(tiny_config, state, lines.append)
        assert [line.startswith('warning: such files') for line in lines] == [False] + [
            True
        ] * warned

    tiny_config.model.input, tiny_config.model.activation = 'imagenet', 'leaky_relu'
    lines.clear()
    warm_start.with_weights(tiny_config, state, lines.append)
    assert "activation='relu', this run has 'leaky_relu'" in lines[1]
    tiny_config.model.backbone.activation = 'relu'
    lines.clear()
    warm_start.with_weights(tiny_config, state, lines.append)
    assert len(lines) == 1


def test_layouts_name_inputs_and_activations_that_exist():
    assert {name for layout in layouts.LAYOUTS for name in layout.inputs} <= INPUTS.keys()
    for layout in layouts.LAYOUTS:
        assert layout.trained_input is None or layout.trained_input in layout.inputs
        assert layout.activation in ACTIVATIONS


AUTO = {name: 'auto' for name in auto_fields.FIELDS}


def _values(config):
    return {name: config_lib.get(config, name) for name in AUTO}


def test_automatic_fields_are_those_of_a_file(tiny_config, tmp_path):
    """CSAIL's: another input, stem and channel order than torchvision's."""
    tiny_config.model.backbone.stem = '64-64-128'
    path = tmp_path / 'csail.safetensors'
    _write_weights(tiny_config, path, 'openseg deep-stem ResNet')
    tiny_config.model.backbone.weights = str(path)
    tiny_config.model.activation = 'leaky_relu'
    tiny_config.update_from_flattened_dict(AUTO)
    resolved = auto_fields.resolve(tiny_config, tmp_path / 'run')
    expected = {
        'model.input': 'caffe',
        'model.backbone.stem': '64-64-128',
        'model.backbone.activation': 'relu',
    }
    assert _values(resolved) == expected
    assert _values(tiny_config) == AUTO
    assert workdir_config.differing(resolved, tiny_config).keys() == AUTO.keys()
    state, lines = _state(resolved, 1), []
    warm_start.with_weights(resolved, state, lines.append)
    assert len(lines) == 1  # nothing to warn of

    # A run keeps them when the file is gone, and hands them on.
    path.unlink()
    workdir_config.save(resolved, tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '3').mkdir(parents=True)
    assert _values(auto_fields.resolve(tiny_config, tmp_path / 'run')) == expected
    tiny_config.model.backbone.weights = str(tmp_path / 'run')
    assert _values(auto_fields.resolve(tiny_config, None)) == expected


def test_automatic_fields_that_nothing_tells(tiny_config, tmp_path, monkeypatch):
    assert auto_fields.resolve(tiny_config, None) is tiny_config
    tiny_config.model.input = 'auto'
    with pytest.raises(InputError, match=r"config.model.input='auto' is what the weights imply"):
        auto_fields.resolve(tiny_config, tmp_path / 'run')
    tiny_config.model.backbone.weights = 'wide.safetensors'
    monkeypatch.setattr(pretrained, 'fields', lambda path: {'input': None})
    with pytest.raises(InputError, match=r"config.model.input='auto': the weights leave it open"):
        auto_fields.resolve(tiny_config, None)


@pytest.mark.slow
def test_a_run_with_automatic_fields_resumes(tiny_config, tmp_path, capsys, monkeypatch):
    idle = jax.jit(lambda state, batch: state.replace(step=state.step + 1))
    monkeypatch.setattr(train.train_step, 'build', lambda *unused: idle)
    path = tmp_path / 'weights.safetensors'
    _write_weights(tiny_config, path)
    tiny_config.model.backbone.weights = str(path)
    tiny_config.update_from_flattened_dict({'train.steps': 1, **AUTO})
    train.train_and_evaluate(tiny_config, tmp_path / 'run')
    saved = workdir_config.load(tmp_path / 'run')
    assert list(_values(saved).values()) == ['imagenet', '7x7', 'relu']
    path.unlink()
    train.train_and_evaluate(tiny_config, tmp_path / 'run')
    assert 'finished at step 1' in capsys.readouterr().out
