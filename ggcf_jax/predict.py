"""Predictions of images as files, with a trained model: read it from top to bottom."""

import contextlib
import functools
import hashlib
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from absl.flags import FlagValues
from jaxtyping import Int32, UInt8
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import data, places
from ggcf_jax.data.records import staging
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.prediction import batches, code, large_images, outputs, video
from ggcf_jax.prediction import inputs as prediction_inputs
from ggcf_jax.prediction.batches import Job, Prediction
from ggcf_jax.prediction.inputs import Input
from ggcf_jax.prediction.ledger import Entry, Ledger
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.checkpoints import Which
from ggcf_jax.workdir.classes import Classes
from ggcf_jax.workdir.model import TrainedModel

_SERVER_SUFFIX = '_labelIds'  # the Cityscapes server asks for <city>_<sequence>_<frame>*.png


class _Stopped(Exception):
    """The machine asks this process to stop."""


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=predict`: reads `--input`, `--output` and `--checkpoint`."""
    if not (flags.input and flags.output):
        raise InputError('--input=PATH or --output=DIR is missing')
    complete = predict(config, workdir, flags.checkpoint, flags.input, flags.output)
    return 0 if complete else 1


def predict(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    checkpoint: Which,
    source: str,
    output: str | pathlib.Path,
) -> bool:
    """Predicts images and writes labels, overlays and probabilities into a folder.

    Results that exist are not computed again if their image and the code are still the same, and
    every file is written atomically, so that an interrupted prediction can be resumed. Files are
    turned as their EXIF orientation says, images of a split are not. An image that cannot be used
    is reported and has no results.

    Args:
        config: configuration of the run; `eval` says how images are predicted, `predict` what is
            written.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        source: an image file, a folder of images, a video, or a split of the run's data set.
        output: folder of the results.

    Returns:
        Whether every image, or frame of the video, has its results.

    Raises:
        InputError: no such images or checkpoint, a run of another network, an output folder of
            another model or plan or one that cannot be written, or label files that the evaluation
            server would refuse.
    """
    workdir, folder = places.expand(workdir), places.expand(output)
    if jax.process_count() > 1:
        raise InputError('--mode=predict runs in one process; give each a part of the images')
    places.check_writable(folder, '--output')
    config_lib.check(config, jax.device_count())
    workdir_config.check_model(config, workdir)
    inference.build(config)
    for_server = config.predict.label_ids == 'server'
    clip = _clip(source, for_server=for_server)
    inputs, dataset = ([], None) if clip else _find(config, source, folder, for_server=for_server)
    classes = classes_lib.of_run(config, workdir)
    ids = _label_ids(config, classes, dataset)
    model = model_lib.load(
        workdir, checkpoint, config=config, classes=classes, mesh=mesh_lib.make_mesh()
    )
    results = outputs.Results(
        folder,
        model.colors,
        ids=outputs.label_values(ids),
        palette=not for_server,  # which asks for grey files
        suffix=_SERVER_SUFFIX if for_server else '',
        overlays=config.predict.overlays,
        probabilities=config.predict.probabilities,
    )
    with places.writing(folder, '--output'):
        outputs.claim(folder, _key(model))
        results.write_classes(model.classes)
        if clip is not None:
            return _predict_clip(config, model, clip, results)
        ledger = Ledger(folder, code.digest(model.network))
    networks = {  # parts are blended by their probabilities
        False: model.batch_run(np.dtype(np.float16) if results.probabilities else None),
        True: model.batch_run(np.dtype(np.float32)),
    }

    sizes = [each.size() for each in inputs]
    with ThreadPoolExecutor(config.data.threads) as pool:
        reasons = list(pool.map(lambda each: _why(each, results, ledger), inputs))
    todo = {i for i, reason in enumerate(reasons) if reason is not None}
    finished = {each.name for each, reason in zip(inputs, reasons) if reason is None}
    jobs = batches.plan_jobs(
        config,
        sizes,
        devices=model.mesh.size,
        wanted=todo,
        max_side=config.predict.max_side,
    )
    if results.probabilities:
        known = (size for i in todo if (size := sizes[i]) is not None)
        pixels = sum(height * width for height, width in known)
        needed = pixels * len(model.classes) * np.dtype(np.float16).itemsize
        places.check_writable(folder, '--output', needed=needed)
    failed: list[str] = []
    try:
        with (
            places.writing(folder, '--output'),  # errors of reading are in `failed`
            jax.set_mesh(model.mesh),
            ThreadPoolExecutor(config.data.threads) as pool,
            Progress() as progress,
            stop_requests() as stop_requested,
            contextlib.closing(ledger),
            progress.working('predict', 'predicted', len(todo), source) as advance,
        ):

            def run(
                images: UInt8[np.ndarray, 'b h w 3'],
                sizes: Int32[np.ndarray, 'b 2'],
                *,
                in_parts: bool,
            ) -> Prediction:
                network = networks[in_parts]
                if reason := stop_requested():  # between the parts of a large image, too
                    raise _Stopped(reason)
                if not network.is_compiled(images):
                    count, height, width, _ = images.shape
                    with progress.compiling(f'the network for {count} x {height} x {width} pixels'):
                        network.compile(images, sizes)
                return network(images, sizes)

            decoding = _decode(pool, inputs, jobs[0], ledger) if jobs else {}
            for job, following in zip(jobs, [*jobs[1:], None]):
                current = decoding
                # The next images are decoded while the network works on these.
                decoding = _decode(pool, inputs, following, ledger) if following else {}
                images, entries = {}, {}
                for name, future in current.items():
                    try:
                        images[name], entries[name] = future.result()
                    except InputError as error:
                        failed.append(str(error))
                        results.discard(name)  # of what the image was before
                if job.in_parts:
                    for name, image in images.items():
                        run_part = functools.partial(run, in_parts=True)
                        _predict_large(run_part, name, image, job, results, advance)
                elif images:
                    run_whole = functools.partial(run, in_parts=False)
                    _predict_small(run_whole, images, job, results, pool)
                    advance(len(images))
                for name, entry in entries.items():
                    ledger.add(name, entry)
                    finished.add(name)
                advance(len(job.members) - len(images))  # those that cannot be used
    except _Stopped as stopped:
        print(f'stopped by {stopped}; the same command goes on')

    for message in failed:
        print(f'failed: {message}', file=sys.stderr)
    print(
        f'{folder}: {len(inputs) - len(todo)} of {len(inputs)} images were there already, '
        f'{len(failed)} failed'
    )
    again = Counter(reason for reason in reasons if reason)
    if again:
        counts = ', '.join(f'{count} {reason}' for reason, count in sorted(again.items()))
        print(f'computed again: {counts}')
    complete = all(each.name in finished for each in inputs)
    if for_server:
        names = [each.name for each in inputs]
        with places.writing(folder, '--output'):
            made = (
                outputs.submit(results, dict(zip(names, sizes)))
                if complete
                else 'not yet: images are missing'
            )
        print(f'for the server: {made}')
    return complete


def _clip(source: str, *, for_server: bool) -> video.Reader | None:
    """The video that is to be predicted; None for images."""
    path = places.expand(source)
    if not video.is_video(path):
        return None
    if for_server:
        raise InputError(
            f"config.predict.label_ids='server': {source} is a video; a server takes a split"
        )
    return video.Reader(staging.local(path, '--input'))


def _predict_clip(
    config: ConfigDict, model: TrainedModel, clip: video.Reader, results: outputs.Results
) -> bool:
    """Predicts the frames of a video; returns whether there are as many as its header says."""
    name = clip.path.stem
    network = model.batch_run(None)
    sizes = [clip.size] * max(config.eval.batch_size, 1)
    (job, *_) = batches.plan_jobs(
        config, sizes, devices=model.mesh.size, max_side=config.predict.max_side
    )
    in_parts = model.batch_run(np.dtype(np.float32))
    batch = 1 if job.in_parts else job.batch_size
    target = results.folder / 'overlays' / f'{name}.mp4'
    try:
        with (
            contextlib.closing(clip),
            jax.set_mesh(model.mesh),
            video.Writer(target, clip.size, clip.rate).open() as append,
            Progress() as progress,
            stop_requests() as stop_requested,
            progress.working('predict', 'predicted', clip.count, name, of='frames') as advance,
        ):

            def run(
                images: UInt8[np.ndarray, 'b h w 3'], sizes: Int32[np.ndarray, 'b 2']
            ) -> Prediction:
                if reason := stop_requested():
                    raise _Stopped(reason)
                chosen = in_parts if job.in_parts else network
                if not chosen.is_compiled(images):
                    count, height, width, _ = images.shape
                    with progress.compiling(f'the network for {count} x {height} x {width} pixels'):
                        chosen.compile(images, sizes)
                return chosen(images, sizes)

            def predict_frames(frames: Sequence[video.Frame]) -> list[video.Labels]:
                if not job.in_parts:
                    return [each.labels for each in batches.predict_padded(run, frames, job)]
                labels = [np.empty(clip.size, np.uint8) for _ in frames]
                for frame, found in zip(frames, labels):
                    to = Prediction(found, None)
                    large_images.predict(run, frame, to, job, lambda share: None)
                return labels

            def write(number: int, frame: video.Frame, labels: video.Labels) -> None:
                if config.predict.frames:
                    results.write_labels(f'{name}/{number:06d}', labels)
                results.paint(frame, labels)
                append(frame)

            video.run(clip, predict_frames, write, batch=batch, advance=advance)
    except _Stopped as stopped:
        print(f'stopped by {stopped}; the same command begins again')
        return False
    for line in clip.report():
        print(line, file=sys.stderr)
    print(f'{target}: {clip.read} frames')
    return clip.read == max(clip.count, clip.read)


def _find(
    config: ConfigDict, source: str, folder: pathlib.Path, *, for_server: bool
) -> tuple[list[Input], Dataset | None]:
    """The images, and the data set if they are those of a split."""
    path = staging.local(source, '--input')
    if path.exists() and not for_server:
        return prediction_inputs.of_path(path, folder, bits=config.data.image_bits), None
    dataset = data.build(config.data)
    if for_server and not dataset.server_ids:
        raise InputError(
            f"config.predict.label_ids='server': data set {dataset.name!r} has no known "
            "evaluation server; use 'train'"
        )
    if source not in dataset.sources:
        raise InputError(
            f'--input={source} is neither a file, nor a folder, nor a split of data set '
            f'{dataset.name!r} ({", ".join(dataset.sources)})'
            + ('; only a split goes to a server' if for_server else '')
        )
    bits = config.data.image_bits
    return prediction_inputs.of_split(dataset, source, bits=bits), dataset


def _label_ids(config: ConfigDict, classes: Classes, dataset: Dataset | None) -> tuple[int, ...]:
    """The value of each class in the label files."""
    kind = config.predict.label_ids
    ids: tuple[int, ...] = ()
    if kind == 'dataset':
        ids = classes.ids or (dataset or data.build(config.data)).ids
    elif kind == 'server':
        assert dataset is not None, 'only a split goes to a server'
        ids = dataset.server_ids
    if ids and len(ids) != len(classes.names):
        raise InputError(
            f'config.predict.label_ids={kind!r}: the run has {len(classes.names)} classes, its '
            f"data set ids for {len(ids)}; use 'train'"
        )
    return ids or tuple(range(len(classes.names)))


def _why(each: Input, results: outputs.Results, ledger: Ledger) -> str | None:
    """Why an image has to be predicted; '' if it is new, None if it has not."""
    return ledger.outdated(each) if results.done(each.name) else ''


def _key(model: TrainedModel) -> dict[str, str]:
    """What the results depend on, for `predict.json`."""
    config = model.config
    classes = repr((model.classes, model.colors)).encode()
    return {
        'checkpoint': f'step {model.step}, {model.digest}',
        'inference': str(model.plan),
        'config.train.dtype': config.train.dtype,
        'config.predict.label_ids': config.predict.label_ids,
        'config.predict.max_side': str(config.predict.max_side),
        'classes': f'{len(model.classes)}, {hashlib.sha256(classes).hexdigest()[:12]}',
    }


def _decode(
    pool: ThreadPoolExecutor, inputs: list[Input], job: Job, ledger: Ledger
) -> dict[str, Future]:
    """Starts to decode the images of a job, by name; a future raises InputError for a bad one."""

    def decode(each: Input) -> tuple[UInt8[np.ndarray, 'h w 3'], Entry]:
        encoded = each.read()
        return encoded.decode(largest=job.largest), ledger.entry(encoded)

    return {inputs[i].name: pool.submit(decode, inputs[i]) for i in job.members}


def _predict_small(
    run: batches.Run,
    images: Mapping[str, UInt8[np.ndarray, 'h w 3']],
    job: Job,
    results: outputs.Results,
    pool: ThreadPoolExecutor,
) -> None:
    """Predicts images by name, together, and writes their results."""

    def write(name: str, image: np.ndarray, found: Prediction) -> None:
        results.discard(name)
        if found.probabilities is not None:
            height, width = found.labels.shape
            shape = (height, width, len(results.colors))
            with results.probabilities_file(name, shape) as file:
                file[:] = found.probabilities
        results.write(name, image, found.labels)

    found = batches.predict_padded(run, list(images.values()), job)
    list(pool.map(write, images.keys(), images.values(), found))


def _predict_large(
    run: batches.Run,
    name: str,
    image: UInt8[np.ndarray, 'h w 3'],
    job: Job,
    results: outputs.Results,
    advance: Callable[[float], None],
) -> None:
    """Predicts an image of any size in parts, and writes its results."""
    height, width, _ = image.shape
    labels = np.empty((height, width), np.uint8)
    results.discard(name)
    if results.probabilities:
        with results.probabilities_file(name, (height, width, len(results.colors))) as file:
            large_images.predict(run, image, Prediction(labels, file), job, advance)
    else:
        large_images.predict(run, image, Prediction(labels, None), job, advance)
    results.write(name, image, labels)
