"""Detects that another process of the run is dead or stuck, and names it.

JAX waits for a lost process inside a collective, for ever or until its own heartbeat aborts every
process and identifies the lost one only by a number; a process that is alive but stuck (a file
system that hangs, a deadlock) it never detects. Here a thread of each process sends heartbeats to
a store that all can read, with the progress of its process, and reads those of the others.
Timeouts are counted in heartbeats, so clocks need not agree and a machine that was suspended as a
whole does not look dead.
"""

import dataclasses
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

LOST = 75  # exit code (EX_TEMPFAIL of sysexits.h): start again, nothing is wrong with the run
_VERDICT = 'verdict'


class Store(Protocol):
    """A key-value store that all processes of a run share."""

    def write(self, key: str, value: str) -> None:
        """Sets the value of a key, replacing an earlier one."""
        ...

    def read(self) -> dict[str, str]:
        """Returns all keys with their values."""
        ...


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why the run ends.

    Attributes:
        code: exit code of the processes that end because of it.
        text: reason, with the name of the process that caused it.
    """

    code: int
    text: str


@dataclasses.dataclass
class _Peer:
    """The latest heartbeat of another process, and how many of ours passed without a new one."""

    beat: dict[str, Any]
    missed: int = 0


class LivenessMonitor:
    """One process's view of the others.

    `beat` is called in regular intervals, by the thread that `start` starts.

    Attributes:
        interval: seconds between two heartbeats.
    """

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        *,
        peer_timeout: float,
        stall_timeout: float,
        end: Callable[[Verdict], None],
    ):
        """Starts with the other processes unheard of; sends nothing yet.

        Args:
            store: store of this run.
            index: index of this process.
            count: number of processes.
            peer_timeout: seconds without a heartbeat after which a process counts as dead.
            stall_timeout: seconds without progress, once there was any, after which a process
                counts as stuck.
            end: called in the thread with the reason to end this process.
        """
        self.interval = min(5.0, peer_timeout / 5)
        self._store = store
        self._index = index
        self._peer_timeout = peer_timeout
        self._stall_timeout = stall_timeout
        self._max_missed = round(peer_timeout / self.interval)
        self._max_stalled = round(stall_timeout / self.interval)
        self._end = end
        self._beats = 0
        self._progress, self._activity = 0, 'starting'
        self._seen_progress, self._stalled = 0, 0
        unknown = {'progress': 0, 'activity': 'starting', 'host': '?', 'pid': 0, 'beat': 0}
        self._peers = {i: _Peer(unknown) for i in range(count) if i != index}
        self._stopped = threading.Event()

    def report_progress(self, activity: str) -> None:
        """Notes that this process made progress.

        Args:
            activity: what it does now, such as 'step 7'; every process reports the same sequence.
        """
        self._progress, self._activity = self._progress + 1, activity

    def start(self) -> None:
        """Starts the thread that sends heartbeats until `stop`."""
        threading.Thread(target=self._run, name='liveness', daemon=True).start()

    def stop(self) -> None:
        """Stops the heartbeats; `end` is not called any more."""
        self._stopped.set()

    def publish(self, verdict: Verdict) -> None:
        """Tells the others why the run ends; the first verdict wins."""
        if _VERDICT not in self._store.read():
            self._store.write(_VERDICT, json.dumps(dataclasses.asdict(verdict)))

    def beat(self) -> Verdict | None:
        """Sends a heartbeat and reads those of the others.

        Returns:
            Why the run ends, or None if it goes on.
        """
        self._beats += 1
        own = {
            'progress': self._progress,
            'activity': self._activity,
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'beat': self._beats,
        }
        self._store.write(str(self._index), json.dumps(own))
        found = self._store.read()
        if _VERDICT in found:
            return Verdict(**json.loads(found[_VERDICT]))
        for i, peer in self._peers.items():
            beat = json.loads(found[str(i)]) if str(i) in found else peer.beat
            peer.missed = 0 if beat != peer.beat else peer.missed + 1
            peer.beat = beat
        self._stalled = self._stalled + 1 if own['progress'] == self._seen_progress else 0
        self._seen_progress = self._progress
        verdict = self._dead() or self._stuck(own)
        if verdict is not None:
            self.publish(verdict)
        return verdict

    def _dead(self) -> Verdict | None:
        gone = [i for i, peer in self._peers.items() if peer.missed >= self._max_missed]
        if not gone:
            return None
        names = ' and '.join(_name(i, self._peers[i].beat) for i in gone)
        return Verdict(
            LOST, f'no heartbeat for {self._peer_timeout:g} s from {names}: dead or unreachable'
        )

    def _stuck(self, own: dict[str, Any]) -> Verdict | None:
        if not own['progress'] or self._stalled < self._max_stalled:
            return None
        beats = {self._index: own} | {i: peer.beat for i, peer in self._peers.items()}
        least = min(beat['progress'] for beat in beats.values())
        behind = [_name(i, beat) for i, beat in sorted(beats.items()) if beat['progress'] == least]
        who = 'all processes' if len(behind) == len(beats) else ' and '.join(behind)
        return Verdict(LOST, f'no progress for {self._stall_timeout:g} s; stuck: {who}')

    def _run(self) -> None:
        while not self._stopped.wait(self.interval):
            try:
                verdict = self.beat()
            except Exception as error:  # process 0 has the store; without it JAX ends us soon
                print(f'process 0 does not answer: {error}', file=sys.stderr, flush=True)
                continue
            if verdict is not None and not self._stopped.is_set():
                self._end(verdict)
                return


def _name(index: int, beat: dict[str, Any]) -> str:
    return f'process {index} (host {beat["host"]}, pid {beat["pid"]}, at {beat["activity"]!r})'
