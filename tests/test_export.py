"""Exported files: read back by the loader of the docs, in a process without this package."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax import config as config_lib
from ggcf_jax import export, models
from ggcf_jax.attention import attend, block_sizes, target
from ggcf_jax.attention.graphs import parse
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config
from tests.helpers import ROOT, operations

SIZES = {'whole': ((17, 33),), 'windows': ((17, 33), (40, 56))}

# Packages without this one: site-packages without the .pth file of an editable installation.
_READER = """
import importlib.util, sys
sys.path += {paths}
{loader}
assert importlib.util.find_spec('ggcf_jax') is None
results = {{}}
images = np.load('images.npz')
about, predict = load('old.ggcf')
assert about['format'] == 1
results['old labels'], results['old probabilities'] = predict(images['17x33'])
for name, keys in {keys}.items():
    about, predict = load(name + '.ggcf')
    for key in keys:
        labels, probabilities = predict(images[key])
        results[f'{{name}} {{key}} labels'] = labels
        results[f'{{name}} {{key}} probabilities'] = probabilities
    padded = predict(images[keys[0]], [[17, 30], [9, 33]])[1]
    results[f'{{name}} padded'] = padded
np.savez('results.npz', **results)
"""


CHANGES = {
    'whole': {'eval.pruning': 'local:keep=4'},
    'windows': {'eval.window': (16, 24), 'eval.flip': True, 'eval.average': 'logits'},
}


@pytest.fixture(scope='module')
def setting(tmp_path_factory, untrained_run):
    """Folder with two exported files, and their configurations."""
    root = tmp_path_factory.mktemp('export')
    configs = {}
    for name, changes in CHANGES.items():
        configs[name] = workdir_config.load(untrained_run)
        configs[name].update_from_flattened_dict(changes)
        sizes = SIZES[name] if name == 'whole' else ()
        export.export_workdir(configs[name], untrained_run, 'best', root / f'{name}.ggcf', sizes)
    return root, configs


@pytest.fixture(scope='module')
def found(setting):
    """Images, and what the loader of the docs returns for them in a process of its own."""
    root, _ = setting
    rng = np.random.default_rng(1)
    keys = {name: [f'{h}x{w}' for h, w in sizes] for name, sizes in SIZES.items()}
    images = {
        key: rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        for key, size in zip(keys['windows'], SIZES['windows'])
    }
    np.savez(root / 'images.npz', **images)
    _write_format_1(root / 'old.ggcf')
    loader = re.search(r'```python\n(.*?)```', (ROOT / 'docs' / 'export.md').read_text(), re.S)[1]
    paths = [str(pathlib.Path(m.__file__).parent.parent) for m in (np, jax, flatbuffers)]
    reader = _READER.format(paths=paths, loader=loader, keys=keys)
    jax_settings = {name: value for name, value in os.environ.items() if name.startswith('JAX')}
    subprocess.run(
        [sys.executable, '-I', '-S', '-c', reader], cwd=root, check=True, env=jax_settings
    )
    with np.load(root / 'results.npz') as results:
        return images, dict(results)


def _write_format_1(path):
    """A file as version 0.1.0 wrote it, with a program that counts the image by its red channel."""

    def program(weights, images):
        labels = images[..., 0] + weights['one']
        return labels, jnp.stack([labels, images[..., 1]], -1).astype(jnp.float32)

    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('b'), 17, 33, 3), jnp.uint8)
    weights = {'one': np.uint8(1)}
    exported = jax.export.export(jax.jit(program))(weights, images)
    content = io.BytesIO()
    np.savez(content, **weights)
    with zipfile.ZipFile(path, 'w') as file:
        about = {'format': 1, 'programs': {'17x33': {'size': [17, 33]}}}
        file.writestr('metadata.json', json.dumps(about))
        file.writestr('weights.npz', content.getvalue())
        file.writestr('17x33.jax_export', bytes(exported.serialize()))


def _scores(untrained_run, config, images):
    """What evaluation computes, of the images one by one."""
    graphdef, params, stats = models.abstract(config, 11)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = checkpoints.restore(untrained_run, params, stats, device)
    plan = inference.build(config)

    @jax.jit
    def run(params, stats, image):
        return inference.scores(models.merge(graphdef, params, stats), image[None], plan)[0]

    found = jnp.stack([run(restored.params, restored.stats, image) for image in images])
    return np.asarray(found.argmax(-1)), np.asarray(inference.probabilities(found, plan))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['whole', 'windows'])
def test_a_process_without_this_package_computes_what_evaluation_does(
    setting, found, untrained_run, name
):
    (_, configs), (images, results) = setting, found
    for size in SIZES[name]:
        key = f'{size[0]}x{size[1]}'
        labels, probabilities = _scores(untrained_run, configs[name], images[key])
        result = results[f'{name} {key} labels']
        assert result.dtype == np.uint8 and len(np.unique(labels)) > 1
        np.testing.assert_array_equal(result, labels)
        result = results[f'{name} {key} probabilities']
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, probabilities, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['whole', 'windows'])
def test_images_of_a_padded_batch_have_the_results_that_they_have_alone(
    setting, found, untrained_run, name
):
    (_, configs), (images, results) = setting, found
    for i, (h, w) in enumerate([(17, 30), (9, 33)]):
        alone = images['17x33'][i : i + 1, :h, :w]
        _, probabilities = _scores(untrained_run, configs[name], alone)
        padded = results[f'{name} padded'][i, :h, :w]
        np.testing.assert_allclose(padded, probabilities[0], atol=1e-5)


@pytest.mark.slow
def test_a_file_of_format_1_is_read(found):
    images, results = found
    np.testing.assert_array_equal(results['old labels'], images['17x33'][..., 0] + 1)
    assert results['old probabilities'].shape == (2, 17, 33, 2)


def test_metadata_says_what_is_inside(setting):
    root, configs = setting
    with zipfile.ZipFile(root / 'windows.ggcf') as file:
        about = json.loads(file.read('metadata.json'))
    assert about['classes'][:2] == ['sky', 'building'] and len(about['colors']) == 11
    assert about['programs'] == {'any': {'least': [16, 24]}}
    assert about['platforms'] == ['cpu', 'cuda', 'tpu'] and about['checkpoint'] == 0
    assert about['plan'] == str(inference.build(configs['windows']))
    with zipfile.ZipFile(root / 'whole.ggcf') as file:
        about = json.loads(file.read('metadata.json'))
    assert about['programs'] == {'17x33': {'size': [17, 33]}}


def test_nothing_tells_where_it_was_made(setting, untrained_run):
    """Neither the configuration nor the programs, which record source files by default."""
    root, _ = setting
    places = {str(ROOT), str(pathlib.Path.home()), str(root.parent), str(untrained_run.parent)}
    places |= {str(pathlib.Path(jax.__file__).parent)}
    for name in ('windows', 'whole'):
        with zipfile.ZipFile(root / f'{name}.ggcf') as file:
            for member in file.namelist():
                content = file.read(member)
                assert not [place for place in places if place.encode() in content], member
    config = config_lib.default()
    config.data.manual_dir, config.model.backbone.weights = '/a/b', 'b/c'
    config.data.splits.train, config.data.splits.test = '/x/y/im,labels/a', 'c,~/d/e'
    config.data.classes = '/home/me/classes.csv'
    found = workdir_config.portable(config)
    assert workdir_config.differing(config, found) == {
        'data.manual_dir': ('/a/b', None),
        'model.backbone.weights': ('b/c', None),
        'data.splits.train': ('/x/y/im,labels/a', 'im,labels/a'),
        'data.splits.test': ('c,~/d/e', 'c,e'),
        'data.classes': ('/home/me/classes.csv', 'classes.csv'),
    }


def test_each_platform_gets_the_tiles_of_its_own(setting, monkeypatch):
    _, configs = setting
    graphdef, params, stats = models.abstract(configs['whole'], 11)
    used = []
    monkeypatch.setattr(
        'ggcf_jax.models.contexts.ggcf.attend',
        lambda *arguments, **options: (
            used.append((target.current(), block_sizes.current(1))) or attend(*arguments, **options)
        ),
    )
    run = export.program(graphdef, params, stats, inference.Plan())
    weights = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in export.flatten(params, stats).items()
    }
    arguments = (
        weights,
        jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    exported = jax.export.export(jax.jit(run), platforms=export.PLATFORMS)(*arguments)
    assert set(used) == {
        ('cpu', block_sizes.CPU),
        ('gpu', block_sizes.ACCELERATOR),
        ('tpu', block_sizes.ACCELERATOR),
    }
    # For one platform the other one's network is dropped.
    here = jax.jit(run).lower(*arguments).as_text()
    assert here.count('stablehlo.convolution') == 10  # 1x1 convolutions are products on CPUs
    assert exported.mlir_module().count('stablehlo.convolution') >= 10 + 18 + 18
    # For CPUs it is the program of the network that was traced for them, and nothing else.
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *x, cpu, **others: cpu(*x))
    run = export.program(graphdef, params, stats, inference.Plan())
    assert operations(jax.jit(run).lower(*arguments).as_text()) == operations(here)


@pytest.mark.parametrize('text', ['local:3', 'grid:3', 'full', 'learned'])
def test_tiles_of_accelerators_compute_the_same(rng, text):
    (graph,) = parse(text)
    graph = graph.bind(graph.init(jax.random.key(0))) if text == 'learned' else graph
    q, k, v = (jnp.float32(rng.normal(size=(1, 19, 23, 1, 4))) for _ in range(3))
    with target.tracing_for('tpu'):
        assert block_sizes.current(1) == block_sizes.ACCELERATOR
        found = jax.jit(lambda *x: attend(*x, graph, implementation='xla'))(q, k, v)
    expected = jax.jit(lambda *x: attend(*x, graph, implementation='reference'))(q, k, v)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert block_sizes.current(1) == block_sizes.CPU


def test_a_file_that_is_there_stays(setting, untrained_run):
    root, configs = setting
    before = (root / 'whole.ggcf').read_bytes()
    with pytest.raises(InputError, match='already exists; --overwrite replaces it'):
        export.export_workdir(configs['whole'], untrained_run, 'best', root / 'whole.ggcf', SIZES)
    assert (root / 'whole.ggcf').read_bytes() == before
    with pytest.raises(InputError, match='is a folder'):
        export.export_workdir(configs['whole'], untrained_run, 'best', root, ((17, 33),))


def test_sizes_are_asked_for_and_refused(setting, untrained_run):
    root, configs = setting
    with pytest.raises(InputError, match='--sizes is missing'):
        export.export_workdir(configs['whole'], untrained_run, 'best', root / 'new.ggcf', ())
    with pytest.raises(InputError, match='--sizes is not needed'):
        export.export_workdir(configs['windows'], untrained_run, 'best', root / 'new.ggcf', SIZES)
    assert not (root / 'new.ggcf').exists()
    assert export.parse_sizes('360x480, 1x2') == ((360, 480), (1, 2)) and not export.parse_sizes('')
    for text in ('360', '360x', '0x4', '3x4x5', '-3x4'):
        with pytest.raises(InputError, match='is not HEIGHTxWIDTH'):
            export.parse_sizes(text)
    with pytest.raises(InputError, match='twice'):
        export.parse_sizes('3x4,3x4')
