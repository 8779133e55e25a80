import pytest

from ggcf_jax import config as config_lib
from ggcf_jax.data import advice


@pytest.mark.parametrize(
    ('threads', 'workers', 'cores', 'said'),
    [
        (16, 0, 1, 'one core is in use, so that more threads or workers do not help'),
        (16, 0, 2, 'all 2 cores are in use'),
        (1, 0, 2, 'raise config.data.threads=1 to 2'),
        (16, 0, 16, 'try config.data.threads=4 and config.data.workers=4'),
        (4, 2, 64, 'try config.data.threads=4 and config.data.workers=16'),
        (4, 16, 64, 'all 64 cores are in use'),
    ],
)
def test_advice_knows_the_cores(threads, workers, cores, said):
    data = config_lib.default().data
    data.threads, data.workers = threads, workers
    text = advice.faster(data, cores)
    assert said in text and text.startswith("config.data.storage='compact'")
    assert 'config.data.cache_mib keeps decoded images in memory' in text
    data.storage, data.cache_mib = 'compact', 100
    assert 'cache_mib' not in advice.faster(data, cores)
    assert 'compact' not in advice.faster(data, cores)
