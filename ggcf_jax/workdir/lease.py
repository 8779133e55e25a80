"""`lease.json`: which process writes the workdir. One at a time may train there.

The holder renews its lease every `INTERVAL` seconds, by a number that counts up: clocks of two
machines need not agree. A start that finds a lease

- of a process of the same machine that has ended takes it over at once;
- of any other process watches it for `PATIENCE` seconds: if it is renewed in that time, the start
  is refused and the holder named, and otherwise it is taken over.

The holder looks at its lease before each renewal and before it saves (`check`). If it was taken
over in the meantime, as from a machine that was suspended, it ends without writing.

The rule needs a file that can be created if it does not exist and read back, as local folders,
network file systems and buckets (a precondition of the request) have it. It does not need file
locks. Two starts that watched the same dead holder may both take over: each looks again after
`SETTLING`, when only one lease is there.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from ggcf_jax import atomic, json_files, places
from ggcf_jax.errors import InputError

FILE_NAME = 'lease.json'
INTERVAL = 10.0  # seconds between two renewals
SETTLING = 3.0  # seconds until a start that took over a watched lease looks again
PATIENCE = 60.0  # seconds without a renewal after which a holder counts as dead


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lease: what the file has.

    Attributes:
        token: random text of this lease.
        host: name of the machine.
        pid: process id.
        since: when the lease was taken, ISO 8601 in UTC.
        renewals: number of renewals.
        machine: text that tells the processes apart that can see each other (`_machine`).
        began: when the process was started, as the kernel counts it: process ids are used again.
    """

    token: str
    host: str
    pid: int
    since: str
    renewals: int
    machine: str
    began: str

    def __str__(self) -> str:
        return f'host {self.host}, pid {self.pid}, since {self.since}'

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None if this machine cannot tell."""
        if not self.machine or self.machine != _machine():
            return None
        return _began(self.pid) != self.began


class Lease:
    """The lease of this process on a workdir."""

    def __init__(self, workdir: pathlib.Path):
        """Describes the lease; `taken` takes it.

        Args:
            workdir: directory of the run.
        """
        self._workdir = places.expand(workdir)
        self._path = self._workdir / FILE_NAME
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        pid = os.getpid()
        self._own = Holder(
            uuid.uuid4().hex, socket.gethostname(), pid, now, 0, _machine(), _began(pid)
        )
        self._released = threading.Event()
        self._renewing = threading.Lock()

    def check(self) -> None:
        """Makes sure that this process still holds the lease.

        Raises:
            InputError: another process has taken it over.
        """
        found = _read(self._path)
        if found is not None and found.token != self._own.token:
            raise InputError(
                f'workdir {str(self._workdir)!r} was taken over by another process ({found}), '
                'since this one had not renewed its lease; nothing more is written here'
            )

    def release(self) -> None:
        """Gives the lease back; a second call does nothing."""
        self._released.set()
        with self._renewing, contextlib.suppress(OSError, InputError):
            found = _read(self._path)
            if found is not None and found.token == self._own.token:
                self._path.unlink(missing_ok=True)

    def take(self, report: Callable[[str], None]) -> None:
        """Takes the lease and starts to renew it.

        Args:
            report: called with one line if another holder is watched, which takes `PATIENCE`.

        Raises:
            InputError: another process holds it, or the workdir cannot be written.
        """
        with places.writing(self._workdir, '--workdir'):
            self._workdir.mkdir(parents=True, exist_ok=True)
            watched = False
            while not atomic.create(self._path, self._content()):
                watched = self._wait_for_the_end_of_another(report)
            if watched:
                time.sleep(min(SETTLING, PATIENCE))
            self.check()
        threading.Thread(target=self._renew, name='lease', daemon=True).start()

    def _wait_for_the_end_of_another(self, report: Callable[[str], None]) -> bool:
        """Removes the lease of a holder that has ended; returns whether it had to be watched.

        Raises:
            InputError: it has not.
        """
        holder = _read(self._path)
        ended = False if holder is None else holder.has_ended()
        watched = ended is None
        if watched:
            report(
                f'{self._workdir}: waiting {PATIENCE:.0f} s, whether its holder ({holder}) is alive'
            )
        deadline = time.monotonic() + PATIENCE
        while ended is None and time.monotonic() < deadline:
            time.sleep(min(INTERVAL, PATIENCE) / 10)
            found = _read(self._path)
            if found != holder:
                holder, ended = found, False
        if ended is False and holder is not None:
            raise InputError(
                f'workdir {str(self._workdir)!r} is in use by another process ({holder}); wait for '
                'it or stop it, or choose another --workdir'
            )
        self._path.unlink(missing_ok=True)
        return watched

    def _content(self) -> bytes:
        return json.dumps(dataclasses.asdict(self._own), indent=1).encode()

    def _renew(self) -> None:
        while not self._released.wait(INTERVAL):
            # A full disk or an unreachable server may be a matter of minutes: the next one tries.
            with self._renewing, contextlib.suppress(OSError, InputError):
                if self._released.is_set():
                    return
                found = _read(self._path)
                if found is not None and found.token != self._own.token:
                    return  # `check` tells
                self._own = dataclasses.replace(self._own, renewals=self._own.renewals + 1)
                atomic.write(self._path, self._content())


@contextlib.contextmanager
def taken(workdir: pathlib.Path, report: Callable[[str], None] = print) -> Iterator[Lease]:
    """Holds the lease of a workdir for the time of the context.

    Args:
        workdir: directory of the run, made if missing; removed again if nothing was written there.
        report: called with one line if another holder is watched, which takes `PATIENCE`.

    Raises:
        InputError: another process holds it, or the workdir cannot be written.
    """
    workdir = places.expand(workdir)
    is_new = not workdir.exists()
    lease = Lease(workdir)
    lease.take(report)
    try:
        yield lease
    finally:
        lease.release()
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                workdir.rmdir()


def holder(workdir: pathlib.Path) -> Holder | None:
    """Who holds the lease of a workdir, None if nobody does.

    Args:
        workdir: directory of a run.
    """
    return _read(places.expand(workdir) / FILE_NAME)


def _read(path: pathlib.Path) -> Holder | None:
    """The lease in a file; None if there is none."""
    try:
        content = json_files.parse_object(path.read_bytes())
        for field in dataclasses.fields(Holder):
            if field.type is int:
                json_files.need(content, field.name, json_files.is_count, 'a whole number')
            else:
                json_files.need(content, field.name, _is_line, 'a line of text')
        return Holder(**{field.name: content[field.name] for field in dataclasses.fields(Holder)})
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f'{path} is damaged ({error}); delete it if no process trains in this workdir'
        ) from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _is_line(value: Any) -> bool:
    return json_files.is_text(value) and value.isprintable() and len(value) < 1000


def _machine() -> str:
    """Names what process ids are unique in: a boot of a kernel, and a namespace of it (containers).

    Empty where the system does not say; process ids are not compared then.
    """
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return ''


def _began(pid: int) -> str:
    """When a process was started, in ticks since the boot; empty if there is none of that id."""
    try:
        # The second field is the name in brackets, which may hold anything; 'Z' is a process that
        # has ended and that its parent has not asked about.
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return '' if fields[0] in 'ZX' else fields[19]
    except (OSError, IndexError):
        return ''
