"""A headless Chromium for tests, driven by its DevTools protocol over a pair of pipes."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')


def find() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Refused(AssertionError):
    """The browser answered a command with an error."""


class Page:
    """One tab. Messages end in a zero byte; the browser answers each by its number."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, answers
        self._numbers = itertools.count(1)
        self._buffer = b''
        self._session = {}
        self.messages = []  # of the console, errors among them
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
        self._session = {'sessionId': attached['sessionId']}
        for domain in ('Page', 'Runtime', 'DOM', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **parameters) -> dict:
        """Runs a command of the protocol and returns its result."""
        number = next(self._numbers)
        message = {'id': number, 'method': method, 'params': parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == number:
                if 'error' in answer:
                    raise Refused(method, answer)
                return answer['result']
            if answer.get('method') in ('Log.entryAdded', 'Runtime.exceptionThrown'):
                self.messages.append(answer['params'])

    def run(self, script: str):
        """The value of a JavaScript expression; promises are waited for."""
        found = self.call(
            'Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True
        )
        assert 'exceptionDetails' not in found, (script, found)
        return found['result'].get('value')

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < end, (condition, self.run('document.body.innerText'))
            time.sleep(0.05)

    def _holds(self, condition: str) -> bool:
        try:
            return self.run(f'Boolean({condition})')
        except Refused:  # the page that was asked is being left for another one
            return False

    def choose_files(self, selector: str, paths: list[pathlib.Path]) -> None:
        """Chooses files as the dialogue of a file input would."""
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', files=list(map(str, paths)), nodeId=node)

    def click(self, selector: str, right: float = 0.5, down: float = 0.5) -> None:
        """A mouse click inside an element, at these shares of its width and height."""
        box = self.run(
            f'(() => {{ const e = document.querySelector({json.dumps(selector)});'
            ' e.scrollIntoView({block: "center"}); const b = e.getBoundingClientRect();'
            ' return [b.left, b.top, b.width, b.height]; })()'
        )
        at = {'x': box[0] + right * box[2], 'y': box[1] + down * box[3]}
        for kind in ('mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **at)

    def press(self, key: str, code: int) -> None:
        """A key with its Windows key code."""
        names = {'key': key, 'code': key, 'windowsVirtualKeyCode': code}
        for kind in ('rawKeyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, **names)

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes what the page shows, all of it, as a PNG."""
        shot = self.call('Page.captureScreenshot', captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot['data']))

    def _receive(self) -> dict:
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], 60)
            piece = os.read(self._answers, 2**16) if ready else b''
            assert piece, 'the browser does not answer'
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)


@contextlib.contextmanager
def open_page(path: str, size: tuple[int, int] = (1280, 900)) -> Iterator[Page]:
    """Starts the browser at `path` and yields a page of this width and height."""
    commands, answers = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        options = [
            '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run',
            '--disable-dev-shm-usage', '--disable-background-networking', '--hide-scrollbars',
            '--remote-debugging-pipe', f'--user-data-dir={profile}',
            f'--window-size={size[0]},{size[1]}',
        ]  # fmt: skip
        # The browser reads commands from descriptor 3 and answers on 4.
        redirect = f'exec "$0" "$@" 3<&{commands[0]} 4>&{answers[1]}'
        process = subprocess.Popen(
            ['bash', '-c', redirect, path, *options],
            pass_fds=(commands[0], answers[1]),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0]), os.close(answers[1])
        try:
            page = Page(commands[1], answers[0])
            yield page
        finally:
            _end(process)
            os.close(commands[1]), os.close(answers[0])


def _end(process: subprocess.Popen) -> None:
    """Ends the browser and the processes that it started, which write its profile after it."""
    process.terminate()
    process.wait(20)
    end = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):  # none is left in the group of the browser
        while time.monotonic() < end:
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
