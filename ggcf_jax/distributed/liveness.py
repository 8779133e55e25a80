"""Noticing that another process of the run is dead or stuck, and saying which.

JAX waits for a lost process inside a collective, for ever or until its own heartbeat aborts every
process with a number for a name; a process that is alive but stuck (a file system that hangs, a
deadlock) it never notices. Here a thread of each process writes on a board that all can read how
far its process is, and reads how far the others are. Times are counted in looks at the board, so
clocks need not agree and a machine that was suspended as a whole does not look dead.
"""

import dataclasses
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Protocol

LOST = 75  # exit code (EX_TEMPFAIL of sysexits.h): start again, nothing is wrong with the run
_VERDICT = 'verdict'


class Board(Protocol):
    """What all processes can write to and read."""

    def write(self, key: str, value: str) -> None: ...

    def read(self) -> dict[str, str]: ...


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why the run ends.

    Attributes:
        code: exit code of the processes that end because of it.
        text: names the process it is about.
    """

    code: int
    text: str


@dataclasses.dataclass
class _Peer:
    """What is known of another process, and for how many looks nothing new came."""

    beat: dict
    silent: int = 0


class Watch:
    """One process's view of the others.

    `look` is called in regular intervals, by the thread that `start` starts.
    """

    def __init__(
        self,
        board: Board,
        index: int,
        count: int,
        *,
        peer_timeout: float,
        stall_timeout: float,
        end: Callable[[Verdict], None],
    ):
        """
        Args:
            board: of this run.
            index: of this process. count: of all.
            peer_timeout: seconds without a sign of life after which a process is dead.
            stall_timeout: seconds without progress, once there was any, after which it is stuck.
            end: is called in the thread with the reason to end this process.
        """
        self.interval = min(5.0, peer_timeout / 5)
        self._board = board
        self._index = index
        self._silent_looks = round(peer_timeout / self.interval)
        self._stalled_looks = round(stall_timeout / self.interval)
        self._timeouts = (peer_timeout, stall_timeout)
        self._end = end
        self._looks = 0
        self._mark, self._what = 0, 'starting'
        self._seen_mark, self._stalled = 0, 0
        unknown = {'mark': 0, 'what': 'starting', 'host': '?', 'pid': 0, 'look': 0}
        self._peers = {i: _Peer(unknown) for i in range(count) if i != index}
        self._over = threading.Event()

    def progress(self, what: str) -> None:
        """Notes that this process has come to `what`; every process notes the same things."""
        self._mark, self._what = self._mark + 1, what

    def start(self) -> None:
        """Looks in regular intervals until `stop`."""
        threading.Thread(target=self._run, name='watch', daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def publish(self, verdict: Verdict) -> None:
        """Tells the others why the run ends; the first word stands."""
        if _VERDICT not in self._board.read():
            self._board.write(_VERDICT, json.dumps(dataclasses.asdict(verdict)))

    def look(self) -> Verdict | None:
        """Writes how far this process is and reads the others.

        Returns:
            Why the run ends, or None if it goes on.
        """
        self._looks += 1
        own = {
            'mark': self._mark,
            'what': self._what,
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'look': self._looks,
        }
        self._board.write(str(self._index), json.dumps(own))
        notes = self._board.read()
        if _VERDICT in notes:
            return Verdict(**json.loads(notes[_VERDICT]))
        for i, peer in self._peers.items():
            beat = json.loads(notes[str(i)]) if str(i) in notes else peer.beat
            peer.silent = 0 if beat != peer.beat else peer.silent + 1
            peer.beat = beat
        self._stalled = self._stalled + 1 if own['mark'] == self._seen_mark else 0
        self._seen_mark = own['mark']
        verdict = self._dead() or self._stuck(own)
        if verdict is not None:
            self.publish(verdict)
        return verdict

    def _dead(self) -> Verdict | None:
        gone = [i for i, peer in self._peers.items() if peer.silent >= self._silent_looks]
        if not gone:
            return None
        names = ' and '.join(_name(i, self._peers[i].beat) for i in gone)
        return Verdict(
            LOST, f'no sign of life for {self._timeouts[0]:g} s from {names}: dead or unreachable'
        )

    def _stuck(self, own: dict) -> Verdict | None:
        if not own['mark'] or self._stalled < self._stalled_looks:
            return None
        beats = {self._index: own} | {i: peer.beat for i, peer in self._peers.items()}
        least = min(beat['mark'] for beat in beats.values())
        behind = [_name(i, beat) for i, beat in sorted(beats.items()) if beat['mark'] == least]
        who = 'all processes' if len(behind) == len(beats) else ' and '.join(behind)
        return Verdict(LOST, f'no progress for {self._timeouts[1]:g} s: stuck is {who}')

    def _run(self) -> None:
        while not self._over.wait(self.interval):
            try:
                verdict = self.look()
            except Exception as error:  # the board is process 0's; without it JAX ends us soon
                print(f'process 0 does not answer: {error}', file=sys.stderr, flush=True)
                continue
            if verdict is not None and not self._over.is_set():
                self._end(verdict)
                return


def _name(index: int, beat: dict) -> str:
    return f'process {index} (host {beat["host"]}, pid {beat["pid"]}, at {beat["what"]!r})'
