"""Where compiled programs are kept."""

import warnings

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from ggcf_jax import buckets, places
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


def test_a_bucket_of_the_environment_is_one_of_the_flag(monkeypatch, bucket_services):
    bucket_services('gs')
    monkeypatch.setenv(compile_cache.VARIABLE, 'gs://bucket/compiled')
    compile_cache.enable(None)
    assert jax.config.jax_compilation_cache_dir == 'gs://bucket/compiled'
    assert jax.config.jax_persistent_cache_enable_xla_caches == 'none'


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


@pytest.fixture
def started(settings):
    """Function that makes JAX look for the cache as at the start of a program, and afterwards."""
    name = 'jax_persistent_cache_min_compile_time_secs'
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    yield jax_cache.reset_cache
    jax.config.update(name, before)
    jax_cache.reset_cache()


def _compiled():
    """Compiles a program of its own; returns its result and whether it was read from the cache."""
    found = []

    def listen(event, **unused):
        found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        value = float(jax.jit(lambda x: 3.25 * x + 1)(2.0))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return value, '/jax/compilation_cache/cache_hits' in found


def test_a_bucket(bucket, started):
    url = f'{bucket.scheme}://bucket/compiled'
    compile_cache.enable(url)
    assert jax.config.jax_compilation_cache_dir == url
    assert jax.config.jax_persistent_cache_enable_xla_caches == 'none'
    assert not places.expand(url).exists()
    started()
    assert _compiled() == (7.5, False)
    (name,) = buckets.tree(places.expand(url))
    assert name.startswith('jit__lambda')
    started()
    assert _compiled() == (7.5, True)
    started()
    with (
        bucket.fault('refused', 'GET HEAD', 'compiled', times=99) as fault,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter('always')
        assert _compiled() == (7.5, False)
    assert fault.done and 'Error reading persistent compilation cache' in str(told[0].message)
