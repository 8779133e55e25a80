import csv
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.figures import fig6_receptive_field, receptive_fields
from ggcf_jax.errors import InputError


def _options(workdirs, out, **more):
    return SimpleNamespace(
        **{
            'workdir': [str(workdirs / 'full')],
            'checkpoint': 'latest',
            'split': 'validation',
            'family': [],
            'image': 'val_0',
            'query': [(30, 30), (8, 50)],
            'window': 16,
            'step': 12,
            'batch': 4,
            'out': out,
            **more,
        }
    )


@pytest.mark.slow
def test_everything_is_written_and_computed_once(workdirs, tmp_path, monkeypatch, rng):
    changes, power = rng.random((15, 2)), rng.random((2, 40, 56))  # 3 x 5 places, 2 query points
    monkeypatch.setattr(receptive_fields, 'make_occlusion', lambda *unused: lambda *unused: changes)
    monkeypatch.setattr(receptive_fields, 'make_gradient', lambda *unused: lambda *unused: power)
    fig6_receptive_field.main(_options(workdirs, tmp_path))
    for name in ('30_30', '8_50'):
        picture = tmp_path / f'receptive_field_val_0_{name}.png'
        assert picture.stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / 'receptive_field.csv').open()))
    assert [(row['y'], row['form']) for row in rows] == [
        (y, form) for y in ('30', '8') for form in fig6_receptive_field.FORMS
    ]
    text = (tmp_path / 'receptive_field.md').read_text()
    shares = [100 * float(row['half_area']) for row in rows if row['form'] == 'occlusion']
    mean, deviation = np.mean(shares), np.std(shares, ddof=1)
    corners = receptive_fields.Sliding(16, 12, 4).corners((40, 56))
    first = receptive_fields.spread_out(changes[:, 0], corners, 16, (40, 56))
    expected = 100 * receptive_fields.measure(first, (30, 30)).half_area
    assert shares[0] == pytest.approx(expected, rel=1e-4)
    assert f'| occlusion | FULL | 2 | {mean:.1f} +- {deviation:.1f} |' in text

    def fail(*unused):
        raise AssertionError('computed again')

    for name in ('make_occlusion', 'make_gradient'):
        monkeypatch.setattr(receptive_fields, name, lambda *unused: fail)
    fig6_receptive_field.main(_options(workdirs, tmp_path))
    assert (tmp_path / 'receptive_field.md').read_text() == text
    with pytest.raises(AssertionError, match='computed again'):  # another question is another key
        fig6_receptive_field.main(_options(workdirs, tmp_path, step=8))


@pytest.mark.parametrize('more', [{'window': 0}, {'batch': 0}, {'step': 0}, {'step': 17}])
def test_windows_that_cannot_slide(workdirs, tmp_path, more):
    with pytest.raises(InputError, match='--step'):
        fig6_receptive_field.main(_options(workdirs, tmp_path, **more))
