"""Trains and evaluates: main.py --config=configs/street_scenes.py [--config.a.b=value ...]."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from ggcf_jax import evaluate, train
from ggcf_jax.errors import InputError

_MODES = ('train', 'evaluate')
_SAVED = pathlib.Path(__file__).parent / 'configs' / 'saved.py'

_CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='Configuration, e.g. configs/camvid.py.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run [runs/<config name>].')
_MODE = flags.DEFINE_enum('mode', 'train', _MODES, 'What to do.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', 'For --mode=evaluate: best, latest or a step.'
)
_SPLIT = flags.DEFINE_string('split', 'validation', 'For --mode=evaluate: the split.')


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; flags are --name=value')
    if _CONFIG.value is None:
        raise app.UsageError('--config is missing; try --config=configs/street_scenes.py')
    workdir = _WORKDIR.value or f'runs/{_config_name()}'
    # What JAX and TFDS tell at level INFO would drown our own lines.
    logging.set_verbosity(logging.ERROR)
    try:
        if _MODE.value == 'train':
            train.train_and_evaluate(_CONFIG.value, workdir)
        else:
            which = _CHECKPOINT.value
            which = int(which) if which.isdigit() else which
            evaluate.evaluate_workdir(_CONFIG.value, workdir, _SPLIT.value, which)
    except (InputError, train.NotFinite) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def _config_name() -> str:
    """configs/cityscapes.py:r50 -> cityscapes_r50."""
    path, *variant = config_flags.get_config_filename(flags.FLAGS['config']).split(':')
    return '_'.join([pathlib.Path(path).stem, *variant])


if __name__ == '__main__':
    app.run(main)
