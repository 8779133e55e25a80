import cv2
import numpy as np
import pytest

from ggcf_jax.data import label_survey
from ggcf_jax.data.datasets import class_file
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import Dataset, FileSource


def _lines(tmp_path, classes, label, ignore=(255,)):
    (tmp_path / 'classes.csv').write_text(classes)
    table = class_file.read(tmp_path / 'classes.csv', ignore)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.asarray(label))
    pair = [(tmp_path / f'{i}.png', tmp_path / f'{i}.png') for i in range(3)]
    dataset = Dataset(
        name='folder',
        classes=table.names,
        colors=table.colors,
        sources={'train': FileSource(pair)},
        decoder=FileDecoder(table.label_map, table.label_colors),
        identity='',
    )
    return list(label_survey.lines(label_survey.survey(dataset, 'train'), dataset))


U8, U16 = np.uint8, np.uint16
RED, BLUE = [0, 0, 200], [200, 0, 0]  # as OpenCV writes them


@pytest.mark.parametrize(
    ('classes', 'label', 'expected'),
    [
        ('a\nb\n', np.array([[0, 1, 255]], U8), ['3 8-bit PNG; values 0-1, 255']),
        (
            'a\nb\n',
            np.array([[0, 255]], U8),
            ['3 8-bit PNG; values 0, 255', "masks of 0 and 255, but 255 is ignored: .*ignore='()'"],
        ),
        (
            'a\nb\n',
            np.array([[0, 1, 2]], U8),
            [
                '3 8-bit PNG; values 0-2',
                '2 classes, but values 0 to 2: .*config.data.ignore=0,255',
            ],
        ),
        (
            'a\nb\n',
            np.array([[0, 7, 300]], U16),
            ['16-bit PNG; values 0, 7, 300', "without class: 7, 300; .*'NAME,7'.*ignore=255,7,300"],
        ),
        (
            'name,red,green,blue\na,200,0,0\nb,1,2,3\n',
            np.array([[RED, BLUE]], U8),
            [
                '3 PNG in colours; 2 colours',
                "colours without .*'NAME,0,0,200'; with 'ignore'",
            ],
        ),
        (
            'a\nb\n',
            np.array([[[0, 0, 0], [1, 1, 1]]], U8),
            ['3 PNG with three equal channels; values 0-1'],
        ),
    ],
)
def test_what_was_found_and_what_to_write(tmp_path, classes, label, expected):
    found = _lines(tmp_path, classes, label)
    assert len(found) == len(expected)
    assert found[0].startswith('labels of train: ') and expected[0] in found[0]
    for line, parts in zip(found[1:], expected[1:]):
        place = 0
        for part in parts.split('.*'):
            place = line.index(part, place) + len(part)
