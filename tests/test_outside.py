"""A package outside of this repository: every seam with a contract, each in one file of its own.

`FILES` is such a package, as its author would write it from the contracts alone; `FIELDS` names
what is in it in the configuration. Training runs with all of it at once.
"""

import json
import sys

import numpy as np
import pytest

from ggcf_jax import data, models, train
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.training import objective, optim
from ggcf_jax.workdir.metrics_log import read_rows

FILES = {
    '__init__': '',
    'patches': '''
"""A backbone: four stages of patch embeddings, at 1/4 and then 1/8 of the image."""

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax.models.layers.extent import strided, zero_outside


class Patches(nnx.Module):
    def __init__(self, width, dtype, rngs):
        self.features = (width, width, width, 2 * width)
        self.stride = 8
        conv = lambda n, m, size: nnx.Conv(
            n, m, (size, size), strides=size, padding='VALID', dtype=dtype, rngs=rngs
        )
        self.stages = nnx.List(
            [conv(3, width, 4), conv(width, width, 2), conv(width, width, 1),
             conv(width, 2 * width, 1)]
        )

    def __call__(self, x, *, train, key, extent=None):
        outputs = []
        for stage in self.stages:
            size = stage.kernel_size[0]
            x = zero_outside(x, extent)
            x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, -x.shape[2] % size), (0, 0)))
            x = jax.nn.relu(stage(x))
            extent = strided(extent, size)
            outputs.append(x)
        return tuple(outputs)


def build(model, *, remat, dtype, rngs):
    return Patches(model.backbone.width, dtype, rngs)
''',
    'mean': '''
"""A context module: every position sees the mean of the map."""

import jax.numpy as jnp
from flax import nnx

from ggcf_jax.models.layers.pool import mean


class Mean(nnx.Module):
    def __init__(self, in_features, channels, dtype, rngs):
        self.features = channels + in_features
        self.project = nnx.Linear(in_features, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, train, extent=None):
        seen = self.project(mean(x, extent))
        seen = jnp.broadcast_to(seen, (*x.shape[:3], seen.shape[-1]))
        return jnp.concatenate([seen, x], axis=-1)


def build(model, in_features, *, dtype, rngs):
    return Mean(in_features, model.ggcf.channels, dtype, rngs)
''',
    'focal': '''
"""A loss: focal loss (Lin et al., 2017)."""

import jax
import jax.numpy as jnp


def build(train, class_weights):
    def focal(logits, labels):
        valid = labels != 255
        log_p = jax.nn.log_softmax(logits)
        log_p = jnp.take_along_axis(log_p, jnp.where(valid, labels, 0)[..., None], -1)[..., 0]
        losses = -((1 - jnp.exp(log_p)) ** 2) * log_p
        return jnp.where(valid, losses, 0).sum(), valid.sum().astype(jnp.float32)

    return focal
''',
    'adam': '''
"""An optimiser."""

import optax


def build(train, learning_rate, decayed, layerwise):
    return [
        layerwise(optax.normalize_by_update_norm()),
        optax.adamw(learning_rate, weight_decay=train.weight_decay, mask=decayed),
    ]
''',
    'halving': '''
"""A schedule."""

import optax


def build(train, steps):
    return optax.exponential_decay(train.learning_rate, steps, 0.5)
''',
    'balanced': '''
"""A metric."""

import numpy as np


def worst_class(matrix):
    recall = np.diag(matrix)[matrix.any(1)] / matrix.sum(1)[matrix.any(1)]
    return float(recall.min()) if len(recall) else float('nan')
''',
    'stripes': '''
"""A data set: stripes of three classes, stored as bytes without a file format."""

import numpy as np

from ggcf_jax.data.records.dataset import Dataset

SIZE = 30, 40


class Stripes:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        label = np.broadcast_to((np.arange(SIZE[1]) + index) // 5 % 3, SIZE).astype(np.uint8)
        image = np.repeat(80 * label[..., None], 3, axis=2)
        return {'name': f'stripes_{index}', 'image': image.tobytes(), 'label': label.tobytes()}


class Decoder:
    def image(self, data, name):
        return np.frombuffer(data, np.uint8).reshape(*SIZE, 3)

    def label(self, data, name):
        return np.frombuffer(data, np.uint8).reshape(SIZE)

    def label_size(self, data, name):
        return SIZE


def build(data):
    return Dataset(
        name='stripes',
        classes=('left', 'middle', 'right'),
        colors=((0, 0, 0), (80, 80, 80), (160, 160, 160)),
        sources={'train': Stripes(8), 'validation': Stripes(3)},
        decoder=Decoder(),
        identity='stripes 1',
    )
''',
}

FIELDS = {
    'data.name': 'lab.stripes:build',
    'model.backbone.name': 'lab.patches:build',
    'model.context': 'lab.mean:build',
    'train.loss': 'lab.focal:build',
    'train.optimizer': 'lab.adam:build',
    'train.schedule': 'lab.halving:build',
    'eval.metrics': 'pixel_accuracy,lab.balanced:worst_class',
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The package `lab`, importable for the time of a test."""
    (tmp_path / 'lab').mkdir()
    for name, text in FILES.items():
        (tmp_path / 'lab' / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition('.')[0] == 'lab']:
        del sys.modules[name]


@pytest.mark.slow
def test_a_package_outside_is_trained_with(lab, tiny_config, tmp_path, capsys):
    tiny_config.update_from_flattened_dict(FIELDS)
    tiny_config.update_from_flattened_dict(
        {
            'train.steps': 2,
            'train.eval_every': 2,
            'train.log_every': 1,
            'train.class_weights': 'data',
        }
    )
    assert data.build(tiny_config.data).classes == ('left', 'middle', 'right')
    model = models.build(tiny_config, 3)
    assert type(model.backbone).__module__ == 'lab.patches'
    assert type(model.context).__module__ == 'lab.mean'
    assert model.stride == 8 and model.heads == ()
    loss = objective.build(tiny_config.train, ()).loss
    total, weight = loss(np.zeros((2, 2)), np.array([0, 255]))
    np.testing.assert_allclose((total, weight), (0.25 * np.log(2), 1), rtol=1e-6)

    evaluation = train.train_and_evaluate(tiny_config, tmp_path / 'run')
    assert 0 <= evaluation.miou <= 1
    rows = [row for row in read_rows(tmp_path / 'run') if 'train/loss' in row]
    assert [row['step'] for row in rows] == [1, 2]
    assert all(np.isfinite(row['train/loss']) for row in rows)
    # The metric is wherever the others are.
    worst = evaluation.scores['worst_class']
    assert list(evaluation.scores) == ['miou', 'pixel_accuracy', 'worst_class'] and 0 <= worst <= 1
    (row,) = (row for row in read_rows(tmp_path / 'run') if 'val/miou' in row)
    assert row['val/worst_class'] == worst
    saved = json.loads((tmp_path / 'run/evaluations/validation_00000002.json').read_text())
    assert saved['metrics']['worst_class'] == worst
    assert f'worst class {worst:.4f}' in capsys.readouterr().out
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert page.count('worst class') == 2  # a headline figure and a column
    # Evaluated again from what the run has saved, with the names of its configuration.
    again = train.train_and_evaluate(tiny_config, tmp_path / 'run')
    assert again.miou == evaluation.miou


@pytest.mark.parametrize('field', FIELDS)
def test_what_cannot_be_imported_is_named(tiny_config, field):
    tiny_config.update_from_flattened_dict({field: 'no_such_lab.module:build'})
    with pytest.raises(InputError, match=rf"config\.{field}='no_such_lab.*PYTHONPATH"):
        data.build(tiny_config.data)
        models.abstract(tiny_config, 5)
        objective.build(tiny_config.train, ())
        optim.optimizer(tiny_config.train, frozenset())
        metrics.build(tiny_config)
