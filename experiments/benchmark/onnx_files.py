"""Compares files of ONNX with our own program on the CPU: labels, size, processor time.

    python -m experiments.benchmark.onnx_files --images=../shared/camvid/val

For each kind of head, context module and backbone a tiny network with random parameters is
converted, and the first images of a folder go through onnxruntime and through our program, one
image and one program after the other. A row says how many pixels have another label, by how much
the probabilities of their two classes differ at most, how much those of the two most probable
classes of a pixel differ in the median (the margin), how large the file is, how long the conversion
took, and the processor times of an image: on a busy machine their ratio is the one to trust.

Every row is a JSON file in a folder of --out for these images, versions and source, and is not
measured again, so that the same command resumes; with uncommitted changes it begins anew. The table
of all rows there is `table.md`. It needs the extra `onnx` (docs/export.md); run it from the root of
the repository.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import UInt8

from experiments.common import cli
from ggcf_jax import atomic, models
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.exporting import onnx_file, onnx_program
from ggcf_jax.workdir import provenance

_CLASSES = 11
_ENDINGS = ('.png', '.jpg')
_TINY = {
    'model.backbone.name': 'resnet10',
    'model.backbone.width': 4,
    'model.ggcf.channels': 16,
    'model.ggcf.key_channels': 8,
    'model.ggcf.value_channels': 8,
    'model.aspp.channels': 16,
    'model.psp.channels': 16,
    'model.non_local.channels': 16,
    'model.isa.channels': 16,
    'model.isa.key_channels': 8,
    'model.ccnet.channels': 16,
    'model.aux_channels': 4,
    'train.dtype': 'float32',
}
_HEADS = (
    'local:3', 'grid:4', 'local:3,grid:4', 'full', 'learned', 'row', 'column', 'cross', 'block:4',
    'block:4+2', 'local:2@2', 'local:3:shift', 'local:1|cross', 'local:3&grid:2',
)  # fmt: skip
# One of each family, two of the ResNets, whose blocks differ; with its stride.
_BACKBONES = {
    'resnet18': 8,
    'resnet50': 8,
    'wide_resnet38': 8,
    'mobilenet_v2': 8,
    'convnext_tiny': 8,
    'swin_tiny': 8,
    'dinov2_small': 14,
    'mit_b0': 32,
}

# Name of a row -> what differs from the tiny network.
CASES: dict[str, dict[str, Any]] = {
    **{f'`{heads}`': {'model.heads': heads} for heads in _HEADS},
    '`full`, half pruned': {'model.heads': 'full', 'eval.pruning': 'full:drop=0.5'},
    '`local:3`, 9 kept': {'model.heads': 'local:3', 'eval.pruning': 'local:keep=9'},
    '`grid:4`, half pruned': {'model.heads': 'grid:4', 'eval.pruning': 'grid:drop=0.5'},
    **{
        f'`{context}`': {'model.context': context}
        for context in ('aspp', 'psp', 'nonlocal', 'ccnet', 'isa', 'linear', 'none')
    },
    **{
        f'`none`, {name} of width 8': {
            'model.context': 'none',
            'model.backbone.name': name,
            'model.backbone.width': 8,
            'model.backbone.stride': stride,
        }
        for name, stride in _BACKBONES.items()
    },
    '`none`, flip': {'model.context': 'none', 'eval.flip': True},
    '`none`, windows of 120 x 120': {'model.context': 'none', 'eval.window': (120, 120)},
    '`none`, scales 0.75 and 1': {'model.context': 'none', 'eval.scales': (0.75, 1.0)},
}


def read(
    folder: pathlib.Path, count: int, size: tuple[int, int]
) -> list[UInt8[np.ndarray, '1 h w 3']]:
    """Reads the first images of a folder.

    Args:
        folder: folder of PNG and JPEG files.
        count: number of images.
        size: (height, width) that they are resized to.

    Raises:
        InputError: there are fewer, or one is none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix in _ENDINGS)[:count]
    if len(paths) < count:
        raise InputError(f'--images={folder}: {len(paths)} images, --count={count} are wanted')
    images = []
    for path in paths:
        picture = cv2.imread(str(path))
        if picture is None:
            raise InputError(f'{path} is no image')
        small = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
        images.append(np.ascontiguousarray(small[None, ..., ::-1]))
    return images


def row(changes: dict[str, Any], images: list[UInt8[np.ndarray, '1 h w 3']]) -> list[str]:
    """Measures one network.

    Args:
        changes: fields of the configuration that differ from the tiny network.
        images: images of one size.

    Returns:
        Cells of the table behind the name.
    """
    config = config_lib.default()
    config.update_from_flattened_dict(_TINY | changes)
    graphdef, *state = models.split(models.build(config, _CLASSES))
    params, stats = jax.tree.map(np.asarray, state)
    plan = inference.build(config)
    ours = jax.jit(onnx_program.of_plan(graphdef, params, stats, plan, converted=False))
    began = time.process_time()
    content = onnx_file.convert(
        onnx_program.of_plan(graphdef, params, stats, plan, converted=True),
        images[0].shape[1:3],
        {},
    )
    conversion = time.process_time() - began
    theirs = onnx_file.load(content)
    jax.block_until_ready(ours(images[0]))
    theirs(images[0])
    other, gap = 0, 0.0
    margins = []
    times: dict[bool, list[float]] = {True: [], False: []}
    for i, image in enumerate(images):
        results = {}
        for own in (i % 2 == 0, i % 2 != 0):
            began = time.process_time()
            results[own] = jax.block_until_ready((ours if own else theirs)(image))
            times[own].append(time.process_time() - began)
        (labels, probabilities), (found, _) = (
            [np.asarray(x) for x in results[own]] for own in (True, False)
        )
        other += int((labels != found).sum())
        chosen = np.take_along_axis(probabilities, found[..., None].astype(np.int64), -1)[..., 0]
        gap = max(gap, float((probabilities.max(-1) - chosen).max()))
        second, first = np.moveaxis(np.partition(probabilities, -2, -1)[..., -2:], -1, 0)
        margins.append(np.median(first - second))
    ratio = statistics.median(b / a for a, b in zip(times[True], times[False]))
    return [
        str(other),
        f'{gap:.0e}' if gap else '0',
        f'{np.median(margins):.3f}',
        f'{len(content) / 1e6:.2f} MB',
        f'{conversion:.0f} s',
        f'{1e3 * statistics.median(times[True]):.0f} ms',
        f'{ratio:.1f}',
    ]


def identity(images: list[UInt8[np.ndarray, '1 h w 3']]) -> str:
    """Name of what the rows are measured with: the images, versions, devices and the source.

    Args:
        images: images of one size.
    """
    runtimes = {name: importlib.metadata.version(name) for name in ('jax2onnx', 'onnxruntime')}
    content = json.dumps([provenance.current(), runtimes, images[0].shape, len(images)])
    digest = hashlib.sha256(content.encode())
    for image in images:
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def measure(
    pattern: str, images: list[UInt8[np.ndarray, '1 h w 3']], out: pathlib.Path
) -> Iterator[str]:
    """Measures the rows that --out does not have.

    Args:
        pattern: regular expression of the rows.
        images: images of one size.
        out: folder of the rows.

    Yields:
        Names of the rows, each as soon as it is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, changes in CASES.items():
        path = _path(out, name)
        if re.search(pattern, name) and not path.exists():
            content = {
                'name': name,
                'cells': row(changes, images),
                'date': time.strftime('%Y-%m-%d'),
                'cores': len(os.sched_getaffinity(0)),
            }
            atomic.write(path, json.dumps(content, indent=1).encode())
            yield name


def table(out: pathlib.Path) -> str:
    """Returns the table of the rows in a folder."""
    lines = [
        '| network | pixels of another label | by at most | margin | file | conversion '
        '| our program, an image | onnxruntime / ours |',
        '|---|--:|--:|--:|--:|--:|--:|--:|',
    ]
    for name in CASES:
        path = _path(out, name)
        if path.exists():
            cells = [name.replace('|', r'\|'), *json.loads(path.read_text())['cells']]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _path(out: pathlib.Path, name: str) -> pathlib.Path:
    """File of a row; '|' and '&' of a head are spelt so that names stay distinct."""
    spelt = name.replace('|', ' or ').replace('&', ' and ').replace('+', ' plus ')
    return out / (re.sub(r'[^a-z0-9.]+', '_', spelt).strip('_') + '.json')


def main(options: argparse.Namespace) -> None:
    """Measures what is asked for and not there, and writes and prints the table."""
    onnx_file.needs()
    height, width = options.size
    images = read(options.images, options.count, (height, width))
    out = options.out / identity(images)
    if (provenance.current()['git'] or '').endswith('-dirty'):  # of which source rows would be?
        shutil.rmtree(out, ignore_errors=True)
    for name in measure(options.cases, images, out):
        print(name, flush=True)
    atomic.write(out / 'table.md', table(out).encode())
    print(table(out), end='')


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        '--out',
        default='runs/benchmark/onnx',
        type=cli.path,
        help='folder of the results [runs/benchmark/onnx]',
    )
    parser.add_argument(
        '--images', required=True, type=cli.path, help='folder of PNG or JPEG images'
    )
    parser.add_argument('--count', type=int, default=20, help='number of images')
    parser.add_argument(
        '--size', type=cli.parse_size, default=(180, 240), help='HxW they are resized to [180x240]'
    )
    parser.add_argument('--cases', default='', help='regular expression of the rows to measure')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
