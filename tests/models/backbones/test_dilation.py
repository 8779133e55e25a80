import pytest

from ggcf_jax.models.backbones import dilation

DEPTHS = (3, 4, 6, 3)


def _firsts(**options):
    return [stage.first for stage in dilation.plan(DEPTHS, **options)]


def _last(**options):
    return dilation.plan(DEPTHS, **options)[-1]


@pytest.mark.parametrize(
    ('stride', 'strides', 'dilations'),
    [
        (8, (1, 2, 1, 1), (1, 1, 2, 4)),
        (16, (1, 2, 2, 1), (1, 1, 1, 2)),
        (32, (1, 2, 2, 2), (1, 1, 1, 1)),
    ],
)
def test_stages_past_the_output_stride_are_dilated(stride, strides, dilations):
    stages = dilation.plan(DEPTHS, stride=stride)
    assert tuple(stage.stride for stage in stages) == strides
    assert [stage.dilations for stage in stages] == [
        (d,) * depth for d, depth in zip(dilations, DEPTHS)
    ]


def test_first_dilation():
    assert _firsts(stride=8, first_dilation='full') == [1, 1, 2, 4]
    assert _firsts(stride=8, first_dilation='half') == [1, 1, 1, 2]
    assert _firsts(stride=16, first_dilation='half') == [1, 1, 1, 1]


def test_multi_grid():
    grid = dict(stride=8, multi_grid=(1, 2, 4))
    assert _last(**grid) == dilation.Stage(1, 4, (4, 8, 16))
    assert _last(**grid, first_dilation='half') == dilation.Stage(1, 2, (4, 8, 16))
    absolute = dict(grid, multi_grid_kind='absolute')
    assert _last(**absolute) == dilation.Stage(1, 1, (1, 2, 4))
    # mmseg's contracted dilation leaves a stage with multi-grid alone, and acts on the other.
    stages = dilation.plan(DEPTHS, **absolute, first_dilation='half')
    assert stages[3] == dilation.Stage(1, 1, (1, 2, 4)) and stages[2].first == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(stride=4), 'stride=4 is not one of 8, 16, 32'),
        (dict(stride=8, first_dilation='third'), "first_dilation='third' is not one of full, half"),
        (dict(stride=8, multi_grid_kind='x'), 'is not one of multiplier, absolute'),
        (dict(stride=8, multi_grid=(1, 2)), r'multi_grid=\(1, 2\) must be one number.* 3 blocks'),
        (dict(stride=8, multi_grid=(0, 1, 2)), 'of at least 1'),
    ],
)
def test_impossible_plans(options, message):
    with pytest.raises(ValueError, match=message):
        dilation.plan(DEPTHS, **options)
