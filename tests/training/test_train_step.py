from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import parameters
from ggcf_jax.models.layers.resize import upsample
from ggcf_jax.training import optim, parameter_groups
from ggcf_jax.training import state as state_lib
from ggcf_jax.training.losses.cross_entropy import cross_entropy
from ggcf_jax.training.losses.ohem import ohem
from ggcf_jax.training.objective import Objective
from ggcf_jax.training.train_step import make_train_step, split_microbatches
from tests.helpers import compiled

CLASSES = 5


@pytest.fixture
def config(tiny_config):
    tiny_config.model.dropout = 0.0
    return tiny_config


def _batch(seed=0, size=8, height=24):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (size, height, 24)).astype(np.uint8)
    for i in range(size):
        label[i, : 2 * i] = 255  # devices and microbatches see different numbers of pixels
    image = rng.integers(0, 255, (size, height, 24, 3)).astype(np.uint8)
    return {'image': image, 'label': label}


def _make(config, accumulate=1, log_every=2, loss=cross_entropy, ema_decay=0.0, **options):
    graphdef, params, stats = models.split(compiled(lambda: models.build(config, CLASSES)))
    stacks = models.stacks(graphdef, params, stats)
    tx = optim.optimizer(config.train, stacks)
    groups = parameter_groups.build(config.train, stacks)
    step = make_train_step(
        graphdef,
        tx,
        Objective(loss, aux_weight=0.4),
        accumulate=accumulate,
        ema_decay=ema_decay,
        log_every=log_every,
        frozen=groups.is_frozen if groups.frozen else None,
        **options,
    )
    state = state_lib.create(
        models.merge(graphdef, params, stats),
        tx,
        seed=config.seed,
        ema_decay=ema_decay,
        ema_statistics=config.train.ema_statistics,
        layers=parameter_groups.layers(params, stacks) if 'layer_norms' in options else (),
    )
    return step, state, graphdef


def _assert_close(a, b, rtol=2e-4, atol=2e-6):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol, atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_first_update_is_the_definition(config):
    """params - lr * (gradient of the mean losses + decay * params)."""
    step, state, graphdef = _make(config)
    batch = _batch()

    def loss(params):
        model = models.merge(graphdef, params, state.stats)
        outputs = model(batch['image'], train=True, key=jax.random.key(0))
        main, aux = (upsample(x, 8, (24, 24)) for x in outputs)
        valid = batch['label'] != 255
        means = [cross_entropy(x, batch['label'])[0] / valid.sum() for x in (main, aux)]
        return means[0] + 0.4 * means[1]

    # By NumPy, here and below: for JAX every shape is a program.
    both = jax.device_get((state.params, jax.jit(jax.grad(loss))(state.params)))
    expected = jax.tree.map(lambda p, g: p - 0.05 * (g + 5e-4 * p), *both)
    new = jax.jit(step)(state, batch)
    _assert_close(new.params, expected)
    assert int(new.step) == 1
    np.testing.assert_allclose(new.metric_sums['loss'], jax.jit(loss)(state.params), rtol=1e-5)


OHEM = partial(ohem, threshold=0.2, min_kept=700)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('accumulate', 'loss', 'meshes'),
    [
        (2, cross_entropy, [(1, 1), (8, 1)]),
        (1, OHEM, [(1, 1), (8, 1), (4, 2)]),
    ],
)
def test_any_mesh_takes_the_same_steps(config, accumulate, loss, meshes):
    """Loss, gradients and batch statistics are global, whatever lies where.

    A mesh is a number of devices and how many of them share the rows of an image: with 4 and 2 it
    is 2 x 2. With two microbatches of 8 of 16 images, each device holds one image of each.
    """
    config.model.heads = 'local:1,grid:2,full'
    step, state, _ = _make(config, accumulate, loss=loss)
    results = []
    for devices, space in meshes:
        mesh = mesh_lib.make_mesh(jax.devices()[:devices], space)
        placed = jax.device_put(state, mesh_lib.replicated(mesh))
        compiled = jax.jit(step, out_shardings=mesh_lib.replicated(mesh))
        with jax.set_mesh(mesh):
            for seed in range(3):
                batch = _batch(seed, 8 * accumulate, height=32)
                placed = compiled(placed, jax.device_put(batch, mesh_lib.by_batch(mesh)))
        results.append(jax.device_get(placed))
    for result in results[1:]:
        _assert_close(results[0], result, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_accumulation_sums_over_microbatches(config):
    """Against each microbatch by itself, joined by numbers of pixels."""
    step, state, graphdef = _make(config, accumulate=2)
    batch = _batch()
    split = split_microbatches(batch, 2)
    stats, total, count = state.stats, None, 0

    @jax.jit
    def gradient(params, stats, image, label):
        def loss(params):
            model = models.merge(graphdef, params, stats)
            outputs = model(image, train=True, key=jax.random.key(0))
            main, aux = (cross_entropy(upsample(x, 8, (24, 24)), label)[0] for x in outputs)
            return main + 0.4 * aux, models.split(model)[2]

        return jax.grad(loss, has_aux=True)(params)

    for i in range(2):
        image, label = split['image'][i], split['label'][i]
        gradients, stats = gradient(state.params, stats, image, label)
        gradients = jax.device_get(gradients)
        total = gradients if total is None else jax.tree.map(np.add, total, gradients)
        count += (label != 255).sum()
    expected = jax.tree.map(
        lambda p, g: p - 0.05 * (g / count + 5e-4 * p), jax.device_get(state.params), total
    )
    new = jax.jit(step)(state, batch)
    _assert_close(new.params, expected)
    _assert_close(new.stats, stats)


def test_every_microbatch_takes_from_every_device():
    batch = {'x': np.arange(16)}
    split = split_microbatches(batch, 2)['x']
    assert sorted(split.ravel().tolist()) == list(range(16))
    # Devices hold 0-3, 4-7, ...; each microbatch has two of each.
    for microbatch in split:
        assert [(microbatch // 4 == device).sum() for device in range(4)] == [2] * 4


@pytest.mark.slow
def test_not_finite_step_changes_nothing_but_counts(config):
    step, state, _ = _make(config, log_every=3)
    compiled = jax.jit(step)
    state = compiled(state, _batch())
    poisoned = state.replace(params=jax.tree.map(lambda x: x * jnp.float32(np.inf), state.params))
    after = compiled(poisoned, _batch(1))
    counts = []
    for name in ('params', 'stats', 'opt_state'):
        before = jax.tree.leaves(getattr(poisoned, name))
        for a, b in zip(before, jax.tree.leaves(getattr(after, name)), strict=True):
            if a.dtype == jnp.int32:
                counts.append((int(a), int(b)))
            else:
                assert np.array_equal(a, b, equal_nan=True)
    assert counts == [(1, 2)]  # the schedule's: the next step has the learning rate of its number
    assert int(after.step) == 2 and int(after.consecutive_skips) == 1
    assert float(after.metric_sums['skipped']) == 1
    assert np.isfinite(float(after.metric_sums['loss']))
    recovered = compiled(after.replace(params=state.params), _batch(1))
    assert int(recovered.consecutive_skips) == 0 and float(recovered.metric_sums['skipped']) == 1


@pytest.mark.slow
@pytest.mark.parametrize('loss', [cross_entropy, partial(ohem, threshold=0.7, min_kept=10)])
def test_all_ignored_batch_is_finite(config, loss):
    step, state, _ = _make(config, loss=loss)
    batch = _batch()
    batch['label'][:] = 255
    after = jax.jit(step)(state, batch)
    assert int(after.consecutive_skips) == 0
    assert float(after.metric_sums['loss']) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))


@pytest.mark.slow
def test_running_sums_start_anew_and_parameters_are_averaged(config):
    step, state, _ = _make(config, log_every=2, ema_decay=0.9)
    compiled = jax.jit(step)
    losses, sums = [], []
    average = jax.device_get(state.params)
    for seed in range(4):
        alone = compiled(
            state.replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums)), _batch(seed)
        )
        losses.append(float(alone.metric_sums['loss']))
        state = compiled(state, _batch(seed))
        sums.append(float(state.metric_sums['loss']))
        params = jax.device_get(state.params)
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, params)
    _assert_close(state.ema_params, average)
    assert state.eval_params is state.ema_params
    expected = [losses[0], losses[0] + losses[1], losses[2], losses[2] + losses[3]]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


@pytest.mark.slow
def test_averages_warm_up_with_their_statistics_and_norms_are_told_by_layer(config):
    """Trees of checkpoints keep both; norms of layers change nothing else."""
    config.model.backbone.name = 'resnet18'  # whose second block of a stage is in a stack
    config.model.context = 'none'
    config.train.ema_statistics = 'averaged'
    network = models.abstract(config, CLASSES)
    stacks = models.stacks(*network)
    norms = partial(parameter_groups.norms, stacks=stacks)
    step, state, _ = _make(config, ema_decay=0.5, ema_warmup=True, layer_norms=norms)
    compiled = jax.jit(step)
    params, stats = jax.device_get((state.params, state.stats))
    for i, decay in enumerate((1 / 10, 2 / 11)):
        state = compiled(state, _batch(i))
        params, stats = (
            jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, average, new)  # noqa: B023
            for average, new in zip((params, stats), jax.device_get((state.params, state.stats)))
        )
    _assert_close(state.ema_params, params)
    _assert_close(state.ema_stats, stats)
    trees = state.to_trees()
    assert trees['model'] == {'params': state.ema_params, 'stats': state.ema_stats}
    again = state_lib.TrainState.from_trees(trees)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)):
        np.testing.assert_array_equal(a, b)

    sums = {name: float(x) for name, x in state.metric_sums.items()}
    layers = parameter_groups.layers(network[1], stacks)
    assert {'backbone.stem', 'backbone.stages.2.0', 'backbone.stages.2.1', 'classifier'} < {*layers}
    fresh = state.replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
    one = compiled(fresh, _batch(2)).metric_sums
    together = sum(float(one[f'grad_norm/{layer}']) ** 2 for layer in layers) ** 0.5
    np.testing.assert_allclose(together, one['grad_norm'], rtol=1e-5)
    assert all(sums[f'grad_norm/{layer}'] > 0 for layer in layers)

    # Blocks in arrays of their own take the same step, and a checkpoint has them in stacks.
    unstacked = fresh.unstacked(models.unstacked_for(mesh_lib.make_mesh(), *network))
    assert jax.tree.structure(unstacked.params) != jax.tree.structure(fresh.params)
    found, expected = (compiled(each, _batch(2)).to_trees() for each in (unstacked, fresh))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    _assert_close(found, expected)


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step(tiny_config):
    tiny_config.model.dropout = 0.5
    step, state, _ = _make(tiny_config)
    compiled = jax.jit(step)

    def loss(state):
        fresh = state.replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
        return float(compiled(fresh, _batch()).metric_sums['loss'])

    first = loss(state)
    assert loss(state) == first
    assert loss(state.replace(step=jnp.int32(2))) != first
    assert loss(state.replace(seed=jnp.uint32(9))) != first


@pytest.mark.slow
def test_frozen_parameters_and_their_statistics_stay(config):
    """Bit for bit, averages included; the others learn as ever."""
    config.train.frozen = 'backbone.stem,backbone.stages.0,classifier.bias'
    config.train.clip_norm = 1.0
    step, state, _ = _make(config, ema_decay=0.9)
    compiled = jax.jit(step)
    after = compiled(compiled(state, _batch()), _batch(1))
    for name in ('params', 'stats', 'ema_params'):
        before = jax.tree_util.tree_leaves_with_path(getattr(state, name))
        for (path, a), b in zip(before, jax.tree.leaves(getattr(after, name)), strict=True):
            path = parameters.name(path)
            frozen = path.startswith(('backbone.stem.', 'backbone.stages.0.', 'classifier.bias'))
            assert np.array_equal(a, b) == frozen, (name, path)
