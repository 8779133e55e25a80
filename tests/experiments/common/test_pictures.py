import cv2
import pytest

from experiments.common import pictures


@pytest.mark.parametrize('count', [2, 6])
@pytest.mark.parametrize('name', ['FULL', '{LOCAL, GRID} + ContextPruning (local:drop=0.5)' * 2])
def test_the_legend_of_bars_fits(count, name, tmp_path):
    values = {f'{i} {name}': [[1.0, 2.0], []] for i in range(count)}
    pictures.draw_bars(tmp_path / 'bars.png', ['a', 'b'], values, 'share')
    picture = cv2.imread(str(tmp_path / 'bars.png'))
    # What is cut off leaves ink on the border; the vertical axis keeps clear of it, too.
    for border in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (border == 255).all()
