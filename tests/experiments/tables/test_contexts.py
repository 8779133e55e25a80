"""Sizes and costs of context modules, by hand and in docs/contexts.md."""

import pytest

from experiments.tables import contexts
from tests.helpers import ROOT, load_config

GI = 2**30


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_counts_of_pyramid_pooling():
    config = load_config('camvid')
    config.update_from_flattened_dict(
        {'model.context': 'psp', 'model.psp.channels': 4, 'model.psp.pool_scales': (1, 2)}
    )
    n, positions = 192, 5 * 7  # a map of ceil(40 / 8) x ceil(56 / 8) positions
    parameters, flops = contexts.measure(config, (40, 56))
    assert parameters == 2 * (n * 4 + 8) + 9 * (n + 8) * 4 + 8
    products = 9 * (n + 8) * 4 * positions + (1 + 4) * n * 4
    # Rows, then columns: to bins of n channels, and from bins of 4 channels.
    pooled = sum(bins * positions * n + bins * 7 * bins * n for bins in (1, 2))
    stretched = sum(7 * bins * bins * 4 + positions * bins * 4 for bins in (1, 2))
    assert flops == 2 * (products + pooled + stretched)


@pytest.mark.slow
def test_the_page_has_the_table():
    rows = contexts.rows_of('configs/cityscapes.py:r50', 'peers', (1024, 2048))
    page = (ROOT / 'docs' / 'contexts.md').read_text()
    assert contexts.markdown(rows).strip() in page
    flops = {row.module: row.flops for row in rows}
    assert round((flops['FULL'] - flops['Baseline']) / GI) == 520  # the paper's
