"""Names of the configuration: what modules offer, and code outside of the package."""

import sys

import pytest

from ggcf_jax import models, registry
from ggcf_jax.errors import InputError
from ggcf_jax.models import backbones, contexts
from ggcf_jax.models.backbones import resnet


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `shapes` of two modules with a dictionary AREAS, which is not imported yet."""
    (tmp_path / 'shapes').mkdir()
    for name, text in {
        '__init__': '',
        'box': 'def area(): return 4\n\n\nclass Box:\n    area = area\n    sides = 4\n\n\n'
        "AREAS = {'box': area, 'flat_box': Box.area}",
        'disc': "AREAS = {'disc': lambda: 3}",
        'broken': "raise RuntimeError('no licence')",
        'needy': 'import a_module_that_is_not_installed',
    }.items():
        (tmp_path / 'shapes' / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split('.')[0] == 'shapes']:
        del sys.modules[name]


def test_entries_of_all_modules_are_found():
    found = registry.find(backbones, 'BACKBONES', 'resnet101', 'field')
    assert found is resnet.BACKBONES['resnet101']
    for name in ('aspp', 'ccnet', 'ggcf', 'isa', 'linear', 'none', 'nonlocal', 'psp'):
        assert registry.find(contexts, 'CONTEXTS', name, 'field').__name__ == 'build'


def test_only_what_is_needed_is_imported(package):
    import shapes

    assert registry.find(shapes, 'AREAS', 'box', 'field')() == 4
    assert [name for name in sys.modules if name.startswith('shapes.')] == ['shapes.box']


def test_an_unknown_name_lists_the_known_ones():
    message = (
        r"^config.x='vgg' is not one of (\w+, )*mobilenet_v2, resnet10, resnet101, resnet152, "
        r'resnet18, resnet34, resnet50, (\w+, )*wide_resnet38(, \w+)*; code outside of ggcf_jax is '
        r'named my_package.my_module:attribute$'
    )
    with pytest.raises(InputError, match=message):
        registry.find(backbones, 'BACKBONES', 'vgg', 'config.x')
    with pytest.raises(InputError, match=r"^config.x='c' is not one of a, b; code outside"):
        registry.pick({'b': len, 'a': len}, 'c', 'config.x')


def test_code_outside_is_imported(package):
    for find in (
        lambda name: registry.find(models, 'BACKBONES', name, 'field'),
        lambda name: registry.pick({'shapes': len}, name, 'field'),
    ):
        assert find('shapes.box:area')() == 4
        assert find('shapes.box:Box.area')() == 4
    assert registry.pick({'shapes': len}, 'shapes', 'field') is len


@pytest.mark.parametrize(
    'name, message, cause',
    [
        ('shapes.box:', "'shapes.box:' is not of the form my_package.my_module:attribute", None),
        (':area', "':area' is not of the form my_package.my_module:attribute", None),
        ('shapes/box.py:area', 'is not of the form my_package.my_module:attribute', None),
        (
            'forms.box:area',
            "'forms.box:area': there is no module 'forms'; install its package, or put the folder "
            'that contains it on PYTHONPATH',
            ModuleNotFoundError,
        ),
        ('shapes.cone:area', "there is no module 'shapes.cone'; install", ModuleNotFoundError),
        (
            'shapes.needy:area',
            "'shapes.needy' needs 'a_module_that_is_not_installed', which is not installed",
            ModuleNotFoundError,
        ),
        (
            'shapes.broken:area',
            "importing module 'shapes.broken' failed with RuntimeError: no licence",
            RuntimeError,
        ),
        (
            'shapes.box:volume',
            "'shapes.box:volume': 'shapes.box' has no attribute 'volume'; it has AREAS, Box, area$",
            None,
        ),
        ('shapes.box:Box.volume', "'shapes.box.Box' has no attribute 'volume'; it has area", None),
        ('shapes.box:Box.sides', "'shapes.box:Box.sides' is not callable but of type int", None),
    ],
)
def test_what_is_wrong_with_code_outside_is_said(package, name, message, cause):
    with pytest.raises(InputError, match=f'^config.x=.*{message}') as caught:
        registry.pick({}, name, 'config.x')
    assert type(caught.value.__cause__) is (cause or type(None))


def test_a_value_is_one_of_its_choices():
    registry.check(8, (8, 16), 'config.stride')
    with pytest.raises(InputError, match=r'^config.stride=4 is not one of 8, 16$'):
        registry.check(4, (8, 16), 'config.stride')
