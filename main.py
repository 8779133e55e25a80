"""Trains, evaluates and uses segmentation networks.

python main.py --config=configs/street_scenes.py [--config.train.steps=500 ...]
python main.py --mode=predict --workdir=runs/street_scenes --input=IMAGES --output=FOLDER
"""

import gc
import sys

from ggcf_jax.distributed import host_memory, preemption

if __name__ == '__main__':
    if host_memory.is_for_cpu(sys.argv):
        host_memory.choose_allocator()
    preemption.install()  # before the imports, which take seconds
    gc.disable()  # what imports make stays: looking for garbage in it is a tenth of these seconds

import dataclasses
import pathlib
import traceback
from collections.abc import Callable
from logging import LogRecord

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from ggcf_jax import config as config_lib
from ggcf_jax import doctor, evaluate, export, places, predict, score, serve, train
from ggcf_jax.buckets import BucketError
from ggcf_jax.distributed import compile_cache, cpu_devices, platforms, processes
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import checkpoint_files
from ggcf_jax.workdir import config as workdir_config


@dataclasses.dataclass(frozen=True)
class Mode:
    """A value of `--mode`: a door of the package and how it is entered.

    Attributes:
        run: function of (configuration, workdir, flags) that does the work and returns the exit
            code. It reads from the flags what it needs (all flags are defined in this file) and
            raises `InputError` for what the user can cure.
        from_workdir: whether it starts from a trained model. Without --config it then takes the
            configuration that the training saved in the workdir.
        several_processes: whether the processes of a multi-host run work on it together.
        default: configuration file that is taken without --config.
    """

    run: Callable[[ConfigDict, pathlib.Path, flags.FlagValues], int]
    from_workdir: bool = False
    several_processes: bool = False
    default: pathlib.Path | None = None


_CONFIGS = pathlib.Path(__file__).parent / 'configs'
_FROM_WORKDIR = _CONFIGS / 'from_workdir.py'

MODES = {
    'train': Mode(train.run, several_processes=True),
    'evaluate': Mode(evaluate.run, from_workdir=True, several_processes=True),
    'predict': Mode(predict.run, from_workdir=True),
    'export': Mode(export.run, from_workdir=True),
    'serve': Mode(serve.run, from_workdir=True),
    'doctor': Mode(doctor.run),
    'score': Mode(score.run, default=_CONFIGS / 'folder.py'),
}


class _PathParser(flags.ArgumentParser):
    """Paths, with home directories for `~`; names of splits, which may stand there, stay."""

    syntactic_help = 'a path'

    def parse(self, argument: str) -> str:
        return str(places.expand(argument))


class _PathOrNoneParser(_PathParser):
    """Paths, and the empty text as it is."""

    def parse(self, argument: str) -> str:
        return super().parse(argument) if argument else ''


class _CheckpointParser(flags.ArgumentParser):
    """Step numbers as integers; `best` and `latest` as they are."""

    syntactic_help = 'best, latest or a step number'

    def parse(self, argument: str) -> str | int:
        return int(argument) if argument.isdigit() else argument


_CONFIG = config_flags.DEFINE_config_file(
    'config',
    help_string='Configuration file, such as configs/camvid.py or configs/cityscapes.py:r50.',
    lock_config=True,
)
_WORKDIR = flags.DEFINE(
    _PathParser(),
    'workdir',
    None,
    'Directory of the run (default: runs/ and the name of the configuration).',
)
_MODE = flags.DEFINE_enum('mode', 'train', list(MODES), 'What to do.')

_PLATFORM = flags.DEFINE_enum(
    'platform',
    '',
    list(platforms.PLATFORMS),
    'Devices to compute on: cpu, gpu or tpu (default: what JAX finds, but the CPU only where JAX '
    'is not installed for accelerators).',
)

flags.DEFINE(_CheckpointParser(), 'checkpoint', 'best', 'Checkpoint to use.')
flags.DEFINE_bool(
    'accept_changes',
    False,
    'train: go on with a run although its configuration, classes or number of images changed.',
)
flags.DEFINE_string(
    'split', 'validation', 'evaluate, score: split of the data set with the labels.'
)
flags.DEFINE(
    _PathParser(),
    'input',
    None,
    'predict: an image file, a folder of images, a video or a split of the data set. score: folder '
    'of predicted label files.',
)
flags.DEFINE(
    _PathParser(),
    'labels',
    None,
    'score: folder of label files (default: those of --split).',
)
flags.DEFINE(
    _PathParser(),
    'classes',
    None,
    'score: class file of --labels (default: classes.csv in or above it).',
)
flags.DEFINE(
    _PathParser(),
    'output',
    None,
    'predict: folder to write the results to. export, score: file to write.',
)
flags.DEFINE_string(
    'sizes',
    '',
    'export: comma-separated HEIGHTxWIDTH image sizes. serve: sizes to compile for at the start '
    '(default: those of the example pictures).',
)
flags.DEFINE_enum(
    'format',
    'programs',
    ['programs', 'onnx', 'folder', 'backbone'],
    'export: compiled programs in one file, an ONNX file, a folder that ggcf_jax.load reads, or '
    'the backbone as .safetensors with the names of PyTorch libraries.',
)
flags.DEFINE_string(
    'license', '', 'export: licence of the model, such as cc-by-4.0, as its card states it.'
)
flags.DEFINE_bool('overwrite', False, 'export: replace what --output names.')
flags.DEFINE_string('host', '127.0.0.1', 'serve: address to listen on.')
flags.DEFINE_list(
    'allow_host',
    [],
    'serve: comma-separated names that the page may be opened by, beside addresses and the '
    "machine's own name.",
)
flags.DEFINE_integer('port', 8000, 'serve: port to listen on; 0 picks a free one.', 0, 65535)

flags.DEFINE_enum(
    'log_format',
    'text',
    ['text', 'json'],
    'train: json prints the rows of metrics.jsonl as well, one JSON object a line, for logging '
    'services.',
)
_COMPILE_CACHE = flags.DEFINE(
    _PathOrNoneParser(),
    'compile_cache',
    None,
    'Folder, or path in a bucket, of compiled programs for later starts (default: '
    '$JAX_COMPILATION_CACHE_DIR or ~/.cache/ggcf_jax/compiled); empty for none.',
)

_COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'Multi-process runs: host:port of process 0 (default: ask the launcher).',
)
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'Multi-process runs: number of processes (default: ask the launcher).'
)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id',
    None,
    'Multi-process runs: index of this process, from 0 (default: ask the launcher).',
)
_START_TIMEOUT = flags.DEFINE_integer(
    'start_timeout', 300, 'Multi-process runs: seconds to wait for all processes to start.'
)
_PEER_TIMEOUT = flags.DEFINE_integer(
    'peer_timeout',
    60,
    'Multi-process runs: seconds without a heartbeat after which a process counts as dead.',
)
_STALL_TIMEOUT = flags.DEFINE_integer(
    'stall_timeout',
    1800,
    'Multi-process runs: seconds without progress after which a process counts as stuck.',
)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _error(f'unexpected arguments {argv[1:]}; flags are written --name=value')
    config = _CONFIG.value
    if config is None:
        return _error('--config is missing; try --config=configs/street_scenes.py')
    mode = MODES[_MODE.value]
    try:
        workdir = places.expand(_WORKDIR.value or f'runs/{_config_name()}')
    except InputError as error:
        return _error(str(error))
    logging.set_verbosity(logging.WARNING)  # what libraries inform about would drown ours
    logging.get_absl_logger().addFilter(_is_news)
    try:
        platforms.choose(_PLATFORM.value)
        compile_cache.enable(_COMPILE_CACHE.value)
        if not mode.several_processes:
            platforms.check()
            return mode.run(config, workdir, flags.FLAGS)
        cpus = None if processes.launched(_launch()) else _devices_of_cores(config)
        with processes.joined(_launch()):
            if (cpus or 1) > 1 and jax.default_backend() == 'cpu':
                print(f'{cpus} CPU devices to share the images of a batch (docs/pods.md)')
            processes.agree(_own_values(config, workdir))
            return mode.run(config, workdir, flags.FLAGS)
    except (InputError, BucketError) as error:
        return _error(str(error))


def _is_news(record: LogRecord) -> bool:
    """Whether a line of a library tells something: to TFDS, every data set here is custom."""
    message = record.getMessage()
    is_custom = message.startswith('Using custom data configuration')
    return not is_custom and checkpoint_files.TOLD_TWICE not in message


def _devices_of_cores(config: ConfigDict) -> int | None:
    """Makes CPU devices as far as the batches of the configuration divide; returns their number."""
    if config.mesh.space != 1 or min(config.train.accumulate, config.eval.batch_size) < 1:
        return None
    images = config.train.batch_size // config.train.accumulate
    return cpu_devices.one_a_core((images, config.eval.batch_size))


# What the processes of a run may be started with in ways of their own.
_OF_ONE_PROCESS = (
    'data.manual_dir', 'data.data_dir', 'data.threads', 'data.workers', 'data.cache_mib',
)  # fmt: skip


def _own_values(config: ConfigDict, workdir: pathlib.Path) -> dict[str, str]:
    """What every process of a run has to be started with alike, as text by its flag."""
    values = {
        f'config.{name}': repr(config_lib.get(config, name))
        for name in config_lib.fields(config)
        if name not in _OF_ONE_PROCESS
    }
    names = ('mode', 'checkpoint', 'split', 'accept_changes')
    given = {name: repr(flags.FLAGS[name].value) for name in names}
    return values | given | {'workdir': str(workdir)}


def _launch() -> processes.Launch:
    return processes.Launch(
        coordinator=_COORDINATOR.value,
        count=_NUM_PROCESSES.value,
        index=_PROCESS_ID.value,
        start_timeout=_START_TIMEOUT.value,
        peer_timeout=_PEER_TIMEOUT.value,
        stall_timeout=_STALL_TIMEOUT.value,
    )


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it ends in one line instead of a traceback."""
    path = None
    mode = MODES.get(_given(argv, 'mode') or '')
    try:
        argv = _with_expanded_config(argv)
        path, workdir = _given(argv, 'config'), _given(argv, 'workdir')
        if path is None and workdir and mode and mode.from_workdir:
            there = places.expand(workdir, '--workdir')
            workdir_config.load(there)  # config_flags would show a traceback of what is wrong
            argv = [argv[0], f'--config={_FROM_WORKDIR}:{there}', *argv[1:]]
        elif path is None and mode and mode.default:
            argv = [argv[0], f'--config={mode.default}', *argv[1:]]
        elif path is not None and not pathlib.Path(path.split(':')[0]).is_file():
            raise InputError(f'--config={path}: there is no such file')
        return flags.FLAGS(argv)
    except (InputError, BucketError) as error:
        sys.exit(_error(str(error)))
    except flags.Error as error:
        sys.exit(_error(f'{error}; see --help'))
    except (TypeError, ValueError, SyntaxError, OverflowError) as error:
        if _raised_in(error, path):
            raise
        sys.exit(_error(f'a value of --config. cannot be read: {error}; see --help'))
    except AttributeError as error:  # what ml_collections raises for a field that does not exist
        reason = str(error).strip('"\'').replace("\\'", "'").replace('\\n', '. ')
        sys.exit(_error(f'the configuration has no field {reason}'))


def _raised_in(error: BaseException, path: str | None) -> bool:
    """Whether an exception comes from code of the configuration file: a bug of its own."""
    file = pathlib.Path((path or '').split(':')[0]).name
    frames = traceback.extract_tb(error.__traceback__)
    return any(pathlib.Path(frame.filename).name == file for frame in frames)


def _with_expanded_config(argv: list[str]) -> list[str]:
    """The command line with the home directory for a `~` that --config begins with."""
    path = _given(argv, 'config')
    if path is None or not path.startswith('~'):
        return argv
    expanded = str(places.expand(path, '--config'))
    ours = (path, f'config={path}')
    return [
        each.removesuffix(path) + expanded if each.lstrip('-') in ours else each for each in argv
    ]


def _given(argv: list[str], flag: str) -> str | None:
    """Returns the value of --flag=value or --flag value on the command line."""
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
    gc.freeze()
    gc.enable()
    app.run(main, flags_parser=parse_flags)
