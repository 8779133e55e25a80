"""Injects every fault of a bucket service into a run, several times, and counts what was survived.

    python -m experiments.cloud.faults --out=runs/faults

The run saves, logs, evaluates, reports and exports as training does, without a network
(`experiments.cloud.sketch`), by processes that resume one another. Requests are answered by 503,
never, or by 404 in the middle of a read; transfers are cut off; listings are those of before: the
run goes on. Permission is denied at the start, to read and to write: the process ends with one
line. Processes are killed by SIGKILL in the middle of the upload of a checkpoint, the metrics, an
event file, an evaluation, a panel, the report and an exported file. In the end parameters, metrics
and files must be those of an undisturbed run on the disk, bit for bit.
"""

import argparse
import collections
import contextlib
import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from experiments.cloud import attempts, sketch
from ggcf_jax import places
from tests.bucket_server import Fault, Proxy

_ANY = 'GET HEAD POST PUT DELETE'
_WRITES = 'POST PUT'
_READS = {'gs': 'alt=media /run/checkpoints/', 's3': '/run/checkpoints/'}  # of content, in URLs


@dataclasses.dataclass(frozen=True)
class _Case:
    """A fault, and the requests that it happens to.

    Attributes:
        name: what the table calls it.
        kind: kind of `bucket_server.Fault`.
        methods: HTTP methods of the requests.
        part: texts in their URL; '' for reads of checkpoints.
        skip: number of such requests before.
    """

    name: str
    kind: str
    methods: str
    part: str = ''
    skip: int = 0


_PASSING = (
    _Case('503', 'busy', _ANY, 'run', 3),
    _Case('time-out', 'silent', _ANY, 'run', 9),
    _Case('404 in the middle of a read', 'missing', 'GET'),
    _Case('read that is cut off', 'cut', 'GET', skip=2),
    _Case('damaged bytes', 'damaged', 'GET', skip=4),
    _Case('write that is cut off', 'lost', _WRITES, 'run', 1),
    _Case('lost answer to a write', 'done', _WRITES, 'run', 3),
    _Case('listing that lags behind', 'stale', 'GET', 'prefix=run/checkpoints'),
)
_REFUSED = (
    _Case('before the start', 'refused', _WRITES, 'may-write'),
    _Case('read of a checkpoint', 'refused', 'GET'),
    _Case('checkpoint', 'refused', _WRITES, 'checkpoints/', 3),
    _Case('metrics', 'refused', _WRITES, 'metrics.jsonl'),
    _Case('evaluation', 'refused', _WRITES, 'evaluations/'),
)
_KILLED = (
    _Case('checkpoint', 'lost', _WRITES, 'checkpoints/ /model/', 1),
    _Case('mark of a checkpoint', 'lost', _WRITES, 'commit_success', 1),
    _Case('metrics', 'lost', _WRITES, 'metrics.jsonl'),
    _Case('event file', 'lost', _WRITES, 'events.out', 1),
    _Case('evaluation', 'lost', _WRITES, 'evaluations/'),
    _Case('panel', 'lost', _WRITES, 'panels/'),
)
_LAST = (
    _Case('report', 'lost', _WRITES, 'report.html'),
    _Case('export', 'lost', _WRITES, sketch.EXPORTED),
)
_DENIED, _KILL = 'permission denied', 'kill -9 in an upload'


def main(options: argparse.Namespace) -> None:
    """Runs the comparison and prints the table."""
    services = attempts.start_services(options)
    local = options.out / 'undisturbed'
    sketch.run(str(local), options.steps)
    expected = sketch.content(local, options.steps)
    columns = []
    for scheme, service in services.items():
        work = attempts.Work(
            config='',
            workdir=f'{scheme}://bucket/run',
            log=options.out / f'{scheme}.log',
            disk=options.out / scheme,
            sketched=options.steps,
            request_timeout=2,
        )
        columns.append(_Disturbed(work, service).counts())
        found = sketch.content(places.expand(work.workdir), options.steps)
        different = [name for name in expected if found.get(name) != expected[name]]
        assert not different and found.keys() == expected.keys(), different
        print(f'{scheme}: {len(expected)} parts of the run are bit-equal', flush=True)
    print(f'\n| fault | {" | ".join(services)} | then |\n|---|{"--:|" * len(services)}---|')
    then = {_DENIED: 'one line; the same command goes on', _KILL: 'the same command goes on'}
    for name in columns[0]:
        counted = ' | '.join(str(column[name]) for column in columns)
        print(f'| {name} | {counted} | {then.get(name, "repeated; the run goes on")} |')


class _Disturbed:
    """A run in a bucket and the faults that it has seen."""

    def __init__(self, work: attempts.Work, service: Proxy):
        """
        Args:
            work: the run.
            service: its bucket.
        """
        self._work = work
        self._service = service
        self._seen: collections.Counter[str] = collections.Counter()

    def counts(self) -> dict[str, int]:
        """Injects all faults and finishes the run; returns how often each was injected."""
        for number, case in enumerate((*_KILLED, *_REFUSED)):
            with self._passing(number):
                (self._refuse if case in _REFUSED else self._kill)(case)
            print(f'{self._service.scheme}: {case.kind}, {case.name}', flush=True)
        for case in _LAST:
            self._kill(case)
            print(f'{self._service.scheme}: {case.kind}, {case.name}', flush=True)
        self._end(attempts.Attempt(self._work), 0)
        return {name: self._seen[name] for name in (*(x.name for x in _PASSING), _DENIED, _KILL)}

    @contextlib.contextmanager
    def _passing(self, number: int) -> Iterator[None]:
        """Two of each of the faults that a process survives, at other requests each time."""
        with contextlib.ExitStack() as stack:
            faults = {
                case.name: stack.enter_context(
                    self._fault(case, skip=case.skip + number % 3, times=2)
                )
                for case in _PASSING
            }
            yield
        for name, fault in faults.items():
            self._seen[name] += fault.done

    def _fault(self, case: _Case, **options: Any) -> AbstractContextManager[Fault]:
        part = case.part or _READS[self._service.scheme]
        return self._service.fault(case.kind, case.methods, part, **{'skip': case.skip} | options)

    def _kill(self, case: _Case) -> None:
        attempt = attempts.Attempt(self._work)
        with self._fault(case, call=attempt.kill):
            self._end(attempt, -9)
        self._seen[_KILL] += 1

    def _refuse(self, case: _Case) -> None:
        with self._fault(case, times=999):
            attempt = attempts.Attempt(self._work)
            self._end(attempt, 2)
        last = attempt.text().rstrip().splitlines()[-1]
        assert last.startswith('error: ') and 'refused' in last, attempt.text()
        self._seen[_DENIED] += 1

    def _end(self, attempt: attempts.Attempt, expected: int) -> None:
        code = attempt.wait()
        if code != expected:
            raise SystemExit(
                f'an attempt ended with {code} in the place of {expected}; see {self._work.log}'
            )


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = attempts.make_parser(__doc__)
    parser.add_argument('--steps', default=60, type=int, help='steps of the run [60]')
    return parser


if __name__ == '__main__':
    main(make_parser().parse_args())
