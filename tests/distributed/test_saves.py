"""Checkpoints of two processes that resume, without a network."""

import socket
import subprocess
import sys

import jax.numpy as jnp
import pytest

from ggcf_jax.workdir import checkpoints
from tests.helpers import ROOT, one_device

# Saves two steps and resumes, twice. The broadcast between the saves is a collective that a word of
# Orbax to the other process would meet.
_PROCESS = """
import sys
import jax, numpy as np
from ggcf_jax.distributed import mesh, processes
from ggcf_jax.workdir import checkpoints

workdir, port, index = sys.argv[1:]
with processes.joined(processes.Launch(f'127.0.0.1:{port}', 2, int(index))):
    replicated = mesh.replicated(mesh.make_mesh())
    at = lambda step: {'model': {'w': mesh.place(np.full((4, 3), step, np.float32), replicated)}}
    for start in (0, 2):
        checkpointer = checkpoints.Checkpointer(workdir)
        trees = checkpointer.restore_latest(at(-1)) or at(0)
        assert jax.device_get(trees['model']['w'])[0, 0] == start
        for step in (start + 1, start + 2):
            checkpointer.save(step, at(step))
            assert processes.broadcast_from_process_zero(np.int32(step)) == step
        checkpointer.close()
"""


@pytest.mark.slow
def test_a_run_that_resumed_saves_again(tmp_path):
    """Process 0 alone reads what all resume from, which Orbax must not count in the next save."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, '-c', _PROCESS, str(tmp_path), str(port), str(index)],
            cwd=ROOT,
            env=one_device(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        printed = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    assert list(checkpoints.steps(tmp_path)) == [3, 4]
    found = checkpoints.Checkpointer(tmp_path).restore_latest({'model': {'w': jnp.zeros((4, 3))}})
    assert float(found['model']['w'][0, 0]) == 4
