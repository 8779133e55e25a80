import numpy as np
import pytest

from experiments.common import confusable, queries, runs
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError


@pytest.fixture(scope='module')
def dataset(workdirs):
    return runs.common_dataset(runs.select([str(workdirs / 'none')]))


def test_deepest_pixel_against_a_loop(rng):
    label = (rng.random((12, 15)) > 0.1).astype(np.uint8)
    label[5:] = 0
    outside = [(y, x) for y in range(-1, 13) for x in range(-1, 16)]
    outside = [(y, x) for y, x in outside if not (0 <= y < 12 and 0 <= x < 15 and label[y, x])]
    depth = {
        (y, x): min((y - v) ** 2 + (x - u) ** 2 for v, u in outside)
        for y, x in np.argwhere(label).tolist()
    }
    assert depth[queries.deepest_pixel(label, 1)] == max(depth.values())


def test_without_an_image_one_for_each_group(dataset):
    # The image of number i has class i above and i + 3 below, see `write_camvid`: building and tree
    # are 1 and 5, pole and sign 2 and 6, which are never together.
    groups = confusable.groups_of('camvid', dataset.classes, ['building,tree', 'pole,sign'])
    with pytest.raises(InputError, match='no image of split'):
        queries.select(dataset, 'train', groups)
    groups = confusable.groups_of('camvid', dataset.classes, ['building,pavement', 'sky,road'])
    found = queries.select(dataset, 'train', groups)
    assert {each.name for each in found} == {'train_1', 'train_0'}
    for each, group in zip(found, groups if found[0].name == 'train_1' else groups[::-1]):
        (query,) = each.queries
        assert each.label[query] == group.members[1]  # 20 rows, the other one has 18


def test_named_images_and_pixels(dataset):
    (found,) = queries.select(dataset, 'validation', (), 'val_1', [(5, 6)])
    assert found.name == 'val_1' and found.queries == ((5, 6),)
    (found,) = queries.select(dataset, 'validation', (), 'val_1')
    assert [int(found.label[query]) for query in found.queries] == [4, 1]
    names = [queries.load_example(dataset, 'validation', str(i))['name'] for i in range(3)]
    assert sorted(names) == ['val_0', 'val_1', 'val_2']


@pytest.mark.parametrize(
    ('image', 'pixels', 'message'),
    [
        (None, [(1, 1)], '--query needs --image'),
        ('3', None, 'images 0 to 2'),
        ('val_7', None, 'no image of split'),
        ('0', [(40, 0)], 'outside of the image of 40 x 56'),
        ('0', [(0, 0)], 'no class in the ground truth'),
    ],
)
def test_bad_queries_are_refused(dataset, image, pixels, message):
    with pytest.raises(InputError, match=message):
        queries.select(dataset, 'validation', (), image, pixels)


def test_class_of_a_position_is_that_of_its_pixel():
    label = np.full((40, 56), 2, np.uint8)
    label[8, 16] = IGNORE
    label[10, 13] = 7
    coarse, at = queries.coarse_label(label, (10, 13), 8, 0.0)
    assert coarse.shape == (5, 7) and at == (1, 2) and coarse[at] == 7 and label[8, 16] == IGNORE
    assert (np.delete(coarse, 1 * 7 + 2) == 2).all()


def test_queries_lie_deepest_inside_the_largest_classes():
    label = np.full((20, 30), 255, np.uint8)
    label[1:12, 1:12] = 3  # 11 x 11: its middle is the deepest
    label[14:19, 2:29] = 7  # 5 x 27
    label[0, 0] = 1
    assert queries.deepest_pixels(label, 2)[1] == (6, 6)
    y, x = queries.deepest_pixels(label, 2)[0]
    assert y == 16 and label[y, x] == 7
    assert len(queries.deepest_pixels(label, 9)) == 3
