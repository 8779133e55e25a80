"""The configuration of a run: saved beside its results, read back, compared and checked."""

import json
import os
import pathlib
import tempfile

from ml_collections import ConfigDict, config_dict

from ggcf_jax import registry
from ggcf_jax.data import class_weights
from ggcf_jax.errors import InputError

FILE_NAME = 'config.json'
_PLACEHOLDERS = 'placeholders'  # key of the saved file: types of the fields that are None
_TYPES = {'str': str, 'int': int, 'float': float}

# Fields that may differ when a run is resumed: they say where things lie, not what is computed.
_OPERATIONAL = (
    'data.manual_dir', 'data.data_dir', 'data.threads', 'data.workers', 'eval.panels', 'mesh.space',
)  # fmt: skip
# So may those that training does not read; runs that were started before there were any have these.
_NOT_OF_TRAINING = {
    'eval.window': (),
    'eval.stride': (),
    'eval.windows_at_once': 4,
    'eval.scales': (1.0,),
    'eval.flip': False,
    'eval.average': 'probabilities',
    'eval.pruning': '',
    'eval.worst': 4,
    'predict.overlays': True,
    'predict.probabilities': False,
    'predict.label_ids': 'train',
    'predict.max_side': 2048,
}


def save(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes `config.json` into the workdir, whole or not at all."""
    saved = _plain(config) | {_PLACEHOLDERS: _placeholders(config)}
    handle, temporary = tempfile.mkstemp(dir=workdir, prefix='.config-')
    with os.fdopen(handle, 'w', encoding='utf-8') as file:
        json.dump(saved, file, indent=2)
    os.replace(temporary, pathlib.Path(workdir) / FILE_NAME)


def load(workdir: pathlib.Path) -> ConfigDict:
    """Reads the configuration of a run, equal to the one it was started with.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    try:
        saved = json.loads(path.read_text(encoding='utf-8'))
        placeholders = saved.pop(_PLACEHOLDERS)
    except FileNotFoundError as error:
        raise InputError(f'{workdir} is not the workdir of a run: it has no {FILE_NAME}') from error
    except (ValueError, KeyError) as error:
        raise InputError(f'{path} is damaged ({error}); restore it or start a new run') from error
    config = ConfigDict(_tuples(saved))
    for name, value in _NOT_OF_TRAINING.items():
        section, field = name.split('.')
        if section not in config:
            config[section] = ConfigDict()
        if field not in config[section]:
            config[section][field] = value
    for name, kind in placeholders.items():
        *parents, last = name.split('.')
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = config_dict.placeholder(_TYPES[kind])
    return config


def claim_workdir(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the workdir and saves the configuration there, or checks that it is the same.

    Raises:
        InputError: the directory cannot be written, or holds a run of another configuration;
            nothing is changed then.
    """
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise InputError(f'workdir {str(workdir)!r} cannot be written: {error}') from error
    if not (workdir / FILE_NAME).exists():
        save(config, workdir)
        return
    differences = [
        f'{name}: {old!r} there, {new!r} now'
        for name, (old, new) in differing(load(workdir), config).items()
        if name not in (*_OPERATIONAL, *_NOT_OF_TRAINING)
    ]
    if differences:
        raise InputError(
            f'workdir {str(workdir)!r} holds a run of another configuration:\n  '
            + '\n  '.join(differences)
            + '\nchoose another --workdir, or the same configuration to resume'
        )


def differing(a: ConfigDict, b: ConfigDict) -> dict[str, tuple]:
    """Dotted name -> (value in a, value in b) for every field that differs; None where missing."""
    flat_a, flat_b = _flatten(_plain(a)), _flatten(_plain(b))
    return {
        name: (flat_a.get(name), flat_b.get(name))
        for name in sorted({*flat_a, *flat_b})
        if flat_a.get(name) != flat_b.get(name)
    }


def check_model(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a network other than the one the run was trained with.

    Heads, dilations and the like may differ although every array of the checkpoint fits.

    Raises:
        InputError: names every field of `model` that differs; or `workdir` is not one of a run.
    """
    differences = [
        f'{name}: {old!r} there, {new!r} now'
        for name, (old, new) in differing(load(workdir), config).items()
        if name.startswith('model.') and name != 'model.backbone.weights'
    ]
    if differences:
        raise InputError(
            f'the run in {str(workdir)!r} was trained with another network:\n  '
            + '\n  '.join(differences)
            + '\nuse its configuration: leave --config out, or correct these fields'
        )


def check(config: ConfigDict, devices: int) -> None:
    """Refuses values that no run can have, before anything expensive is done.

    Args:
        config: of the run.
        devices: number of devices, over which batches are divided.

    Raises:
        InputError: names the field, its value and what it may be.
    """
    train, evaluation = config.train, config.eval
    for name, value in (
        ('train.steps', train.steps),
        ('train.batch_size', train.batch_size),
        ('train.accumulate', train.accumulate),
        ('train.eval_every', train.eval_every),
        ('train.checkpoint_every', train.checkpoint_every),
        ('train.log_every', train.log_every),
        ('train.max_skipped', train.max_skipped),
        ('eval.batch_size', evaluation.batch_size),
        ('eval.size_multiple', evaluation.size_multiple),
        ('eval.max_sizes', evaluation.max_sizes),
        ('eval.windows_at_once', evaluation.windows_at_once),
        ('data.threads', config.data.threads),
        ('mesh.space', config.mesh.space),
    ):
        if value < 1:
            raise InputError(f'config.{name}={value} must be at least 1')
    for name, value in (
        ('train.learning_rate', train.learning_rate),
        ('train.poly_power', train.poly_power),
        ('train.weight_decay', train.weight_decay),
        ('train.aux_weight', train.aux_weight),
        ('train.end_learning_rate', train.end_learning_rate),
        ('train.warmup_steps', train.warmup_steps),
        ('train.clip_norm', train.clip_norm),
        ('train.head_multiplier', train.head_multiplier),
        ('eval.panels', evaluation.panels),
        ('eval.worst', evaluation.worst),
        ('data.workers', config.data.workers),
        ('data.scale_step', config.data.scale_step),
        ('data.photometric', config.data.photometric),
    ):
        if value < 0:
            raise InputError(f'config.{name}={value} must not be negative')
    for name, value in (
        ('train.momentum', train.momentum),
        ('train.ema_decay', train.ema_decay),
        ('model.dropout', config.model.dropout),
        ('data.aspect_jitter', config.data.aspect_jitter),
    ):
        if not 0 <= value < 1:
            raise InputError(f'config.{name}={value} must be in [0, 1)')
    backbone = config.model.backbone
    if backbone.statistics == 'running' and backbone.weights is None:
        raise InputError(
            "config.model.backbone.statistics='running' keeps the statistics of published weights; "
            'give config.model.backbone.weights as well'
        )
    if train.warmup_steps >= train.steps:
        raise InputError(
            f'config.train.warmup_steps={train.warmup_steps} must be less than '
            f'config.train.steps={train.steps}'
        )
    if train.loss == 'ohem' and not (0 < train.ohem.threshold <= 1 and train.ohem.min_kept >= 1):
        raise InputError(
            f'config.train.ohem.threshold={train.ohem.threshold} must be in (0, 1] and '
            f'config.train.ohem.min_kept={train.ohem.min_kept} at least 1'
        )
    size = tuple(config.data.crop_size)
    if len(size) != 2 or min(size) < 1:
        raise InputError(f'config.data.crop_size={size} must be (height, width)')
    _check_mesh(config, devices)
    for name, value in (
        ('data.max_class_share', config.data.max_class_share),
        ('data.class_uniform', config.data.class_uniform),
    ):
        if not 0 <= value <= 1:
            raise InputError(f'config.{name}={value} must be in [0, 1]')
    class_weights.parse(train.class_weights)
    if config.predict.max_side < 64:
        raise InputError(f'config.predict.max_side={config.predict.max_side} must be at least 64')
    registry.check(config.predict.label_ids, ('train', 'server'), 'config.predict.label_ids')
    low, high = config.data.scale_range
    if not 0 < low <= high:
        raise InputError(f'config.data.scale_range={(low, high)} must be (smallest, largest) > 0')


def _check_mesh(config: ConfigDict, devices: int) -> None:
    """Images of a batch are dealt over `data` devices, rows of each image over `space` ones."""
    train, evaluation, space = config.train, config.eval, config.mesh.space
    if devices % space:
        raise InputError(
            f'config.mesh.space={space} does not divide the {devices} devices; choose a divisor'
        )
    data = devices // space
    over = f'{data} devices' if space == 1 else f'{devices} devices / config.mesh.space={space}'
    parts = train.accumulate * data
    if train.batch_size % parts:
        raise InputError(
            f'config.train.batch_size={train.batch_size} is not divisible by {over}'
            f' x config.train.accumulate={train.accumulate}; choose a multiple of {parts}'
        )
    if evaluation.batch_size % data:
        raise InputError(
            f'config.eval.batch_size={evaluation.batch_size} is not divisible by {over};'
            f' choose a multiple of {data}'
        )
    if space == 1:
        return
    rows = config.model.backbone.stride * space
    for name, height in (
        ('data.crop_size', config.data.crop_size[0]),
        ('eval.size_multiple', evaluation.size_multiple),
    ):
        if height % rows:
            raise InputError(
                f'config.{name}: the height {height} must be a multiple of {rows}, '
                f'config.model.backbone.stride={config.model.backbone.stride} x '
                f'config.mesh.space={space}, so that every device has equally many rows of features'
            )


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json())


def _flatten(tree: dict, prefix: str = '') -> dict:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def _placeholders(config: ConfigDict, prefix: str = '') -> dict[str, str]:
    found = {}
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            found |= _placeholders(value, f'{prefix}{name}.')
        elif value is None:
            found[prefix + name] = config.get_type(name).__name__
    return found


def _tuples(value):
    """JSON has no tuples; our configs have no lists."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
