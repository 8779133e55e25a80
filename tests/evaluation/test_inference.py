"""Plans against a twin in plain loops over numpy arrays, views by OpenCV."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import attention, models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.inference import Plan
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.layers.resize import resize, upsample
from tests.helpers import compiled

CLASSES = 3
SCORES = jax.jit(
    lambda graphdef, state, images, plan, sizes=None: inference.scores(
        nnx.merge(graphdef, state),
        images,
        plan,
        None if sizes is None else extent_lib.of_sizes(sizes),
    ),
    static_argnums=(0, 3),
)


class Pixels(nnx.Module):
    """A network of stride 4 that tells where a window begins: it sees places and colours."""

    stride = 4
    num_classes = CLASSES

    def __init__(self):
        kernel = np.random.default_rng(0).normal(size=(3, CLASSES)) / 60
        self.kernel = nnx.Param(jnp.float32(kernel))

    def __call__(self, images, *, extent=None):
        del extent  # no position sees another
        x = images[:, ::4, ::4].astype(jnp.float32)
        y, z = jnp.meshgrid(jnp.arange(x.shape[1]), jnp.arange(x.shape[2]), indexing='ij')
        place = 0.1 * jnp.stack([y, z, y * z / 9], axis=-1)
        return jnp.einsum('bhwc,cd->bhwd', x, self.kernel[...]) + place, None

    def upsample(self, logits, size, extent=None):
        return upsample(logits, 4, size, extent_lib.strided(extent, 4))


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 255, (8, 5, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (29, 22)) for image in coarse])


def _run(model, images, plan, sizes=None):
    return np.asarray(SCORES(*nnx.split(model), images, plan, sizes))


@jax.jit
def _logits(kernel, part):
    """Those of one window, at its full size."""
    model = Pixels()
    model.kernel[...] = kernel
    return upsample(model(part[None])[0], 4, part.shape[:2])[0]


def _twin(model, image, plan):
    """The scores of one image, float64 [h, w, C]."""
    h, w, _ = image.shape
    views = []
    for scale in plan.scales:
        sh, sw = max(1, round(h * scale)), max(1, round(w * scale))
        view = image
        if scale != 1:
            view = cv2.resize(image.astype(np.float32), (sw, sh), interpolation=cv2.INTER_LINEAR)
            view = np.round(view).astype(np.uint8)
        for flip in [False, True] if plan.flip else [False]:
            turned = view[:, ::-1] if flip else view
            wh, ww = plan.window or (sh, sw)
            wh, ww = min(wh, sh), min(ww, sw)
            total, count = np.zeros((sh, sw, CLASSES)), np.zeros((sh, sw, 1))
            dy, dx = plan.stride or [int(np.ceil(2 * n / 3)) for n in plan.window or (sh, sw)]
            for y in _starts(sh, wh, dy):
                for x in _starts(sw, ww, dx):
                    part = np.ascontiguousarray(turned[y : y + wh, x : x + ww])
                    logits = _logits(model.kernel[...], part)
                    total[y : y + wh, x : x + ww] += np.asarray(logits, np.float64)
                    count[y : y + wh, x : x + ww] += 1
            logits = total / count
            if (sh, sw) != (h, w):
                logits = cv2.resize(logits, (w, h), interpolation=cv2.INTER_LINEAR)
            logits = logits[:, ::-1] if flip else logits
            if plan.average == 'probabilities':
                e = np.exp(logits - logits.max(-1, keepdims=True))
                logits = e / e.sum(-1, keepdims=True)
            views.append(logits)
    return np.mean(views, axis=0)


def _starts(length, window, stride):
    starts, at = [], 0
    while at + window < length:
        starts.append(at)
        at += stride
    return [*starts, length - window]


PLANS = [
    Plan(),
    Plan(average='logits'),
    Plan(flip=True),
    Plan(scales=(0.5, 1.0, 1.75), flip=True),
    Plan(scales=(0.75, 1.25), average='logits'),
    Plan(window=(9, 10)),
    Plan(window=(9, 10), stride=(4, 10), windows_at_once=5),
    Plan(window=(12, 64), windows_at_once=100),
    Plan(window=(16, 16), scales=(0.5, 1.5), flip=True, windows_at_once=3),
]


@pytest.mark.parametrize('plan', PLANS, ids=str)
def test_scores_are_those_of_plain_loops(images, plan):
    model = Pixels()
    found = _run(model, images[:2], plan)
    assert found.shape == (2, 22, 29, CLASSES) and found.dtype == np.float32
    for i in range(2):
        np.testing.assert_allclose(found[i], _twin(model, images[i], plan), rtol=1e-4, atol=1e-5)
    total = np.asarray(inference.probabilities(jnp.asarray(found), plan)).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@pytest.mark.parametrize(
    'plan',
    [*PLANS[3:4], *PLANS[5:8], pytest.param(PLANS[8], marks=pytest.mark.slow)],
    ids=str,
)
def test_a_padded_image_has_the_scores_that_it_has_alone(images, plan):
    model, sizes = Pixels(), np.int32([(22, 29), (9, 13), (23, 7), (0, 0)])
    batch = np.random.default_rng(2).integers(0, 256, (4, 38, 45, 3), dtype=np.uint8)
    for place, image, (h, w) in zip(batch, images, sizes):
        place[:h, :w] = np.pad(image, ((0, 9), (0, 0), (0, 0)), 'edge')[:h, :w]
    found = _run(model, batch, plan, sizes)
    assert np.isfinite(found[:3]).all()
    for scores, image, (h, w) in zip(found, batch, sizes[:3]):
        alone = _run(model, image[None, :h, :w], plan)[0]
        np.testing.assert_allclose(scores[:h, :w], alone, rtol=1e-5, atol=1e-5)


def test_windows():
    def starts(*axis):
        return inference.window_starts(*axis).tolist()

    assert starts(2048, 769, 513) == [0, 513, 1026, 1279]
    assert starts(1024, 769, 513) == [0, 255]
    assert starts(1282, 769, 513) == [0, 513]
    assert starts(769, 769, 513) == starts(5, 769, 513) == [0]
    assert Plan(window=(769, 1024)).steps == (513, 683)


@pytest.mark.parametrize('size', [(40, 17), (7, 31), (1, 1), (20, 20)])
def test_resize_is_that_of_opencv(rng, size):
    x = rng.normal(size=(2, 20, 20, 3)).astype(np.float32)
    expected = np.stack(
        [cv2.resize(each, size[::-1], interpolation=cv2.INTER_LINEAR) for each in x]
    )
    np.testing.assert_allclose(resize(jnp.asarray(x), size), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('plan', [Plan(flip=True), Plan(window=(9, 10), flip=True)], ids=str)
def test_a_mirror_image_needs_no_program_of_its_own(images, plan):
    """It goes through the network in the batch of the image: as many products as without it."""
    graphdef, state = nnx.split(Pixels())
    products = [
        SCORES.lower(graphdef, state, images, each).as_text().count('dot_general')
        for each in (plan, dataclasses.replace(plan, flip=False))
    ]
    assert products[0] == products[1] > 0


@pytest.mark.parametrize('own', [False, True])
def test_a_batch_dealt_to_eight_devices_stays_dealt(images, own):
    plan = Plan(window=(9, 10), scales=(1.0, 1.5), flip=True)
    model = Pixels()
    mesh = mesh_lib.make_mesh()
    sizes = np.int32([(22 - i, 20 + i) for i in range(8)])
    dealt = mesh_lib.global_batch(mesh, {'image': images, 'size': sizes})
    arguments = (dealt['size'],) if own else ()
    graphdef, state = nnx.split(model)
    with jax.set_mesh(mesh):
        program = SCORES.lower(graphdef, state, dealt['image'], plan, *arguments).compile()
        found = program(state, dealt['image'], *arguments)
    expected = _run(model, images, plan, *([sizes] if own else []))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert 'all-gather' not in program.as_text()
    assert found.sharding.is_equivalent_to(mesh_lib.by_batch(mesh), found.ndim)


PRUNING = 'local:keep=3,grid:drop=0.5:random'


@pytest.mark.slow
def test_pruning_reaches_the_heads(tiny_config, images, monkeypatch):
    model = compiled(lambda: models.build(tiny_config, CLASSES))
    plan = Plan(pruning=pruning_rules.parse(PRUNING), average='logits')
    calls = []

    def record(*arguments, **options):
        calls.append((str(arguments[3]), options['keep'], options['drop_rate'], options['pruning']))
        return attention.attend(*arguments, **options)

    monkeypatch.setattr('ggcf_jax.models.contexts.ggcf.attend', record)
    pruned = jax.jit(lambda x: inference.scores(model, x, plan))(images[:1])
    assert calls == [('local:1', 3, None, 'top'), ('grid:2', None, 0.5, 'random')]
    monkeypatch.undo()
    plain = jax.jit(lambda x: inference.scores(model, x, inference.SINGLE))(images[:1])
    # The caller's model still keeps all.
    expected = upsample(jax.jit(lambda x: model(x)[0])(images[:1]), model.stride, (22, 29))
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(pruned) - plain).max() > 1e-4


def test_pruning_that_keeps_all_changes_nothing(tiny_config, images):
    model = compiled(lambda: models.build(tiny_config, CLASSES))
    graphdef, state = nnx.split(model)
    plans = (Plan(pruning=pruning_rules.parse('local:keep=9,grid:drop=0')), Plan())
    kept, plain = (SCORES(graphdef, state, images[:1], plan) for plan in plans)
    np.testing.assert_array_equal(kept, plain)


def test_rules_without_heads(tiny_config, images):
    tiny_config.model.context = 'none'
    model = compiled(lambda: models.build(tiny_config, CLASSES))
    with pytest.raises(ValueError, match='the model has no heads to prune'):
        inference.scores(model, images, Plan(pruning=pruning_rules.parse(PRUNING)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'window': (0, 5)}, r'window=\(0, 5\) must be'),
        ({'window': (5,)}, r'window=\(5,\) must be'),
        ({'stride': (5, 5)}, r'stride=\(5, 5\) needs a window'),
        ({'window': (5, 5), 'stride': (6, 5)}, 'would be left out'),
        ({'scales': ()}, r'scales=\(\) must be one or more'),
        ({'scales': (1.0, 0.0)}, 'above 0'),
        ({'scales': (1.0, 1.0)}, 'twice'),
        ({'average': 'votes'}, "average='votes' is not one of probabilities, logits"),
        ({'windows_at_once': 0}, 'windows_at_once=0 must be at least 1'),
    ],
)
def test_impossible_plans(options, message):
    with pytest.raises(ValueError, match=message):
        Plan(**options)


def test_names():
    assert str(Plan()) == 'whole image'
    plan = Plan((769, 769), scales=(0.5, 1.0), flip=True, pruning=pruning_rules.parse(PRUNING))
    assert str(plan) == (
        'windows 769x769 every 513x513, scales 0.5 1, flip, mean probabilities, pruning ' + PRUNING
    )


@pytest.mark.parametrize(
    ('change', 'plan'),
    [
        ({}, Plan()),
        ({'eval.window': (9, 8), 'eval.scales': (0.5, 1)}, Plan((9, 8), scales=(0.5, 1))),
        ({'eval.window': (9, 8), 'eval.stride': (4, 4)}, Plan((9, 8), (4, 4))),
        ({'eval.flip': True, 'eval.average': 'logits'}, Plan(flip=True, average='logits')),
        ({'eval.pruning': PRUNING}, Plan(pruning=pruning_rules.parse(PRUNING))),
        ({'eval.windows_at_once': 7}, Plan(windows_at_once=7)),
    ],
)
def test_plan_of_a_config(tiny_config, change, plan):
    tiny_config.update_from_flattened_dict(change)
    assert inference.build(tiny_config) == plan


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'eval.window': (9,)}, r'config.eval: window=\(9,\) must be'),
        ({'eval.scales': ('a',)}, 'config.eval: '),
        ({'eval.average': 'mean'}, "eval.average='mean' is not one of probabilities, logits"),
        ({'eval.pruning': 'full:drop=.5'}, "eval.pruning='full:drop=.5': .* has no full head"),
        ({'eval.pruning': 'full'}, "eval.pruning='full': pruning is written like"),
        ({'eval.pruning': PRUNING, 'model.context': 'aspp'}, "'aspp' has no heads to prune"),
    ],
)
def test_impossible_config(tiny_config, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        inference.build(tiny_config)
