"""Kills a run in a bucket at random moments and compares it with an undisturbed one on the disk.

    python -m experiments.cloud.kills --out=runs/kills --kills=10

Trains configs/street_scenes.py at a tiny size. Each attempt is a process of its own that resumes
what is in the bucket. It gets SIGKILL while it starts, between steps, or in the middle of a request
that writes. In the end parameters, batch statistics and metrics must equal those of the undisturbed
run bit by bit.
"""

import argparse
import collections
import random
import time

from experiments import soak
from experiments.cloud import attempts
from ggcf_jax import places
from ggcf_jax.workdir import config as workdir_config
from tests.bucket_server import Proxy

# Shares of the moments.
MOMENTS = {'while starting': 0.2, 'between steps': 0.3, 'inside an upload': 0.5}


def main(options: argparse.Namespace) -> None:
    """Runs the comparison and prints a row of counts for each service."""
    services = attempts.start_services(options)
    config = attempts.tiny_config(options.out, options.steps)
    text = workdir_config.to_text(config)
    local = options.out / 'undisturbed'
    work = attempts.Work(text, str(local), options.out / 'undisturbed.log', options.out / 'disk')
    if attempts.Attempt(work).wait():
        raise SystemExit(f'the undisturbed run failed; see {work.log}')
    for scheme, service in services.items():
        workdir = f'{scheme}://bucket/run'
        work = attempts.Work(text, workdir, options.out / f'{scheme}.log', options.out / scheme)
        rng = random.Random(f'{options.seed}/{scheme}')
        counts: collections.Counter[str] = collections.Counter()
        while counts.total() < options.kills:
            moment = rng.choices([*MOMENTS], [*MOMENTS.values()])[0]
            _kill(work, service, moment, rng)
            counts[moment] += 1
            print(f'{scheme}: {counts.total():3d} {moment}', flush=True)
        if attempts.Attempt(work).wait():
            raise SystemExit(f'the last attempt failed; see {work.log}')
        equal = soak.compare(config, local, places.expand(workdir))
        told = ', '.join(f'{count} {moment}' for moment, count in sorted(counts.items()))
        print(f'{scheme}: killed {counts.total()} times ({told}); {equal}', flush=True)


def _kill(work: attempts.Work, service: Proxy, moment: str, rng: random.Random) -> None:
    attempt = attempts.Attempt(work)
    if moment == 'inside an upload':
        # As many requests as a checkpoint, a log or an evaluation may take.
        kind, skip = rng.choice(('lost', 'done')), rng.randrange(60)
        with service.fault(kind, 'POST PUT', 'run', skip=skip, call=attempt.kill):
            code = attempt.wait()
    else:
        if moment == 'between steps':
            attempt.wait_for('\nstep ')
            time.sleep(rng.uniform(0, 2))
        else:
            time.sleep(rng.uniform(0, 4))
        attempt.kill()
        code = attempt.wait()
    if code != -9:
        raise SystemExit(
            f'an attempt ended with {code} before it was killed; see {work.log}, or raise --steps'
        )


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = attempts.make_parser(__doc__)
    parser.add_argument('--kills', default=10, type=int, help='number of kills [10]')
    parser.add_argument('--steps', default=160, type=int, help='steps of the run [160]')
    parser.add_argument('--seed', default=0, type=int, help='seed of the moments [0]')
    return parser


if __name__ == '__main__':
    main(make_parser().parse_args())
