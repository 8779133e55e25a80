"""Predictions of images as files, with a trained model: read it from top to bottom."""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import data, models
from ggcf_jax.data import pipeline
from ggcf_jax.data.records import codec
from ggcf_jax.data.transforms import MEAN_COLOR
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.prediction import inputs as prediction_inputs
from ggcf_jax.prediction import large_images, outputs
from ggcf_jax.prediction.inputs import Input
from ggcf_jax.workdir import checkpoints, classes
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.checkpoint_files import checksums

_SERVER_SUFFIX = '_labelIds'  # the Cityscapes server asks for <city>_<sequence>_<frame>*.png


@dataclasses.dataclass(frozen=True)
class Job:
    """Images that go through the network together.

    Attributes:
        inputs: the images.
        size: (h, w) that they are padded to; None: one image, in parts.
        batch_size: images, or parts of the one, that go through the network at once.
    """

    inputs: tuple[Input, ...]
    size: tuple[int, int] | None
    batch_size: int


class _Stopped(Exception):
    """The machine asks to stop."""


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=predict`: reads `--input`, `--output` and `--checkpoint`."""
    if not (flags.input and flags.output):
        raise InputError('--input=PATH or --output=DIR is missing')
    complete = predict(config, workdir, flags.checkpoint, flags.input, flags.output)
    return 0 if complete else 1


def predict(
    config, workdir: str | pathlib.Path, which: str | int, source: str, output: str
) -> bool:
    """Predicts images and writes labels, overlays and probabilities into a folder.

    What is there already is not done again, and every file is whole or not there, so that an
    interrupted prediction goes on where it was. An image that cannot be used is reported and left
    out.

    Args:
        config: of the run; `eval` says by which plan, `predict` what is written.
        workdir: of the run.
        which: 'best', 'latest' or a step.
        source: a file, a folder, or a split of the run's data set.
        output: folder of the results.

    Returns:
        Whether every image is there.

    Raises:
        InputError: no such images or checkpoint, a run of another network, an output folder of
            another model or plan or one that cannot be written, or label files that the evaluation
            server would refuse.
    """
    workdir, folder = pathlib.Path(workdir), pathlib.Path(output).expanduser()
    if jax.process_count() > 1:
        raise InputError('--mode=predict runs in one process; give each a part of the images')
    config_lib.check(config, jax.device_count())
    workdir_config.check_model(config, workdir)
    plan = inference.build(config)
    for_server = config.predict.label_ids == 'server'
    inputs, server_ids = _find(config, source, folder, for_server)
    named = classes.of_run(config, workdir)
    results = outputs.Results(
        folder,
        named.colors,
        np.array(server_ids or range(len(named.names)), np.uint8),
        suffix=_SERVER_SUFFIX if for_server else '',
        overlays=config.predict.overlays,
        probabilities=config.predict.probabilities,
    )

    mesh = mesh_lib.make_mesh()
    graphdef, params, stats = models.abstract(config, len(named.names))
    restored = checkpoints.restore(workdir, params, stats, mesh_lib.replicated(mesh), which)
    outputs.claim(folder, _key(config, plan, restored))
    step = make_predict_step(graphdef, mesh, plan, results.probabilities)

    sizes = {each.name: each.size() for each in inputs}
    todo = {each.name for each in inputs if not results.done(each.name)}
    jobs = _jobs(config, inputs, sizes, todo, mesh.size)
    failed: list[str] = []
    try:
        with (
            jax.set_mesh(mesh),
            ThreadPoolExecutor(config.data.threads) as pool,
            Progress(0) as progress,
            stop_requests() as stop_requested,
            progress.evaluating(len(todo), source, ('predict', 'predicted')) as advance,
        ):

            def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
                if reason := stop_requested():  # between the parts of a large image, too
                    raise _Stopped(reason)
                arrays = mesh_lib.global_batch(mesh, {'image': images})
                return jax.device_get(step(restored.params, restored.stats, arrays['image']))

            read = _start(pool, jobs[0]) if jobs else []
            for job, following in zip(jobs, [*jobs[1:], None]):
                images = [future.result() for future in read]
                # The next images are decoded while the network works on these.
                read = _start(pool, following) if following else []
                failed += [image for image in images if isinstance(image, str)]
                good = {
                    each.name: image
                    for each, image in zip(job.inputs, images)
                    if not isinstance(image, str)
                }
                if job.size is None:
                    for name, image in good.items():
                        _predict_large(run, name, image, config.predict.max_side, job, results)
                elif good:
                    _predict_small(run, good, job, results, pool)
                advance(len(job.inputs))
    except _Stopped as stopped:
        print(f'stopped by {stopped}; the same command goes on')
    except OSError as error:  # those of reading are among `failed`
        raise InputError(f'--output={folder} cannot be written: {error}') from error

    for message in failed:
        print(f'failed: {message}', file=sys.stderr)
    print(
        f'{folder}: {len(inputs) - len(todo)} of {len(inputs)} images were there already, '
        f'{len(failed)} failed'
    )
    complete = all(results.done(each.name) for each in inputs)
    if for_server:
        made = outputs.submit(results, sizes) if complete else 'not yet: images are missing'
        print(f'for the server: {made}')
    return complete


def make_predict_step(
    graphdef: nnx.GraphDef, mesh: Mesh, plan: inference.Plan, probabilities: bool
):
    """Builds the compiled (params, stats, images) -> (labels, probabilities).

    Images are uint8 [b, h, w, 3], labels uint8 [b, h, w], probabilities float16 [b, h, w, C]; or
    None unless they are wanted: they are large.
    """

    def predict_step(params, stats, images):
        scores = inference.scores(models.merge(graphdef, params, stats), images, plan)
        labels = scores.argmax(-1).astype(jnp.uint8)
        if not probabilities:
            return labels, None
        return labels, inference.probabilities(scores, plan).astype(jnp.float16)

    return jax.jit(predict_step, out_shardings=mesh_lib.by_batch(mesh))


def _find(
    config, source: str, folder: pathlib.Path, for_server: bool
) -> tuple[list[Input], tuple[int, ...]]:
    """The images, and the server's ids of the classes if the results are for it."""
    path = pathlib.Path(source).expanduser()
    if path.exists() and not for_server:
        return prediction_inputs.of_path(path, folder), ()
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
    return prediction_inputs.of_split(dataset, source), dataset.server_ids if for_server else ()


def _key(config, plan: inference.Plan, restored: checkpoints.Restored) -> dict[str, str]:
    """What decides the results, for `predict.json`."""
    sums = np.asarray(checksums((restored.params, restored.stats)))
    return {
        'checkpoint': f'step {restored.step}, {hashlib.sha256(sums.tobytes()).hexdigest()[:12]}',
        'inference': str(plan),
        'config.train.dtype': config.train.dtype,
        'config.predict.label_ids': config.predict.label_ids,
        'config.predict.max_side': str(config.predict.max_side),
        'config.eval.size_multiple': str(config.eval.size_multiple),
    }


def _jobs(
    config,
    inputs: Sequence[Input],
    sizes: Mapping[str, tuple[int, int] | None],
    todo: set[str],
    devices: int,
) -> list[Job]:
    """Groups the images under few sizes as an evaluation does; large ones are alone.

    The groups are those of all inputs, so that what was there before changes no result.
    """
    small, large = [], []
    for each in inputs:
        size = sizes[each.name]
        (small if size and max(size) <= config.predict.max_side else large).append(each)
    multiple = config.eval.size_multiple
    sides = np.array([sizes[each.name] for each in small], np.int64).reshape(-1, 2)
    groups = pipeline.merge_sizes(-(-sides // multiple) * multiple, config.eval.max_sizes)
    jobs = []
    for size, indices in sorted(groups.items()):
        members = [small[i] for i in indices if small[i].name in todo]
        count = min(config.eval.batch_size, -(-len(members) // devices) * devices)
        chunks = (members[i : i + count] for i in range(0, len(members), count or 1))
        jobs += [Job(tuple(chunk), size, count) for chunk in chunks]
    return jobs + [Job((each,), None, devices) for each in large if each.name in todo]


def _predict_small(
    run: large_images.Run,
    images: Mapping[str, np.ndarray],
    job: Job,
    results: outputs.Results,
    pool: ThreadPoolExecutor,
) -> None:
    """Predicts images by name, together, and writes their results."""
    batch = np.empty((job.batch_size, *job.size, 3), np.uint8)
    batch[:] = MEAN_COLOR
    for place, image in zip(batch, images.values()):
        place[: image.shape[0], : image.shape[1]] = image
    labels, shares = run(batch)

    def write(row: int, name: str, image: np.ndarray) -> None:
        inside = tuple(slice(side) for side in image.shape[:2])
        if shares is not None:
            with results.probabilities_file(name, (*image.shape[:2], shares.shape[-1])) as file:
                file[:] = shares[row][inside]
        results.write(name, image, labels[row][inside])

    list(pool.map(write, range(len(images)), images.keys(), images.values()))


def _predict_large(
    run: large_images.Run,
    name: str,
    image: np.ndarray,
    side: int,
    job: Job,
    results: outputs.Results,
) -> None:
    """Predicts an image of any size in parts, and writes its results."""
    labels = np.empty(image.shape[:2], np.uint8)
    arguments = (run, image, side, job.batch_size, labels)
    if results.probabilities:
        with results.probabilities_file(name, (*labels.shape, len(results.colors))) as file:
            large_images.predict(*arguments, file)
    else:
        large_images.predict(*arguments, None)
    results.write(name, image, labels)


def _start(pool: ThreadPoolExecutor, job: Job) -> list[Future]:
    """Begins to decode the images of a job."""
    return [pool.submit(_read, each, job.size) for each in job.inputs]


def _read(each: Input, most: tuple[int, int] | None) -> np.ndarray | str:
    """The image, uint8 [h, w, 3] of at most that size; or what is wrong with it."""
    try:
        image = codec.decode_image(each.read(), each.name)
        if most and (image.shape[0] > most[0] or image.shape[1] > most[1]):
            return f'{each.name}: the image is larger than its header says'
        return image
    except (InputError, OSError) as error:
        return str(error)
    except cv2.error as error:  # such as more pixels than OpenCV decodes
        return f'{each.name}: {error.err or error}'
