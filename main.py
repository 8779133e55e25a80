"""Trains and evaluates: main.py --config=configs/street_scenes.py [--config.a.b=value ...]."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from ggcf_jax import config, doctor, evaluate, export, predict, serve, train
from ggcf_jax.distributed import processes
from ggcf_jax.errors import InputError

_SAVED = pathlib.Path(__file__).parent / 'configs' / 'from_workdir.py'

_CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='Configuration, e.g. configs/camvid.py.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run [runs/<config name>].')
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate', 'predict', 'export', 'serve', 'doctor'], 'What to do.'
)
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'To use: best, latest or a step.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'Several processes: host:port of process 0; asked of the launcher if none.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Several processes: how many.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Several processes: which this is, from 0.')
_START_TIMEOUT = flags.DEFINE_integer('start_timeout', 300, 'Seconds for all processes to appear.')
_PEER_TIMEOUT = flags.DEFINE_integer(
    'peer_timeout', 60, 'Seconds without a sign of life until a process counts as dead.'
)
_STALL_TIMEOUT = flags.DEFINE_integer(
    'stall_timeout', 1800, 'Seconds without progress until a process counts as stuck.'
)
_SPLIT = flags.DEFINE_string('split', 'validation', 'To evaluate: the split.')
_INPUT = flags.DEFINE_string('input', None, 'To predict: an image, a folder of images or a split.')
_OUTPUT = flags.DEFINE_string(
    'output', None, 'To predict: the folder of the results. To export: the file.'
)
_SIZES = flags.DEFINE_string('sizes', '', 'To export: HEIGHTxWIDTH of the images, with commas.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'To export: replace a file that is there.')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'To serve: address to listen on.')
_PORT = flags.DEFINE_integer('port', 8000, 'To serve: port to listen on, 0 for any.', 0, 65535)

# Modes that start from a trained model: their configuration is in its workdir.
_TRAINED = ('evaluate', 'predict', 'export', 'serve')


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _error(f'unexpected arguments {argv[1:]}; flags are written --name=value')
    if _CONFIG.value is None:
        return _error('--config is missing; try --config=configs/street_scenes.py')
    workdir = _WORKDIR.value or f'runs/{_config_name()}'
    which = int(_CHECKPOINT.value) if _CHECKPOINT.value.isdigit() else _CHECKPOINT.value
    logging.set_verbosity(logging.ERROR)  # what libraries tell would drown our own lines
    try:
        if _MODE.value == 'doctor':  # of this machine alone
            return 0 if doctor.examine(_CONFIG.value, workdir) else 1
        if _MODE.value == 'predict':
            if not (_INPUT.value and _OUTPUT.value):
                return _error('--input=PATH or --output=DIR is missing')
            paths = (_INPUT.value, _OUTPUT.value)
            return 0 if predict.predict(_CONFIG.value, workdir, which, *paths) else 1
        if _MODE.value == 'export':
            if not _OUTPUT.value:
                return _error('--output=FILE is missing')
            sizes = export.parse_sizes(_SIZES.value)
            export.export_workdir(
                _CONFIG.value, workdir, which, _OUTPUT.value, sizes, overwrite=_OVERWRITE.value
            )
        elif _MODE.value == 'serve':
            serve.serve_workdir(_CONFIG.value, workdir, which, _HOST.value, _PORT.value)
        else:
            with processes.joined(_launch()):
                if _MODE.value == 'train':
                    train.train_and_evaluate(_CONFIG.value, workdir)
                else:
                    evaluate.evaluate_workdir(_CONFIG.value, workdir, _SPLIT.value, which)
    except InputError as error:
        return _error(str(error))
    return 0


def _launch() -> processes.Launch:
    return processes.Launch(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        start_timeout=_START_TIMEOUT.value,
        peer_timeout=_PEER_TIMEOUT.value,
        stall_timeout=_STALL_TIMEOUT.value,
    )


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it ends in one line instead of a traceback."""
    path, workdir = _given(argv, 'config'), _given(argv, 'workdir')
    try:
        if path is None and workdir and _given(argv, 'mode') in _TRAINED:
            # What a run was started with is in its workdir.
            config.load(workdir)
            argv = [argv[0], f'--config={_SAVED}:{workdir}', *argv[1:]]
        elif path is not None and not pathlib.Path(path.split(':')[0]).is_file():
            raise InputError(f'--config={path}: there is no such file')
        return flags.FLAGS(argv)
    except InputError as error:
        sys.exit(_error(str(error)))
    except flags.Error as error:
        sys.exit(_error(f'{error}; see --help'))
    except AttributeError as error:  # ml_collections' word for a field that does not exist
        reason = str(error).strip('"\'').replace("\\'", "'").replace('\\n', '. ')
        sys.exit(_error(f'the configuration has no field {reason}'))


def _given(argv: list[str], flag: str) -> str | None:
    """The value of --flag=value or --flag value on the command line."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip('-').partition('=')
        if argument.startswith('-') and name == flag:
            return value if equals else ''.join(argv[i + 1 : i + 2])
    return None


def _config_name() -> str:
    """configs/cityscapes.py:r50 -> cityscapes_r50."""
    path, *variant = config_flags.get_config_filename(flags.FLAGS['config']).split(':')
    return '_'.join([pathlib.Path(path).stem, *variant])


def _error(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
