"""Times the copy of a bucket to this machine beside plain copies, and a second start.

    python -m experiments.cloud.staging --out=runs/staging

Prints, for each service, MB/s of the copy that training starts with, of fsspec's `get`, which
verifies nothing, and of a copy on the disk, each the median of rounds that take turns; then how
many bytes a second start copies, and how long it takes. The service runs beside the client in this
process and bounds the first two.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import time
import urllib.parse
from collections.abc import Callable

import fsspec
import numpy as np

from experiments.cloud import attempts
from ggcf_jax import buckets
from ggcf_jax.data.records import staging
from tests.bucket_server import Proxy

_FILES = 16


def main(options: argparse.Namespace) -> None:
    """Runs the comparison and prints the table."""
    services = attempts.start_services(options)
    os.environ[staging.VARIABLE] = str(options.out.absolute() / 'cache')
    folder = options.out / 'files'
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(_FILES):
        (folder / f'shard-{i:05d}').write_bytes(rng.bytes(options.megabytes * 10**6 // _FILES))
    print('| | staged | fsspec `get` | on the disk | second start: bytes, seconds |')
    print('|---|--:|--:|--:|--:|', flush=True)
    for service in services.values():
        print(_row(service, folder, options), flush=True)


def _row(service: Proxy, folder: pathlib.Path, options: argparse.Namespace) -> str:
    """The row of a service in the table."""
    there = buckets.parse(f'{service.scheme}://bucket/files')
    buckets.upload_tree(folder, there, last='shard-00000')
    library = fsspec.filesystem(service.scheme)
    copy = options.out / 'copy'
    ways: list[Callable[[], object]] = [
        lambda: staging.local(there, '--out'),
        lambda: library.get('bucket/files', str(copy), recursive=True),
        lambda: shutil.copytree(folder, copy),
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(options.rounds):
        for times, way in zip(seconds, ways):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.rmtree(staging.cache(), ignore_errors=True)
            times.append(_timed(way))
    staging.local(there, '--out')
    service.requests.clear()
    again = _timed(lambda: staging.local(there, '--out'))
    paths = [urllib.parse.unquote(url.partition('?')[0]) for _, url in service.requests]
    names = [path.rpartition('/')[2] for path in paths]
    copied = sum((folder / name).stat().st_size for name in names if name.startswith('shard-'))
    rates = [f'{options.megabytes / statistics.median(times):.0f}' for times in seconds]
    return f'| {service.scheme} | {" | ".join(rates)} | {copied}, {again:.2f} |'


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = attempts.make_parser(__doc__)
    parser.add_argument('--megabytes', default=320, type=int, help='size of the copy [320]')
    parser.add_argument('--rounds', default=5, type=int, help='number of rounds [5]')
    return parser


if __name__ == '__main__':
    main(make_parser().parse_args())
