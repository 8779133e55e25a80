"""The public names of the package, and what importing them loads."""

import ast
import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import ggcf_jax
from ggcf_jax import attention
from ggcf_jax.workdir import model
from tests.helpers import ROOT

# What takes seconds to import, or what a user of the attention need not have.
HEAVY = {'jax', 'flax', 'orbax', 'grain', 'tensorflow_datasets', 'cv2', 'matplotlib'}


def test_public_names():
    names = [name for name in ggcf_jax.__all__ if name != '__version__']
    for name in names:
        owner = model if name == 'load' else attention
        assert getattr(ggcf_jax, name) is getattr(owner, name)
    assert set(ggcf_jax.__all__) <= set(dir(ggcf_jax))
    with pytest.raises(AttributeError, match="'ggcf_jax' has no attribute 'nothing'"):
        ggcf_jax.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_lazily():
    (block,) = (
        node for node in ast.parse(inspect.getsource(ggcf_jax)).body if isinstance(node, ast.If)
    )
    seen = {(each.module, alias.name) for each in block.body for alias in each.names}
    assert seen == {(m, n) for m, names in ggcf_jax._MODULES.items() for n in names}


def test_the_version_is_that_of_the_distribution():
    assert importlib.metadata.version('ggcf_jax') == ggcf_jax.__version__


@pytest.mark.parametrize(
    ('statement', 'loaded'),
    [
        ('import ggcf_jax', set()),
        ('from ggcf_jax import Local, attend, parse', {'jax'}),
    ],
)
def test_an_import_loads_what_it_needs(statement, loaded):
    code = f'{statement}; import sys; print(*sys.modules)'
    process = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {name.partition('.')[0] for name in process.stdout.split()} & HEAVY == loaded
