"""Times the training input pipeline by stage, and against a plain loop and a PyTorch DataLoader.

    python -m experiments.benchmark.pipeline --out=runs/benchmark/pipeline

Paints street scenes of 1024 x 2048 once, blurred as by a lens until the PNG files are about as
large as those of Cityscapes (2.3 MB), and makes batches of eight 769 crops of them. All contenders
run in turn, several rounds; each is timed from an empty buffer, so that what is made ahead counts
for nobody. Writes <out>/table.md and <out>/result.json. Run it from the root of the repository;
needs the parity extra.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch

from experiments.benchmark.pipeline_files import dataset, make_files, many
from ggcf_jax.data import mixture, pipeline, transforms
from ggcf_jax.data.records import codec, compact
from ggcf_jax.data.records.dataset import Dataset

CROP = (769, 769)
SCALES = (0.5, 1.5)  # the paper's
BATCH = 8


def ours(data: Dataset, threads: int, workers: int) -> Iterator:
    """The product's pipeline."""
    return pipeline.train_batches(
        mixture.records(data, mixture.parse('train')),
        (1.0,),
        transforms.TrainTransform(CROP, SCALES),
        seed=0,
        batch_size=BATCH,
        loader=pipeline.LoaderOptions(threads, workers, 2),
    )


def usual_transform(image, label, rng):
    """Rescale, crop, pad and flip in the usual order: the whole image is resized first."""
    scale = rng.uniform(*SCALES)
    size = tuple(round(n * scale) for n in reversed(label.shape))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    top, left = (int(rng.integers(0, max(0, n - c) + 1)) for n, c in zip(label.shape, CROP))
    window = slice(top, top + CROP[0]), slice(left, left + CROP[1])
    image, label = transforms.pad_to(image[window], label[window], CROP)
    return transforms.random_flip(image, label, rng)


def usual_decode(data: Dataset, record: dict) -> dict:
    """Image and mapped label of a record, by OpenCV alone."""
    image, label = (np.frombuffer(record[kind], np.uint8) for kind in ('image', 'label'))
    return {
        'image': cv2.imdecode(image, cv2.IMREAD_COLOR_RGB),
        'label': cv2.LUT(cv2.imdecode(label, cv2.IMREAD_UNCHANGED), data.label_map),
    }


def our_decode(data: Dataset, record: dict) -> dict:
    """As the product does it."""
    return data.decode(record)


class TorchData(torch.utils.data.Dataset):
    """The same records and operations as a PyTorch data set."""

    def __init__(self, data: Dataset, decode: Callable, transform: Callable):
        self.data, self.decode, self.transform = data, decode, transform

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int):
        source = self.data.source('train')
        example = self.decode(self.data, source[index % len(source)])
        rng = np.random.default_rng(index)
        image, label = self.transform(example['image'], example['label'], rng)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(
            np.ascontiguousarray(label)
        )


def loader(data: Dataset, decode: Callable, transform: Callable, workers: int) -> Iterator:
    """A PyTorch DataLoader with worker processes."""
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


def plain_loop(data: Dataset) -> Iterator:
    """One sample after the other, in one thread."""
    transform = transforms.TrainTransform(CROP, SCALES)
    source = data.source('train')
    rng = np.random.default_rng(0)
    while True:
        samples = []
        for _ in range(BATCH):
            example = data.decode(source[int(rng.integers(len(source)))])
            samples.append(transform(example['image'], example['label'], rng))
        yield tuple(np.stack(arrays) for arrays in zip(*samples))


def rate(make: Callable[[], Iterator], seconds: float) -> float:
    """Images a second of a contender that starts anew."""
    with contextlib.closing(make()) as batches:
        for _ in range(4):  # what may be made ahead, and the start of workers
            next(batches)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(batches)
            count += BATCH
        return count / (time.perf_counter() - began)


class Windows:
    """An image; cutting a window of it counts as decoding, which it may be."""

    def __init__(self, image, timed: Callable):
        self.image, self.timed, self.shape = image, timed, image.shape

    def __getitem__(self, window):
        return self.timed('decode image', lambda: self.image[window])


def png_label(data: Dataset, record: dict, timed: Callable) -> np.ndarray:
    """The label of a PNG record, in two stages."""
    raw = timed('decode label', lambda: codec.decode_label(record['label'], ''))
    return timed('map', lambda: codec.map_labels(raw, data.label_map, ''))


def compact_label(data: Dataset, record: dict, timed: Callable) -> np.ndarray:
    """The label of a compact record, which needs no map."""
    return timed('decode label', lambda: data.decode_label(record))


def stages(data: Dataset, label_of: Callable, repeats: int) -> dict[str, float]:
    """Milliseconds an image of each stage, in one thread."""
    source = data.source('train')
    transform = transforms.TrainTransform(CROP, SCALES)
    rng = np.random.default_rng(0)
    spent = dict.fromkeys(('read', 'decode image', 'decode label', 'map', 'augment', 'batch'), 0.0)

    def timed(stage, function):
        """Adds what the function takes, less the stages within it."""
        before, began = sum(spent.values()), time.perf_counter()
        result = function()
        spent[stage] += time.perf_counter() - began - (sum(spent.values()) - before)
        return result

    done = []
    for index in range(repeats):
        record = timed('read', lambda i=index: source[i % len(source)])
        image = Windows(timed('decode image', lambda r=record: data.open_image(r)), timed)
        label = label_of(data, record, timed)
        done.append(timed('augment', lambda i=image, x=label: transform(i, x, rng)))
        if len(done) == BATCH:
            timed('batch', lambda d=done: [np.stack(arrays) for arrays in zip(*d)])
            done = []
    return {stage: 1e3 * seconds / repeats for stage, seconds in spent.items()}


def error(data: Dataset, small: Dataset) -> dict[str, float]:
    """What the compact form changes: peak signal-to-noise ratio of the images, labels, bytes."""
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
    """MiB of this process in memory."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def memory(data: Dataset, batches: int) -> list[float]:
    """MiB added after the first batches and after all of them."""
    before, found = resident(), []
    with contextlib.closing(ours(data, 2, 0)) as stream:
        for i in range(batches):
            next(stream)
            if i in (5, batches - 1):
                found.append(resident() - before)
    return found


def main() -> None:
    """Makes the files, times everything, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='runs/benchmark/pipeline', type=pathlib.Path)
    parser.add_argument('--images', default=24, type=int)
    parser.add_argument('--rounds', default=3, type=int)
    parser.add_argument('--seconds', default=10.0, type=float, help='a contender and round')
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    few = dataset(make_files(options.out / 'files', options.images))
    few_small = compact.dataset(few, ['train'], options.out / 'compact', cores)
    png, small = many(few), many(few_small)
    result = {
        'cores': cores,
        'stages': {
            'original': stages(few, png_label, 48),
            'compact': stages(few_small, compact_label, 48),
        },
        'compact': error(few, few_small),
        'memory': memory(png, 40),
    }
    ours_transform = transforms.TrainTransform(CROP, SCALES)
    contenders = {
        'plain loop, one thread': lambda: plain_loop(png),
        'DataLoader with OpenCV': lambda: loader(png, usual_decode, usual_transform, cores),
        'DataLoader, our steps': lambda: loader(png, our_decode, ours_transform, cores),
        'ours, one thread': lambda: ours(png, 1, 0),
        'ours, a thread a core': lambda: ours(png, cores, 0),
        'ours, compact': lambda: ours(small, cores, 0),
        'ours, a worker a core': lambda: ours(png, 1, cores),
    }
    rates = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, make in contenders.items():
            rates[name].append(rate(make, options.seconds))
            print(f'round {number + 1}: {name}: {rates[name][-1]:.1f} images/s', flush=True)
    result['rates'] = rates
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / 'result.json').write_text(json.dumps(result, indent=1))
    (options.out / 'table.md').write_text(table(result))
    print((options.out / 'table.md').read_text())


def table(result: dict) -> str:
    """The result as Markdown."""
    medians = {name: statistics.median(values) for name, values in result['rates'].items()}
    peer = medians['DataLoader with OpenCV']
    lines = [
        f'{result["cores"]} cores, batches of {BATCH}, crops {CROP}, medians of '
        f'{len(result["rates"]["ours, compact"])} rounds.',
        '',
        '| pipeline | images/s | to the DataLoader |',
        '|---|---|---|',
        *(f'| {name} | {value:.1f} | {value / peer:.2f} |' for name, value in medians.items()),
        '',
        '| stage, ms an image | ' + ' | '.join(result['stages']) + ' |',
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
    main()
