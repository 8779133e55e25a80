"""Two processes that share nothing but a bucket, one of whose machines is replaced."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT

# -m 'not slow' replaces the 'not soak' of pyproject.toml.
pytestmark = [pytest.mark.soak, pytest.mark.slow]


@pytest.mark.parametrize('scheme', ['gs', 's3'])
def test_a_replaced_machine_goes_on(scheme, tmp_path):
    out = f'--out={tmp_path / "out"}'
    command = ['-m', 'experiments.cloud.hosts', out, f'--services={scheme}', '--steps=12']
    process = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert 'process 0 replaced: 82 arrays' in process.stdout
