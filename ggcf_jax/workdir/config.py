"""`config.json`: the configuration of a run, saved beside its results, read back and compared."""

import dataclasses
import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from ggcf_jax import atomic, json_files, places
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError

FILE_NAME = 'config.json'

_T = TypeVar('_T')

# An absolute path in a text, and its last name.
_ABSOLUTE = re.compile(r'(?<![^,\s])[/~][^,]*?([^,/]*)(?=,|$)')

# Key of the saved file: field -> type, for the fields that are None.
_PLACEHOLDERS = 'placeholders'
_TYPES = {kind.__name__: kind for kind in (str, int, float, bool, tuple)}

# Key of the saved file: the changes that were accepted while the run went on (`Segment`).
_SEGMENTS = 'segments'

# Fields that may differ when a run is resumed: none of them changes what is trained.
MAY_DIFFER = frozenset(
    {
        # Where the data are and how they are read.
        'data.manual_dir', 'data.data_dir', 'data.threads', 'data.workers', 'data.cache_mib',
        # How the devices share the work, and what they compute twice to save memory.
        'mesh.space', 'train.remat', 'model.attention',
        # When something is written, and when training gives up.
        'train.log_every', 'train.eval_every', 'train.checkpoint_every', 'train.max_skipped',
        'train.patience', 'train.gradient_norms',
        # How the images of an evaluation are grouped, and what is shown of it.
        'eval.batch_size', 'eval.size_multiple', 'eval.max_sizes',
        # What the start says.
        'model.backbone.expected_weights',
        'eval.panels', 'eval.worst', 'eval.metrics', 'eval.boundary',
        # What is measured on the way.
        'train.profile', 'train.validation_loss',
        # How what is trained is evaluated.
        'eval.window', 'eval.stride', 'eval.windows_at_once', 'eval.scales', 'eval.flip',
        'eval.average', 'eval.pruning', 'predict.overlays', 'predict.probabilities',
        'predict.label_ids', 'predict.max_side', 'predict.frames',
        # What only the first start reads: later ones read a checkpoint.
        'model.backbone.weights', 'train.start_from',
    }
)  # fmt: skip

# Sections of fields that one context module alone reads, or code of another package.
_CONTEXT_SECTIONS = {
    'model.psp.': 'psp',
    'model.non_local.': 'nonlocal',
    'model.isa.': 'isa',
    'model.ccnet.': 'ccnet',
}

# Fields of `model` that change how a network is trained or computed, but not which network it is.
_OF_TRAINING = (
    'model.dropout', 'model.attention', 'model.backbone.statistics', 'model.backbone.weights',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a run that was trained with other values than the part before.

    Attributes:
        step: step after which it begins.
        changes: dotted name -> (value before, value in this segment).
    """

    step: int
    changes: Mapping[str, tuple[Any, Any]]


def save(config: ConfigDict, workdir: pathlib.Path, segments: Sequence[Segment] = ()) -> None:
    """Writes `config.json` into the workdir, atomically.

    Args:
        config: configuration of the run, or of its latest segment.
        workdir: directory of the run, made if missing.
        segments: the changes since the run was started, in the order of their steps.
    """
    atomic.write(places.expand(workdir) / FILE_NAME, to_text(config, segments).encode())


def to_text(config: ConfigDict, segments: Sequence[Segment] = ()) -> str:
    """Returns what `save` writes.

    Args:
        config: configuration of the run, or of its latest segment.
        segments: the changes since the run was started, in the order of their steps.
    """
    saved = _plain(config) | {_PLACEHOLDERS: _placeholders(config)}
    if segments:
        saved[_SEGMENTS] = [dataclasses.asdict(segment) for segment in segments]
    return json.dumps(saved, indent=2)


def from_text(text: str) -> ConfigDict:
    """Returns the configuration that `to_text` wrote.

    Args:
        text: content of a `config.json`.

    Raises:
        ValueError: it is not one.
    """
    return _parse(text)[0]


@functools.cache  # a configuration is read more than once: every line is printed once
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)


def load(workdir: str | pathlib.Path, report: Callable[[str], None] = _print_once) -> ConfigDict:
    """Reads the configuration of a run, equal to the one that it was started with.

    Fields that did not exist yet when the run was started get their default. Fields that do not
    exist in `ggcf_jax.config.default()` are kept, for code outside of this package that reads them.

    Args:
        workdir: directory of the run.
        report: is called with one line that names the fields that were completed, and with one
            that names unknown fields. By default each line is printed once to stderr.

    Raises:
        InputError: there is no `config.json`, or it is damaged.
    """
    path = places.expand(workdir) / FILE_NAME
    config, missing, unknown = _read(workdir, _parse)
    if missing:
        report(f'{path} is from an older version; defaults are taken for {_list(missing)}')
    if unknown:
        report(
            f'{path} has fields that ggcf_jax does not know: {_list(unknown)}; unless code of your '
            'own reads them, use the version that started the run (see run.json)'
        )
    return config


def portable(config: ConfigDict) -> ConfigDict:
    """Returns a configuration without the directories of the machine that it was used on.

    Fields that name a place there are empty; of any other absolute path the last name is left.

    Args:
        config: configuration of a run.
    """
    copy = from_text(to_text(config))
    with copy.unlocked():
        for name in config_lib.fields(copy):
            *sections, field = name.split('.')
            section = config_lib.get(copy, '.'.join(sections)) if sections else copy
            value = section[field]
            if name in config_lib.PLACES:
                section[field] = None
            elif isinstance(value, str):
                section[field] = _ABSOLUTE.sub(r'\1', value)
            elif isinstance(value, tuple):
                section[field] = tuple(
                    _ABSOLUTE.sub(r'\1', x) if isinstance(x, str) else x for x in value
                )
    return copy


def segments(workdir: pathlib.Path) -> tuple[Segment, ...]:
    """Reads the changes since a run was started, in the order of their steps.

    Args:
        workdir: directory of the run.

    Raises:
        InputError: there is no `config.json`, or it is damaged.
    """
    return _read(workdir, _parse_segments)


def check_model(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a network other than the one the run was trained with.

    Heads, dilations and the like may differ although every array of the checkpoint fits.

    Args:
        config: configuration that is about to be used with a checkpoint of the run.
        workdir: directory of the run.

    Raises:
        InputError: names every field of `model` that differs; or `workdir` is not one of a run.
    """
    differences = _describe(
        load(workdir),
        config,
        belongs_to_network,
    )
    if differences:
        raise InputError(
            f'the run in {str(workdir)!r} was trained with another network:{differences}\n'
            'use its configuration: leave --config out, or correct these fields'
        )


def belongs_to_network(name: str) -> bool:
    """Whether a field says which network it is: parameters of another one cannot be used.

    Args:
        name: dotted name of a field.
    """
    return name.startswith('model.') and name not in _OF_TRAINING


def differing(a: ConfigDict, b: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (value in a, value in b) for every field that differs; None where missing."""
    flat_a, flat_b = _flatten(_plain(a)), _flatten(_plain(b))
    return {
        name: (flat_a.get(name), flat_b.get(name))
        for name in sorted({*flat_a, *flat_b})
        if flat_a.get(name) != flat_b.get(name)
    }


def _describe(saved: ConfigDict, given: ConfigDict, matters: Callable[[str], bool]) -> str:
    """A line for each field that matters and differs, each after a line break."""
    return ''.join(
        f'\n  {name}: {old!r} there, {new!r} now'
        for name, (old, new) in differing(saved, given).items()
        if matters(name) and is_read(name, given)
    )


def is_read(name: str, config: ConfigDict) -> bool:
    """Whether anything of this configuration's network reads a field.

    The modules that it does not have may be of another size in a newer version of its recipe.

    Args:
        name: dotted name of a field.
        config: configuration that may read it.
    """
    for section, context in _CONTEXT_SECTIONS.items():
        if name.startswith(section):
            return config.model.context == context or ':' in config.model.context
    return True


def _read(workdir: str | pathlib.Path, parse: Callable[[bytes], _T]) -> _T:
    path = places.expand(workdir) / FILE_NAME
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f'{workdir} is not the workdir of a run: it has no {FILE_NAME}') from error
    except ValueError as error:
        raise InputError(f'{path} is damaged ({error}); restore it or start a new run') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _parse_segments(text: bytes) -> tuple[Segment, ...]:
    """Returns the segments that `save` wrote; older files have none.

    Raises:
        ValueError: the text is not what `save` writes.
    """
    saved = json_files.parse_object(text)
    found = []
    listed = saved.get(_SEGMENTS, [])
    if not isinstance(listed, list):
        raise ValueError(f'{_SEGMENTS!r} is {listed!r:.40} instead of a list')
    for each in listed:
        try:
            changes = {name: (before, now) for name, (before, now) in each['changes'].items()}
            found.append(Segment(int(each['step']), changes))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{_SEGMENTS!r} holds {each!r:.40}') from error
    return tuple(found)


def _parse(text: str | bytes) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Returns the configuration, the fields that it got by default, and the unknown ones.

    Raises:
        ValueError: the text is not what `save` writes.
    """
    saved = json_files.parse_object(text)
    saved.pop(_SEGMENTS, None)
    kinds = saved.pop(_PLACEHOLDERS, None)
    if not isinstance(kinds, dict):
        raise ValueError(f'it has no entry {_PLACEHOLDERS!r} with the types of empty fields')
    config = config_lib.default()
    missing = {name: config_lib.get(config, name) for name in config_lib.fields(config)}
    unknown = {}
    for name, value in _flatten(saved).items():
        if name not in missing:
            unknown[name] = value
        missing.pop(name, None)
        with config.unlocked():
            _set(config, name, value, kinds)
    return config, missing, unknown


def _set(config: ConfigDict, name: str, value: Any, kinds: Mapping[str, str]) -> None:
    """Sets a field to a value of the saved file; `kinds` has the types of those that are None."""
    *parents, last = name.split('.')
    for parent in parents:
        if parent not in config:
            config[parent] = ConfigDict()
        config = config[parent]
        if not isinstance(config, ConfigDict):
            raise ValueError(f'{name}: {parent} is not a section but a field')
    if value is None:
        kind = kinds.get(name)
        if not isinstance(kind, str) or kind not in _TYPES:
            raise ValueError(f'{name} is empty and of the unknown type {kind!r}')
        value = config_dict.placeholder(_TYPES[kind])
    try:
        config[last] = _tuples(value)
    except (TypeError, OverflowError) as error:
        value = None if isinstance(value, config_dict.FieldReference) else value
        expected = config.get_type(last).__name__
        raise ValueError(f'{name}={value!r:.60} is not of type {expected}') from error


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def _types_of_empty(config: ConfigDict, prefix: str = '') -> dict[str, type]:
    """Dotted name -> type of the fields that are None."""
    found: dict[str, type] = {}
    for name in config:
        if isinstance(config[name], ConfigDict):
            found |= _types_of_empty(config[name], f'{prefix}{name}.')
        elif config[name] is None:
            found[prefix + name] = config.get_type(name)
    return found


def _placeholders(config: ConfigDict, prefix: str = '') -> dict[str, str]:
    found: dict[str, str] = {}
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            found |= _placeholders(value, f'{prefix}{name}.')
        elif value is None:
            kind = config.get_type(name)
            if kind is type(None):  # a copy by ml_collections has forgotten it
                kind = _types_of_empty(config_lib.default()).get(prefix + name, str)
            found[prefix + name] = kind.__name__
    return found


def _tuples(value: Any) -> Any:
    """JSON has no tuples; our configurations have no lists."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _list(fields: Mapping[str, Any]) -> str:
    return ', '.join(f'{name}={value!r}' for name, value in fields.items())
