"""Export of a trained model: for programs without this package, as a folder, or its backbone.

`--format=folder` writes a released model (`workdir.released`), `--format=backbone` the backbone in
a published layout (`models.pretrained.writing`), `--format=onnx` an ONNX file
(`exporting.onnx_file`). `--format=programs`, the default, writes one file that needs neither this
package nor the data set.

That file is a zip archive of programs (`jax.export`: StableHLO for CPU, CUDA and TPU), the weights
that they all take, `metadata.json` and `card.md`. Programs map (weights, images, sizes)
to (labels, probabilities) for any number of images:

- images: a padded batch, uint8 [b, h, w, 3] RGB;
- sizes: height and width of each image inside it, int32 [b, 2];
- labels: uint8 [b, h, w]; probabilities: float32 [b, h, w, C].

docs/export.md has a loader, for files of format 1 as well, whose programs take no sizes.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.flags import FlagValues
from flax import nnx
from jax import export as jax_export
from ml_collections import ConfigDict

from ggcf_jax import atomic, models, places
from ggcf_jax import config as config_lib
from ggcf_jax.attention import target as platform
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.exporting import onnx_file, onnx_program
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.pretrained import writing
from ggcf_jax.workdir import card, released
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.checkpoints import Which

PLATFORMS = ('cpu', 'cuda', 'tpu')
FORMAT = 2  # of the file; a reader refuses a larger one

Size = tuple[int, int]
Program = Callable[[dict[str, jax.Array], jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=export`.

    Reads `--format`, `--output`, `--sizes`, `--license`, `--overwrite` and `--checkpoint`.
    """
    if not flags.output:
        raise InputError('--output=FILE is missing')
    sizes = parse_sizes(flags.sizes)
    if flags.format == 'programs':
        export_workdir(
            config,
            workdir,
            flags.checkpoint,
            flags.output,
            sizes,
            overwrite=flags.overwrite,
            license_=flags.license,
        )
        return 0
    if flags.format == 'onnx':
        export_onnx(
            config,
            workdir,
            flags.checkpoint,
            flags.output,
            sizes,
            overwrite=flags.overwrite,
            license_=flags.license,
        )
        return 0
    if sizes:
        raise InputError(f'--sizes={flags.sizes} is for --format=programs and onnx')
    write = {'folder': export_folder, 'backbone': export_backbone}[flags.format]
    write(
        config,
        workdir,
        flags.checkpoint,
        flags.output,
        overwrite=flags.overwrite,
        license_=flags.license,
    )
    return 0


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Parses the sizes (height, width) in a text such as '360x480,720x960'; () for ''.

    Raises:
        InputError: a size that is not of this form, or one twice.
    """
    sizes = []
    for part in text.split(',') if text else ():
        height, _, width = part.strip().partition('x')
        if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise InputError(
                f'--sizes={text}: {part!r} is not HEIGHTxWIDTH, such as --sizes=360x480,720x960'
            )
        sizes.append((int(height), int(width)))
    if len(set(sizes)) < len(sizes):
        raise InputError(f'--sizes={text} names a size twice')
    return tuple(sizes)


def flatten(params: nnx.State, stats: nnx.State) -> dict[str, jax.Array]:
    """Parameters and batch statistics by their dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path({'params': params, 'stats': stats})
    return {jax.tree_util.keystr(path, simple=True, separator='.'): x for path, x in leaves}


def program(
    graphdef: nnx.GraphDef, params: nnx.State, stats: nnx.State, plan: inference.Plan
) -> Program:
    """The function that is exported.

    It holds the network three times, for CPUs, GPUs and TPUs; the compiler drops those that are not
    for its platform. The GPU is any: nothing in its program depends on which it is.

    Args:
        graphdef: structure of the network.
        params: tree of its parameters, as arrays or shapes.
        stats: tree of its batch statistics, likewise.
        plan: how the class scores of an image are found.
    """
    structure = jax.tree.structure({'params': params, 'stats': stats})
    names = list(flatten(params, stats))

    def one(target: str) -> Program:
        def run(
            weights: dict[str, jax.Array], images: jax.Array, sizes: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            trees = jax.tree.unflatten(structure, [weights[name] for name in names])
            with platform.tracing_for(target):
                model = models.merge(graphdef, **trees)
                scores = inference.scores(model, images, plan, extent_lib.of_sizes(sizes))
            labels = scores.argmax(-1).astype(jnp.uint8)
            return labels, inference.probabilities(scores, plan)

        return run

    def run(
        weights: dict[str, jax.Array], images: jax.Array, sizes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return jax.lax.platform_dependent(
            weights, images, sizes, cpu=one('cpu'), cuda=one('gpu'), default=one('tpu')
        )

    return run


def shapes(plan: inference.Plan, sizes: tuple[Size, ...]) -> dict[str, Sequence]:
    """Names of the programs that a file needs, and the shape of the images that each takes.

    With windows and without rescaling the network only ever sees the window, so that one program
    with symbolic height and width is enough. Otherwise the feature map follows the image, and the
    attention cuts it into blocks, windows and residue classes whose number depends on its sides:
    there is one program for each of the given sizes, for images of at most that size.

    Args:
        plan: how the class scores of an image are found.
        sizes: (height, width) of the images, or ().

    Raises:
        InputError: sizes that are missing or not needed.
    """
    if plan.window is not None and plan.scales == (1.0,):
        if sizes:
            raise InputError(
                f'--sizes is not needed: with config.eval.window={plan.window} one program takes '
                'images of any size from that of the window'
            )
        least = [f'{name} >= {side}' for name, side in zip('hw', plan.window)]
        return {'any': jax_export.symbolic_shape('b, h, w, 3', constraints=least)}
    if not sizes:
        raise InputError(
            '--sizes is missing: the programs of whole or rescaled images are made for given '
            'sizes, such as --sizes=360x480,720x960. For images of any size export sliding '
            'windows: --config.eval.window=HEIGHT,WIDTH with one scale'
        )
    (batch,) = jax_export.symbolic_shape('b')
    return {f'{h}x{w}': (batch, h, w, 3) for h, w in sizes}


def export_workdir(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    checkpoint: Which,
    output: str | pathlib.Path,
    sizes: tuple[Size, ...],
    *,
    overwrite: bool = False,
    license_: str = '',
) -> None:
    """Exports a checkpoint of a run as programs with the inference plan of `config.eval`.

    Args:
        config: configuration of the run; `eval` says how images are predicted.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        output: file to write, atomically.
        sizes: (height, width) of the images where the plan needs them (`shapes`), or ().
        overwrite: whether an existing file is replaced.
        license_: licence of the model for its card; '' if nobody has said.

    Raises:
        InputError: the file cannot be made; found before anything is computed.
    """
    workdir, output = places.expand(workdir), places.expand(output)
    _check_file(output, overwrite=overwrite)
    config_lib.check(config, devices=None)
    workdir_config.check_model(config, workdir)
    plan = inference.build(config)
    wanted = shapes(plan, sizes)
    model = _model(config, workdir, checkpoint)
    weights = flatten(model.params, model.stats)
    _check_space(output, weights)

    run = jax.jit(program(model.graphdef, model.params, model.stats, plan))
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    programs = {}
    for name, shape in wanted.items():
        images = jax.ShapeDtypeStruct(shape, jnp.uint8)
        print(f'exporting a program for images of {_describe(name, plan)}', flush=True)
        inside = jax.ShapeDtypeStruct((shape[0], 2), jnp.int32)
        with _without_source_files():
            programs[name] = jax_export.export(run, platforms=PLATFORMS)(abstract, images, inside)
        print(f'exported a program for images of {_describe(name, plan)}')
    metadata = {
        'format': FORMAT,
        'dataset': config.data.name,
        'classes': model.classes,
        'colors': model.colors,
        'programs': {name: _sizes(name, plan) for name in programs},
        'plan': str(plan),
        'platforms': PLATFORMS,
        'checkpoint': model.step,
        'config': json.loads(workdir_config.portable(config).to_json()),
        'jax': jax.__version__,
    }
    content = _npz(weights)
    text = card.of_workdir(
        workdir,
        model.step,
        plan=str(plan),
        files={'weights.npz': hashlib.sha256(content).hexdigest()},
        license_=license_,
    )
    with (
        places.writing(output, '--output'),
        atomic.replacing(output) as temporary,
        zipfile.ZipFile(temporary, 'w') as file,
    ):
        file.writestr('metadata.json', json.dumps(metadata, indent=1))
        file.writestr(card.FILE_NAME, text)
        file.writestr('weights.npz', content)
        for name, exported in programs.items():
            program_ = bytes(exported.serialize())
            file.writestr(f'{name}.jax_export', program_, zipfile.ZIP_DEFLATED)
    print(f'{output}: checkpoint of step {model.step}, {output.stat().st_size / 1e6:.1f} MB')


def export_onnx(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    checkpoint: Which,
    output: str | pathlib.Path,
    sizes: tuple[Size, ...],
    *,
    batch: int | None = None,
    overwrite: bool = False,
    license_: str = '',
) -> None:
    """Exports a checkpoint of a run as ONNX, with the inference plan of `config.eval`.

    The network computes in float32, whatever `config.train.dtype` is. The file is written only if
    onnxruntime gives the labels that the network gives, on images that are drawn for it.

    Args:
        config: configuration of the run; `eval` says how images are predicted.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        output: file to write, atomically.
        sizes: the one (height, width) of the images.
        batch: number of images that the file takes at once; None for any.
        overwrite: whether an existing file is replaced.
        license_: licence of the model for its card; '' if nobody has said.

    Raises:
        InputError: the file cannot be made, or computes something else.
    """
    workdir, output = places.expand(workdir), places.expand(output)
    _check_file(output, overwrite=overwrite)
    if len(sizes) != 1:
        raise InputError(
            'a file of ONNX is for images of one size; pass --sizes=HEIGHTxWIDTH, such as '
            '--sizes=360x480'
        )
    _check_onnx_pruning(config)
    onnx_file.needs()
    config = workdir_config.from_text(workdir_config.to_text(config))
    config.train.dtype = 'float32'
    model = _model(config, workdir, checkpoint)
    params, stats = jax.tree.map(np.asarray, (model.params, model.stats))

    parts = (model.graphdef, params, stats)
    one_view = dataclasses.replace(
        model.plan, average='logits', scales=model.plan.scales[:1], flip=False
    )

    @jax.jit
    def expected(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = onnx_program.of_plan(*parts, model.plan, converted=False)(images)
        logits = inference.scores(models.merge(*parts), images, one_view)
        return *found, jnp.abs(logits).max()

    text = card.of_workdir(workdir, model.step, plan=str(model.plan), files={}, license_=license_)
    metadata = {
        'classes': json.dumps(model.classes),
        'colors': json.dumps(model.colors),
        'plan': str(model.plan),
        'step': str(model.step),
        'license': license_ or 'unknown',
        'card': text,
    }
    run = onnx_program.of_plan(*parts, model.plan, converted=True)
    content = onnx_file.convert(run, sizes[0], metadata, batch=batch)
    batches = (1, 2) if batch is None else (batch, batch)
    images = _drawn(sizes[0], sum(batches))
    labels, probabilities, largest_logit = map(np.asarray, expected(images))
    ties = onnx_file.check(
        content,
        images,
        labels,
        probabilities,
        batches,
        float(largest_logit),
        rescaled=model.plan.scales != (1.0,),
    )
    with places.writing(output, '--output'):
        atomic.write(output, content)
    print(
        f'{output}: checkpoint of step {model.step}, opset {onnx_file.OPSET}, '
        f"{len(content) / 1e6:.1f} MB; labels of onnxruntime equal the network's, "
        f'{ties} ties in {labels.size:,} pixels'
    )


def _check_onnx_pruning(config: ConfigDict) -> None:
    """Refuses draws, which are hashes of bits, before anything is computed."""
    for rule in inference.build(config).pruning:
        if rule.priority == 'random':
            raise InputError(
                f'--format=onnx: config.eval.pruning has {str(rule)!r}, and random neighbours are '
                'drawn by operations on bits, which TensorRT does not document; prune by affinity '
                f'({str(dataclasses.replace(rule, priority="top", seed=0))!r}), or '
                '--format=programs'
            )


def _drawn(size: Size, count: int) -> np.ndarray:
    """Images of coarse and fine spots: uint8 [count, h, w, 3]."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, *size, 3), np.float32)
    for side in (64, 16, 4, 1):
        cells = rng.integers(0, 64, (count, *(-(-n // side) for n in size), 3))
        fine = cells.repeat(side, 1).repeat(side, 2)
        images += fine[:, : size[0], : size[1]]
    return images.astype(np.uint8)


def export_folder(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    checkpoint: Which,
    output: str | pathlib.Path,
    *,
    overwrite: bool = False,
    license_: str = '',
) -> None:
    """Exports a checkpoint of a run as a released model (`workdir.released`).

    Args:
        config: configuration of the run.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        output: folder to write; it is there whole or not at all.
        overwrite: whether a released model of that name is replaced.
        license_: licence of the model for its card; '' if nobody has said.

    Raises:
        InputError: the folder cannot be made; found before anything is written.
    """
    workdir, output = places.expand(workdir), places.expand(output)
    released.check(output)
    if released.is_one(output) and not overwrite:
        raise InputError(f'--output={output} already exists; --overwrite replaces it')
    places.check_writable(output.parent, '--output')
    model = _model(config, workdir, checkpoint)
    weights = {name: np.asarray(x) for name, x in flatten(model.params, model.stats).items()}
    _check_space(output, weights)
    with places.writing(output, '--output'):
        released.write(
            output,
            released.Weights(model.step, weights),
            workdir=workdir,
            config=config,
            plan=str(model.plan),
            license_=license_,
        )
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f'{output}: released model of step {model.step}, {size / 1e6:.1f} MB')


def export_backbone(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    checkpoint: Which,
    output: str | pathlib.Path,
    *,
    overwrite: bool = False,
    license_: str = '',
) -> None:
    """Exports the backbone of a checkpoint under the names that PyTorch's libraries read.

    Args:
        config: configuration of the run.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        output: file to write, atomically; its name ends in .safetensors.
        overwrite: whether an existing file is replaced.
        license_: licence of the model, for the metadata of the file; '' if nobody has said.

    Raises:
        InputError: the file cannot be made; found before anything is written.
    """
    workdir, output = places.expand(workdir), places.expand(output)
    if output.suffix != '.safetensors':
        raise InputError(f'--output={output}: the name of a backbone ends in .safetensors')
    _check_file(output, overwrite=overwrite)
    layout = writing.layout_of(config.model.backbone)
    model = _model(config, workdir, checkpoint)
    prefix = re.compile(r'(params|stats)\.backbone\.')
    arrays = {
        prefix.sub('', name): np.asarray(x)
        for name, x in flatten(model.params, model.stats).items()
        if prefix.match(name)
    }
    tensors = writing.tensors(arrays, config.model)
    _check_space(output, tensors)
    metadata = {
        'format': 'pt',  # how PyTorch's readers know whose order of axes it is
        'layout': layout.name,
        'input': config.model.input,
        'step': str(model.step),
        'license': license_ or 'unknown',
    }
    with places.writing(output, '--output'):
        atomic.write(output, safetensors.numpy.save(tensors, metadata))
    print(
        f'{output}: {layout.name}, {len(tensors)} tensors of step {model.step}, '
        f'{output.stat().st_size / 1e6:.1f} MB'
    )


def _check_file(output: pathlib.Path, *, overwrite: bool) -> None:
    """Refuses a path where no new file can be written."""
    if output.is_dir():
        raise InputError(f'--output={output} is a folder; give the name of a file')
    if output.exists() and not overwrite:
        raise InputError(f'--output={output} already exists; --overwrite replaces it')
    places.check_writable(output.parent, '--output')


def _check_space(output: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    needed = sum(array.nbytes for array in arrays.values())
    places.check_writable(output.parent, '--output', needed=needed)


def _model(config: ConfigDict, workdir: pathlib.Path, checkpoint: Which) -> model_lib.TrainedModel:
    """A checkpoint of a run, on one device."""
    config_lib.check(config, devices=None)
    workdir_config.check_model(config, workdir)
    one_device = mesh_lib.make_mesh(jax.local_devices()[:1])
    return model_lib.load(workdir, checkpoint, config=config, mesh=one_device)


@contextlib.contextmanager
def _without_source_files() -> Iterator[None]:
    """Keeps the paths of source files, the maker's directories, out of the programs' locations."""
    name = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _npz(arrays: dict[str, jax.Array]) -> bytes:
    content = io.BytesIO()
    host: dict[str, Any] = {name: np.asarray(x) for name, x in arrays.items()}
    np.savez(content, **host)
    return content.getvalue()


def _sizes(name: str, plan: inference.Plan) -> dict[str, tuple[int, int] | None]:
    """Sizes of the images that a program takes, for the metadata."""
    if name == 'any':
        return {'least': plan.window}
    height, width = map(int, name.split('x'))
    return {'size': (height, width)}


def _describe(name: str, plan: inference.Plan) -> str:
    if plan.window is not None and name == 'any':
        return f'any size from {plan.window[0]}x{plan.window[1]}'
    return name
