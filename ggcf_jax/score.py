"""Scores of label files against ground truth, without a model: read it from top to bottom."""

import json
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl.flags import FlagValues
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from ggcf_jax import atomic, data, places
from ggcf_jax.data.datasets import class_file, pairing
from ggcf_jax.data.datasets.pairing import LABELS
from ggcf_jax.data.records import finder, staging
from ggcf_jax.data.records.codec import IGNORE, FileDecoder
from ggcf_jax.data.records.dataset import Decoder, identity_label_map
from ggcf_jax.display.console import Progress, class_table, metrics_line
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.evaluation.boundary import BoundaryCounts
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.prediction import outputs

_SERVER_SUFFIX = '_labelIds'  # of files for the Cityscapes server
_SHOWN = 5  # names in a message

Labels = Callable[[], UInt8[np.ndarray, 'h w']]


class Truth(NamedTuple):
    """What predictions are compared with.

    Attributes:
        name: name of the split or folder.
        classes: class names in train-id order.
        categories: category of each class, or ().
        labels: name of each image -> function that reads its train ids.
        decoder: decodes predictions that have no class file.
    """

    name: str
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    labels: dict[str, Labels]
    decoder: Decoder


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=score`: reads `--input`, `--labels`, `--classes`, `--split`, `--output`."""
    if not flags.input:
        raise InputError('--input=DIR is missing: the folder of the predicted label files')
    output = places.expand(flags.output, '--output') if flags.output else None
    if output is not None:
        if output.is_dir():
            raise InputError(f'--output={flags.output} is a folder; give the name of a file')
        places.check_writable(output.parent, '--output')
    predictions = staging.local(flags.input, '--input')
    if not predictions.is_dir():
        raise InputError(f'--input={flags.input} is not a folder')
    table = staging.local(flags.classes, '--classes') if flags.classes else None
    if flags.labels:
        labels = staging.local(flags.labels, '--labels')
        ignore, form = tuple(config.data.ignore), config.data.label_form
        truth = of_folder(labels, table, predictions, ignore, form)
    else:
        truth = of_split(config, flags.split)
    evaluation = score(config, predictions, truth)
    if output is not None:
        with places.writing(output, '--output'):
            atomic.write(output, json.dumps(_content(evaluation, truth)).encode())
    return 0


def of_folder(
    labels: pathlib.Path,
    table: pathlib.Path | None,
    predictions: pathlib.Path,
    ignore: tuple[int, ...],
    label_form: str,
) -> Truth:
    """The label files of a folder, searched recursively.

    Args:
        labels: folder of label files.
        table: class file as the data set 'folder' reads it; None for `classes.csv` in the folder of
            the labels, the one above it, or that of the predictions.
        predictions: folder of the predictions.
        ignore: label values that do not count, `config.data.ignore`.
        label_form: what the labels hold, `config.data.label_form`.

    Raises:
        InputError: no such folder, no labels or no class file in it, or a damaged one.
    """
    if not labels.is_dir():
        raise InputError(f'--labels={labels} is not a folder')
    if table is None:
        places = (labels, labels.parent, predictions, predictions.parent)
        found = [place / outputs.CLASS_FILE for place in places]
        table = next((path for path in found if path.is_file()), None)
        if table is None:
            raise InputError(
                f'--classes=FILE is missing, and there is no {outputs.CLASS_FILE} in {labels}, in '
                'the folder above it or beside the predictions; configs/folder.py shows one'
            )
    elif not table.is_file():
        raise InputError(f'--classes={table}: there is no such file')
    classes = class_file.read(table, ignore)
    decoder = FileDecoder(classes.label_map, classes.label_colors, label_form)
    files = _label_files(labels)
    if not files:
        raise InputError(f'--labels={labels}: no files with one of {", ".join(LABELS)}')
    return Truth(
        labels.name,
        classes.names,
        (),
        {name: _reader(path, decoder) for name, path in files.items()},
        decoder,
    )


def of_split(config: ConfigDict, split: str) -> Truth:
    """The labels of a split of the configuration's data set.

    Args:
        config: configuration; reads `data`.
        split: name of the split.

    Raises:
        InputError: no such split, or one without labels.
    """
    dataset = data.build(config.data)
    source = dataset.source(split)
    dataset.check_labeled(split, 'scored')
    names = [source[i]['name'] for i in range(len(source))]
    if len(set(names)) < len(names):
        raise InputError(
            f'--split={split}: {len(names) - len(set(names))} images have the name of another; '
            'give the folder of their labels with --labels'
        )

    def reader(index: int) -> Labels:
        return lambda: dataset.decode_label(source[index])

    return Truth(
        f'{dataset.name} {split}',
        dataset.classes,
        dataset.categories,
        {name: reader(i) for i, name in enumerate(names)},
        FileDecoder(identity_label_map(dataset.num_classes, IGNORE)),
    )


def score(config: ConfigDict, predictions: pathlib.Path, truth: Truth) -> Evaluation:
    """Compares a folder of label files with ground truth, and prints the scores.

    A `classes.csv` beside the predictions, as `--mode=predict` writes it, says what their values
    mean; its classes must have the names of the ground truth's. Without one the values mean what
    they mean in the label files, or, for a split, train ids.

    Args:
        config: configuration; reads `eval.metrics`, `eval.boundary` and `data.threads`.
        predictions: folder of label files, searched recursively; or the output of
            `--mode=predict`, of which `labels` is taken.
        truth: what they are compared with.

    Raises:
        InputError: a label without a prediction, sizes that differ, or a value that is no class.
    """
    shown = metrics.METRICS | metrics.build(config)
    if (predictions / outputs.KEY_FILE).is_file():
        predictions /= 'labels'
    decoder = _decoder(predictions, truth)
    pairs = _pairs(predictions, truth)
    count = len(truth.classes)

    def compare(name: str) -> tuple[Int[np.ndarray, 'classes classes'], BoundaryCounts | None]:
        label, prediction = truth.labels[name](), _reader(pairs[name], decoder)()
        if label.shape != prediction.shape:
            raise InputError(
                f'{pairs[name]} is {_size(prediction)}, the label of {name} is {_size(label)}'
            )
        unknown = int(((prediction == IGNORE) & (label != IGNORE)).sum())
        if unknown:
            raise InputError(
                f'{pairs[name]}: {unknown} labelled pixels are predicted as no class; every '
                'labelled pixel needs one'
            )
        near = BoundaryCounts(count, config.eval.boundary) if config.eval.boundary else None
        if near is not None:
            near.add(label, prediction)
        return metrics.confusion_matrix(label, prediction, count, IGNORE), near

    matrix = np.zeros((count, count), np.int64)
    total = BoundaryCounts(count, config.eval.boundary) if config.eval.boundary else None
    with (
        ThreadPoolExecutor(config.data.threads) as pool,
        Progress() as progress,
        progress.working('score', 'scored', len(pairs), truth.name) as advance,
    ):
        for counts, near in pool.map(compare, pairs):
            matrix += counts
            if total is not None and near is not None:
                total.intersection += near.intersection
                total.union += near.union
            advance(1)
        evaluation = Evaluation(
            truth.name,
            truth.classes,
            truth.categories,
            matrix,
            metrics=shown,
            boundary=total,
        )
        columns = {'IoU': evaluation.iou, **evaluation.per_class}
        progress.print(class_table(truth.classes, columns, evaluation.miou))
        if truth.categories:
            progress.print(f'mean category IoU {evaluation.category_miou:.4f}')
        progress.print(metrics_line(evaluation.scores))
    return evaluation


def _pairs(predictions: pathlib.Path, truth: Truth) -> dict[str, pathlib.Path]:
    """The predicted label file of every label, by its name."""
    found = _label_files(predictions)
    pairs = {
        name: found[key]
        for name in truth.labels
        for key in (name, f'{name}{_SERVER_SUFFIX}')
        if key in found
    }
    alone = sorted(truth.labels.keys() - pairs.keys())
    if alone:
        raise InputError(
            f'{len(alone)} of {len(truth.labels)} labels have no prediction in {predictions}, '
            f'such as {", ".join(alone[:_SHOWN])}; a prediction has the name of its image and .png'
        )
    others = sorted(set(found.values()) - set(pairs.values()))
    if others:
        names = ', '.join(str(path.relative_to(predictions)) for path in others[:_SHOWN])
        print(f'left out: {len(others)} files that no label has the name of, among them {names}')
    return pairs


def _decoder(predictions: pathlib.Path, truth: Truth) -> Decoder:
    """Decodes predictions to train ids of the ground truth."""
    places = (predictions, predictions.parent)
    paths = [place / outputs.CLASS_FILE for place in places]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return truth.decoder
    own = class_file.read(path, ())
    if set(own.names) != set(truth.classes):
        differing = sorted(set(own.names) ^ set(truth.classes))
        raise InputError(
            f'{path} has other classes than the labels; {len(differing)} are only in one of them, '
            f'among them {", ".join(map(repr, differing[:_SHOWN]))}'
        )
    # IGNORE and NOT_ALLOWED stay what they are.
    to_truth = np.arange(256, dtype=np.uint8)
    to_truth[: len(own.names)] = [truth.classes.index(name) for name in own.names]
    colors = {color: int(to_truth[index]) for color, index in own.label_colors.items()}
    return FileDecoder(to_truth[own.label_map], colors)


def _label_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The label files below a folder by their name without extension; hidden ones are left out."""
    return pairing.by_stem(finder.find(root, LABELS).files, root)


def _reader(path: pathlib.Path, decoder: Decoder) -> Labels:
    def read() -> UInt8[np.ndarray, 'h w']:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(str(error)) from error
        return decoder.label(content, str(path))

    return read


def _size(labels: np.ndarray) -> str:
    return f'{labels.shape[0]} x {labels.shape[1]}'


def _content(evaluation: Evaluation, truth: Truth) -> dict:
    """What is written to `--output`."""
    values = {'miou': evaluation.miou, **evaluation.scores}
    return {
        'labels': truth.name,
        'images': len(truth.labels),
        'classes': evaluation.classes,
        'matrix': evaluation.matrix.tolist(),
        'metrics': {name: None if x != x else x for name, x in values.items()},
        'iou': evaluation.iou,
        'per_class': evaluation.per_class,
        'category_iou': evaluation.category_iou,
    }
