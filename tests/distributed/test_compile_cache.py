"""Where compiled programs are kept."""

import jax
import pytest

from ggcf_jax import places
from ggcf_jax.distributed import compile_cache
from ggcf_jax.errors import InputError


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """JAX's settings are those of the tests again afterwards."""
    names = (
        'jax_compilation_cache_dir', 'jax_enable_compilation_cache',
        'jax_persistent_cache_enable_xla_caches',
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv(compile_cache.VARIABLE)
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_default_is_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    compile_cache.enable(None)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / '.cache/ggcf_jax/compiled')


def test_the_environment_holds_where_the_flag_is_not_given(tmp_path, monkeypatch, settings):
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    compile_cache.enable(None)
    assert jax.config.jax_compilation_cache_dir == settings['jax_compilation_cache_dir']
    compile_cache.enable(str(tmp_path / 'given'))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'given')


def test_none(settings):
    compile_cache.enable('')
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys, settings):
    (tmp_path / '.cache').touch()
    with pytest.raises(InputError, match='give another --compile_cache'):
        compile_cache.enable(str(tmp_path / '.cache' / 'x'))
    monkeypatch.setenv('HOME', str(tmp_path))
    compile_cache.enable(None)
    assert 'programs are not kept for the next start' in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir == settings['jax_compilation_cache_dir']


def test_a_bucket(bucket):
    url = f'{bucket.scheme}://bucket/compiled'
    compile_cache.enable(url)
    assert jax.config.jax_compilation_cache_dir == url
    assert jax.config.jax_persistent_cache_enable_xla_caches == 'none'
    assert not places.expand(url).exists()
