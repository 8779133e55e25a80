"""Two processes that share nothing but a bucket, one of whose machines is replaced."""

import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT, one_device

# -m 'not slow' replaces the 'not soak' of pyproject.toml.
pytestmark = [pytest.mark.soak, pytest.mark.slow]


def test_a_replaced_machine_goes_on(tmp_path):
    """On both services, beside the same undisturbed runs."""
    command = ['-m', 'experiments.cloud.hosts', f'--out={tmp_path / "out"}', '--steps=12']
    process = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=one_device(), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    compared = re.findall(r'(\w+): killed after step \d+, .*: 82 arrays and 8 rows', process.stdout)
    assert compared == ['gs', 's3'], process.stdout
