"""The run without a network that faults are injected into."""

import pytest

from experiments.cloud import sketch
from ggcf_jax import places


@pytest.mark.slow
def test_in_a_bucket_it_goes_on_and_ends_as_on_the_disk(bucket, tmp_path):
    sketch.run(str(tmp_path / 'whole'), 6)
    workdir = f'{bucket.scheme}://bucket/run'
    for steps in (4, 6):
        sketch.run(workdir, steps)
    found = sketch.content(places.expand(workdir), 6)
    expected = sketch.content(tmp_path / 'whole', 6)
    assert found == expected
    assert {'evaluations/00000004.json', 'panels/00000004.png', 'exported.bin'} < found.keys()
