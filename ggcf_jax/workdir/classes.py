"""`classes.json`: the classes that a run was trained on, and what else of its data it depends on.

Prediction needs their names and colours, but not the data set. A start is compared with names,
colours, label values, and number and content of the training images and labels, which no field of
the configuration holds.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ggcf_jax import atomic, data, json_files, places
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError

FILE_NAME = 'classes.json'

# Name under which `changes` has the number of classes.
NUMBER = 'number of classes'

_SAMPLES = 32  # records of a split whose content is compared, whatever else is known of it


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes in train-id order.

    Attributes:
        names: name of each class.
        colors: RGB of each class, 0 to 255.
        ids: value of each class in the label files of the data set; () if these are the train ids,
            or if an older run did not save them.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...] = ()


def save(dataset: Dataset, workdir: pathlib.Path, training_splits: Sequence[str] = ()) -> None:
    """Writes `classes.json` into the workdir.

    Args:
        dataset: data set of the run.
        workdir: directory of the run.
        training_splits: names of the splits that the run is trained on.
    """
    content = _content(dataset, training_splits)
    atomic.write(workdir / FILE_NAME, json.dumps(content).encode())


def of_run(config: ConfigDict, workdir: pathlib.Path) -> Classes:
    """Reads the classes of a run; for a run that did not save them, takes those of its data set.

    Args:
        config: configuration of the run.
        workdir: directory of the run.

    Raises:
        InputError: the file is damaged; or there is none, and the data set cannot be built.
    """
    saved = _load(workdir)
    if saved is None:
        dataset = data.build(config.data)
        return Classes(dataset.classes, dataset.colors, dataset.ids)
    return _parse(saved)


def to_text(config: ConfigDict, workdir: pathlib.Path) -> str:
    """Returns the content of `classes.json` of a run, for a copy of its model elsewhere.

    Args:
        config: configuration of the run.
        workdir: directory of the run.

    Raises:
        InputError: the file is damaged; or there is none, and the data set cannot be built.
    """
    saved = _load(workdir)
    if saved is None:
        saved = _content(data.build(config.data), ())
    return json.dumps(saved)


def changes(
    dataset: Dataset, workdir: pathlib.Path, training_splits: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Compares a data set with the one that a run was trained on.

    Args:
        dataset: data set that the run would go on with.
        workdir: directory of the run. What an older version did not save is not compared.
        training_splits: names of the splits that are trained on.

    Returns:
        What changed -> (value there, value now): names, label values and colours of classes, values
        that are ignored, and the number of images of each of the splits, or their content.

    Raises:
        InputError: `classes.json` is damaged.
    """
    saved = _load(workdir)
    if saved is None:
        return {}
    now = _content(dataset, training_splits)
    if len(saved['names']) != len(now['names']):
        before, after = (f'{len(x["names"])} ({", ".join(x["names"])})' for x in (saved, now))
        return {NUMBER: (before, after)}
    found: dict[str, tuple[Any, Any]] = {}
    for what, key in (('name', 'names'), ('label values', 'label_values'), ('color', 'colors')):
        found |= _by_class(what, saved.get(key), now[key], now['names'])
    ignored = saved.get('ignored')
    if None not in (ignored, now['ignored']) and ignored != now['ignored']:
        found['ignored label values'] = (ignored, now['ignored'])
    for split, count in now['images'].items():
        before = saved.get('images', {}).get(split, count)
        if before != count:
            found[f'number of images of {split}'] = (before, count)
            continue
        content = saved.get('contents', {}).get(split, {})
        for kind, digest in now['contents'][split].items():
            if content.get(kind, digest) != digest:
                found[f'content of the images and labels of {split}'] = (content[kind], digest)
    return found


def check_meaning(
    dataset: Dataset, workdir: pathlib.Path, *, same_files: bool, purpose: str
) -> None:
    """Refuses to compare predictions of a run with labels of other classes.

    Args:
        dataset: data set with the labels.
        workdir: directory of the run.
        same_files: whether the labels are those of the run's own data set, so that their values
            must mean what they meant in training.
        purpose: what the labels are for; completes "cannot be ...".

    Raises:
        InputError: a class has another name or, in the same files, other label values.
    """
    found = {
        name: change
        for name, change in changes(dataset, workdir).items()
        if name == NUMBER or name.startswith('name of') or (same_files and 'label values' in name)
    }
    if found:
        lines = [f'\n  {name}: {old!r} there, {new!r} now' for name, (old, new) in found.items()]
        raise InputError(
            f'data set {dataset.name!r} cannot be {purpose} by the run in {str(workdir)!r}, which '
            f'was trained on other classes:{"".join(lines[:12])}\ncorrect the class file of the '
            'data set; order, names and label values must be those of the run'
        )


def _by_class(
    what: str, saved: Sequence[Any] | None, now: Sequence[Any] | None, names: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """The classes of which something changed; nothing where either does not say."""
    if saved is None or now is None:
        return {}
    return {
        f'{what} of class {index} ({names[index]})': (old, new)
        for index, (old, new) in enumerate(zip(saved, now))
        if old != new
    }


def _content(dataset: Dataset, training_splits: Sequence[str]) -> dict[str, Any]:
    """What `save` writes of a data set."""
    label_map = getattr(dataset.decoder, 'label_map', None)
    values: list[list[int]] | None = None
    ignored: list[int] | None = None
    if isinstance(label_map, np.ndarray):  # a decoder outside of this package need not have one
        values = [np.flatnonzero(label_map == c).tolist() for c in range(dataset.num_classes)]
        ignored = np.flatnonzero(label_map == IGNORE).tolist()
    return {
        'dataset': dataset.name,
        'names': list(dataset.classes),
        'colors': [list(color) for color in dataset.colors],
        'ids': list(dataset.ids),
        'label_values': values,
        'ignored': ignored,
        'images': {split: len(dataset.source(split)) for split in training_splits},
        'contents': {split: _contents(dataset, split) for split in training_splits},
    }


def _contents(dataset: Dataset, split: str) -> dict[str, str]:
    """Digests of the images and labels of a split by their kind; equal kinds can be compared.

    That of the files that the records were made from sees every change. It need not be known, and
    not in the same way as it was; some of the records are therefore read as well.
    """
    source = dataset.source(split)
    count = len(source)
    some = np.unique(np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)) if count else ()
    digest = hashlib.sha256()
    for index in some:
        record = source[int(index)]
        for part in (
            record['name'].encode(errors='surrogateescape'),
            record['image'],
            record.get('label', b''),
        ):
            digest.update(hashlib.sha256(part).digest())
    kind, _, value = getattr(source, 'made_from', '').partition(':')
    return {'records': digest.hexdigest()[:16]} | ({kind: value} if value else {})


def _load(workdir: pathlib.Path) -> Mapping[str, Any] | None:
    """The content of the file, None if there is none."""
    path = places.expand(workdir) / FILE_NAME
    try:
        content = json_files.parse_object(path.read_bytes())
        _parse(content)
        _check_record(content)
        return content
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f'{path} is damaged ({error}); delete it to use the data set') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _check_record(content: Mapping[str, Any]) -> None:
    """Raises ValueError for what `changes` compares and `save` does not write."""
    count = len(content['names'])
    full = {'label_values': None, 'ignored': None, 'images': {}, 'contents': {}} | dict(content)
    json_files.need(
        full,
        'label_values',
        lambda value: value is None or (json_files.is_list(value, _is_ids) and len(value) == count),
        f'a list of {count} lists of label values',
    )
    json_files.need(full, 'ignored', lambda x: x is None or _is_ids(x), 'a list of label values')
    json_files.need(
        full,
        'images',
        lambda value: isinstance(value, dict) and all(map(json_files.is_count, value.values())),
        'a number of images for each split',
    )
    json_files.need(
        full,
        'contents',
        lambda x: (
            isinstance(x, dict)
            and all(json_files.is_mapping(y, json_files.is_text) for y in x.values())
        ),
        'an object of digests for each split',
    )


def _parse(content: Mapping[str, Any]) -> Classes:
    """Raises ValueError for classes that `save` does not write."""
    names = json_files.need(
        content,
        'names',
        lambda value: json_files.is_list(value, lambda x: json_files.is_text(x) and x),
        'a list of names',
    )
    if not 0 < len(set(names)) == len(names) <= NOT_ALLOWED:
        raise ValueError(f'names are {len(names)}, not 1 to {NOT_ALLOWED} different ones')
    colors = json_files.need(
        content,
        'colors',
        lambda value: json_files.is_list(value, json_files.is_color) and len(value) == len(names),
        f'a list of {len(names)} colours [red, green, blue] in 0..255',
    )
    ids = json_files.need(
        {'ids': []} | dict(content),
        'ids',
        lambda value: _is_ids(value) and len(value) in (0, len(names)),
        f'a list of {len(names)} different label values in 0..65535',
    )
    return Classes(tuple(names), tuple(map(tuple, colors)), tuple(ids))


def _is_ids(value: Any) -> bool:
    return json_files.is_list(value, _is_id) and len(set(value)) == len(value)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**16
