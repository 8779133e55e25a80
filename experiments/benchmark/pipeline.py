"""Times the training input pipeline by stage, and beside a plain loop and a PyTorch DataLoader.

    python -m experiments.benchmark.pipeline --out=runs/benchmark/pipeline

Paints street scenes of 1024 x 2048 once, blurred as by a lens so that the PNG files are about as
large as those of Cityscapes (2.3 MB), and makes batches of eight 769 x 769 crops of them. All
contenders run in turn, in several rounds; each is timed from an empty buffer, so that none profits
from batches made ahead. Writes <out>/table.md and <out>/result.json. Run it from the root of the
repository; needs the extra `parity`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from experiments.benchmark.pipeline_files import LABEL_MAP, dataset, make_files, repeat
from experiments.common import cli
from ggcf_jax.data import mixture, pipeline, transforms
from ggcf_jax.data.records import codec, compact
from ggcf_jax.data.records.dataset import Dataset, EncodedRecord, Example
from ggcf_jax.data.transforms import Image, Label

CROP = (769, 769)
SCALES = (0.5, 1.5)  # the paper's
BATCH = 8

Decode = Callable[[Dataset, EncodedRecord], Any]
Transform = Callable[[Image, Label, np.random.Generator], Any]
Batches = Generator[Any, None, None]
T = TypeVar('T')


def ours(data: Dataset, *, threads: int, workers: int) -> Batches:
    """Starts our pipeline.

    Args:
        data: data set.
        threads: decoding threads, of each worker if there are any.
        workers: worker processes.
    """
    yield from pipeline.train_batches(
        mixture.records(data, mixture.parse('train')),
        (1.0,),
        transforms.TrainTransform(CROP, SCALES),
        seed=0,
        batch_size=BATCH,
        loader=pipeline.LoaderOptions(threads, workers, 2),
    )


def usual_transform(image: Image, label: Label, rng: np.random.Generator) -> tuple[Image, Label]:
    """Rescales, crops, pads and flips in the usual order: the whole image is resized first."""
    scale = rng.uniform(*SCALES)
    height, width = label.shape
    size = (round(width * scale), round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    top, left = (int(rng.integers(0, max(0, n - c) + 1)) for n, c in zip(label.shape, CROP))
    window = slice(top, top + CROP[0]), slice(left, left + CROP[1])
    image, label = transforms.pad_to(image[window], label[window], CROP)
    return transforms.random_flip(image, label, rng)


def usual_decode(data: Dataset, record: EncodedRecord) -> dict[str, Any]:
    """Decodes image and label of a record with OpenCV alone."""
    image = np.frombuffer(record['image'], np.uint8)
    label = np.frombuffer(record['label'], np.uint8)
    raw = cv2.imdecode(label, cv2.IMREAD_UNCHANGED)
    assert raw is not None  # the benchmark wrote it
    return {
        'image': cv2.imdecode(image, cv2.IMREAD_COLOR_RGB),
        'label': cv2.LUT(raw, LABEL_MAP),
    }


def our_decode(data: Dataset, record: EncodedRecord) -> Example:
    """Decodes a record as our pipeline does."""
    return data.decode(record)


class TorchData(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The same records and operations as a PyTorch data set."""

    def __init__(self, data: Dataset, decode: Decode, transform: Transform) -> None:
        self.data, self.decode, self.transform = data, decode, transform

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = self.data.source('train')
        example = self.decode(self.data, source[index % len(source)])
        rng = np.random.default_rng(index)
        image, label = self.transform(example['image'], example['label'], rng)
        image, label = (np.ascontiguousarray(x) for x in (image, label))
        return torch.from_numpy(image), torch.from_numpy(label)


def loader(data: Dataset, decode: Decode, transform: Transform, workers: int) -> Batches:
    """Starts a PyTorch DataLoader.

    Args:
        data: data set.
        decode: function that decodes a record.
        transform: augmentation.
        workers: worker processes.
    """
    loaded = torch.utils.data.DataLoader(
        TorchData(data, decode, transform),
        BATCH,
        shuffle=True,
        num_workers=workers,
        prefetch_factor=2,
        worker_init_fn=_one_thread,
    )
    yield from loaded


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


def plain_loop(data: Dataset) -> Batches:
    """Makes one sample after the other, in one thread."""
    transform = transforms.TrainTransform(CROP, SCALES)
    source = data.source('train')
    rng = np.random.default_rng(0)
    while True:
        samples = []
        for _ in range(BATCH):
            example = data.decode(source[int(rng.integers(len(source)))])
            samples.append(transform(example['image'], example['label'], rng))
        yield tuple(np.stack(arrays) for arrays in zip(*samples))


def rate(make: Callable[[], Batches], seconds: float) -> float:
    """Measures the images a second of a contender.

    Args:
        make: function that starts the contender.
        seconds: duration of the measurement.
    """
    with contextlib.closing(make()) as batches:
        for _ in range(4):  # batches made ahead, and the start of workers
            next(batches)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(batches)
            count += BATCH
        return count / (time.perf_counter() - began)


class Stopwatch:
    """Seconds of each stage; the time of a stage within another one counts for the inner one."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.spent = dict.fromkeys(stages, 0.0)

    def time(self, stage: str, function: Callable[[], T]) -> T:
        """Calls a function and adds its duration to a stage.

        Args:
            stage: name of the stage.
            function: function to call.
        """
        before, began = sum(self.spent.values()), time.perf_counter()
        result = function()
        inner = sum(self.spent.values()) - before
        self.spent[stage] += time.perf_counter() - began - inner
        return result


class LazyImage:
    """An image of which cutting a window counts as decoding: some are decoded only there."""

    def __init__(self, image: Any, watch: Stopwatch) -> None:
        self.image, self.watch, self.shape = image, watch, image.shape

    def __getitem__(self, window: Any) -> np.ndarray:
        return self.watch.time('decode image', lambda: self.image[window])


LabelDecoder = Callable[[Dataset, EncodedRecord, Stopwatch], Label]


def png_label(data: Dataset, record: EncodedRecord, watch: Stopwatch) -> Label:
    """Decodes the label of a PNG record, in two stages."""
    raw = watch.time('decode label', lambda: codec.decode_label(record['label'], ''))
    return watch.time('map', lambda: codec.map_labels(raw, LABEL_MAP, ''))


def compact_label(data: Dataset, record: EncodedRecord, watch: Stopwatch) -> Label:
    """Decodes the label of a compact record, which needs no map."""
    return watch.time('decode label', lambda: data.decode_label(record))


def stages(data: Dataset, decode_label: LabelDecoder, repeats: int) -> dict[str, float]:
    """Measures the milliseconds per image of each stage, in one thread.

    Args:
        data: data set.
        decode_label: function that decodes a label.
        repeats: number of images.
    """
    source = data.source('train')
    transform = transforms.TrainTransform(CROP, SCALES)
    rng = np.random.default_rng(0)
    watch = Stopwatch(('read', 'decode image', 'decode label', 'map', 'augment', 'batch'))

    def make_sample(index: int) -> Any:
        record = watch.time('read', lambda: source[index % len(source)])
        image: Any = LazyImage(watch.time('decode image', lambda: data.open_image(record)), watch)
        label = decode_label(data, record, watch)
        return watch.time('augment', lambda: transform(image, label, rng))

    for start in range(0, repeats, BATCH):
        samples = [make_sample(index) for index in range(start, min(start + BATCH, repeats))]
        if len(samples) == BATCH:
            stack(samples, watch)
    return {stage: 1e3 * seconds / repeats for stage, seconds in watch.spent.items()}


def stack(samples: Sequence[Any], watch: Stopwatch) -> list[np.ndarray]:
    """Makes a batch of samples."""
    return watch.time('batch', lambda: [np.stack(arrays) for arrays in zip(*samples)])


def error(data: Dataset, small: Dataset) -> dict[str, float]:
    """Measures what the compact form changes.

    Args:
        data: data set.
        small: its compact copy.

    Returns:
        Peak signal-to-noise ratio of the images, number of wrong labels, sizes.
    """
    originals, copies = data.source('train'), small.source('train')
    by_name = {copies[i]['name']: copies[i] for i in range(len(copies))}
    squared, wrong, sizes = [], 0, np.zeros(2)
    for i in range(len(originals)):
        record, copy = originals[i], by_name[originals[i]['name']]
        a, b = data.decode(record), small.decode(copy)
        squared.append(((a['image'].astype(np.float32) - b['image']) ** 2).mean())
        wrong += int((a['label'] != b['label']).sum())
        sizes += [len(r['image']) + len(r['label']) for r in (record, copy)]
    psnr = [10 * np.log10(255**2 / s) for s in squared]
    return {
        'psnr_mean_db': float(np.mean(psnr)),
        'psnr_least_db': float(np.min(psnr)),
        'wrong_labels': wrong,
        'original_mb': sizes[0] / len(originals) / 1e6,
        'compact_mb': sizes[1] / len(originals) / 1e6,
    }


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def memory(data: Dataset, batches: int) -> list[float]:
    """Measures the MiB that the pipeline adds after the first batches and after all of them.

    Args:
        data: data set.
        batches: number of batches.
    """
    before, found = resident(), []
    with contextlib.closing(ours(data, threads=2, workers=0)) as stream:
        for i in range(batches):
            next(stream)
            if i in (5, batches - 1):
                found.append(resident() - before)
    return found


def main(options: argparse.Namespace) -> None:
    """Makes the files, times everything and writes the result."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    few = dataset(make_files(options.out / 'files', options.images))
    few_small = compact.dataset(few, ['train'], directory=options.out / 'compact', threads=cores)
    png, small = repeat(few), repeat(few_small)
    result = {
        'cores': cores,
        'stages': {
            'original': stages(few, png_label, 48),
            'compact': stages(few_small, compact_label, 48),
        },
        'compact': error(few, few_small),
        'memory': memory(png, 40),
    }
    our_transform = transforms.TrainTransform(CROP, SCALES)
    contenders: dict[str, Callable[[], Batches]] = {
        'plain loop, one thread': lambda: plain_loop(png),
        'DataLoader with OpenCV': lambda: loader(png, usual_decode, usual_transform, cores),
        'DataLoader, our steps': lambda: loader(png, our_decode, our_transform, cores),
        'ours, one thread': lambda: ours(png, threads=1, workers=0),
        'ours, a thread a core': lambda: ours(png, threads=cores, workers=0),
        'ours, compact': lambda: ours(small, threads=cores, workers=0),
        'ours, a worker a core': lambda: ours(png, threads=1, workers=cores),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, make in contenders.items():
            rates[name].append(rate(make, options.seconds))
            print(f'round {number + 1}: {name}: {rates[name][-1]:.1f} images/s', flush=True)
    result['rates'] = rates
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / 'result.json').write_text(json.dumps(result, indent=1))
    (options.out / 'table.md').write_text(table(result))
    print((options.out / 'table.md').read_text())


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        '--out',
        default='runs/benchmark/pipeline',
        type=cli.path,
        help='folder of files and results [runs/benchmark/pipeline]',
    )
    parser.add_argument('--images', default=24, type=int, help='number of painted images [24]')
    parser.add_argument('--rounds', default=3, type=int, help='number of rounds [3]')
    parser.add_argument(
        '--seconds', default=10.0, type=float, help='seconds for a contender and round [10.0]'
    )
    return parser


def table(result: Mapping[str, Any]) -> str:
    """Formats the result as Markdown."""
    medians = {name: statistics.median(values) for name, values in result['rates'].items()}
    peer = medians['DataLoader with OpenCV']
    lines = [
        f'{result["cores"]} cores, batches of {BATCH}, crops {CROP}, medians of '
        f'{len(result["rates"]["ours, compact"])} rounds.',
        '',
        '| pipeline | images/s | relative to the DataLoader |',
        '|---|---|---|',
        *(f'| {name} | {value:.1f} | {value / peer:.2f} |' for name, value in medians.items()),
        '',
        '| stage, ms per image | ' + ' | '.join(result['stages']) + ' |',
        '|---|---|---|',
    ]
    for stage in result['stages']['original']:
        values = ' | '.join(f'{times[stage]:.2f}' for times in result['stages'].values())
        lines.append(f'| {stage} | {values} |')
    for name, times in result['stages'].items():
        share = 1 - (times['decode image'] + times['decode label']) / sum(times.values())
        lines.append(f'\nEverything but decoding, {name}: {share:.0%}.')
    changed = ', '.join(f'{name} {value:.2f}' for name, value in result['compact'].items())
    lines.append(f'\nCompact form: {changed}.')
    rates = (result['rates'][name] for name in ('ours, compact', 'ours, a thread a core'))
    times = statistics.median(small / png for small, png in zip(*rates))
    lines.append(f'\nOurs, a thread a core: compact has {times:.2f} times the images/s of PNG.')
    first, last = result['memory']
    lines.append(f'\nMiB added by the pipeline after 6 and 40 batches: {first:.0f}, {last:.0f}.')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    cli.run(main, make_parser())
