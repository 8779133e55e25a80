"""The benchmark of an accelerator, with the CPU in its place."""

import csv

import jax
import pytest

from ggcf_jax.attention import parse
from ggcf_jax.errors import InputError

pytest.importorskip('torch')

from experiments.benchmark import on_device


def test_without_an_accelerator_it_is_refused(tmp_path):
    with pytest.raises(InputError, match='--device needs a GPU or a TPU'):
        on_device.run(tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_wrong_kernels_stop_it(monkeypatch):
    on_device.check(parse('local:1'), (1, 4, 5), 8)
    monkeypatch.setattr(
        on_device, '_ours',
        lambda graph, name, ours=on_device._ours: (
            ours(graph, name) if name == 'reference' else lambda q, k, v: v
        ),
    )  # fmt: skip
    with pytest.raises(InputError, match='local:1: o of xla differs from the reference by'):
        on_device.check(parse('local:1'), (1, 4, 5), 8)


def test_rows_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(on_device.chips, 'peak_flops', lambda kind: 1e9)
    rows = list(on_device.time_graph(parse('full')[0], (1, 4, 5), 8, rounds=2))
    assert [(row.passes, row.contender) for row in rows] == [
        ('forward', 'ours (xla)'),
        ('both', 'ours (xla)'),
    ]
    flops = 4 * 8 * 20**2
    for row in rows:
        factor = 3.5 if row.passes == 'both' else 1
        assert row.share == pytest.approx(flops * factor / 1e9 / (row.milliseconds / 1e3))
    on_device.write(rows, tmp_path, 'some chip')
    with (tmp_path / 'device.csv').open(newline='') as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    table = (tmp_path / 'device.md').read_text().splitlines()
    assert table[0].startswith(f'some chip, jax {jax.__version__}')
    assert len([line for line in table if line.startswith('| full | 1x4x5, 8 |')]) == 2
