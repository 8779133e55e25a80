"""Data that lie in a bucket: copied once, verified, resumed; prepared data are shared there."""

import asyncio
import shutil
import types

import numpy as np
import pytest

from ggcf_jax import buckets, data, places
from ggcf_jax.data import pipeline, selection
from ggcf_jax.data.records import finder, staging
from ggcf_jax.data.records.dataset import Records
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache of the test's own, and libraries that do not wait before they repeat a request."""
    sleep = asyncio.sleep
    monkeypatch.setattr('asyncio.sleep', lambda seconds, *rest: sleep(min(seconds, 0.01), *rest))
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / 'cache'))


@pytest.fixture
def there(bucket):
    return places.expand(f'{bucket.scheme}://bucket/data')


def _put(there, **files):
    for name, content in files.items():
        (there / 'deep' / name).write_bytes(content)


def _transfers(bucket):
    return [url for method, url in bucket.requests if method == 'GET' and _is_transfer(bucket, url)]


def _is_transfer(bucket, url):
    return 'alt=media' in url if bucket.scheme == 'gs' else '/data/' in url


def _content(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and not path.name.startswith('.')
    }


def test_a_folder_is_copied_once(bucket, there, capsys):
    _put(there, a=b'1' * 1000, b=b'2' * 2000)
    copy = staging.local(there, '--input')
    assert _content(copy) == {'a': b'1' * 1000, 'b': b'2' * 2000}
    out = capsys.readouterr().out
    assert f'copied 0.0 MB of {there} in ' in out and ' MB/s' in out
    before = len(_transfers(bucket))
    assert before == 2
    assert staging.local(there, '--input') == copy
    assert len(_transfers(bucket)) == before
    assert capsys.readouterr().out == ''
    assert finder.find(copy, ('',)).left_out == {}  # files of our own are not talked about


def test_what_changed_is_copied_again_and_what_went_is_removed(there):
    _put(there, a=b'1', b=b'2', c=b'3')
    staging.local(there, '--input')
    _put(there, a=b'changed')
    (there / 'deep' / 'b').unlink()
    copy = staging.local(there, '--input')
    (copy / 'deep' / 'c').write_bytes(b'damaged here')
    assert _content(staging.local(there, '--input')) == {'a': b'changed', 'c': b'3'}


def test_one_file(there):
    _put(there, weights=b'x' * 100)
    file = staging.local(there / 'deep' / 'weights', 'config.model.backbone.weights')
    assert file.read_bytes() == b'x' * 100
    with pytest.raises(InputError, match=r'--input=.*/absent: there is no such object or folder'):
        staging.local(there / 'absent', '--input')


def test_an_interrupted_copy_goes_on(bucket, there, monkeypatch):
    monkeypatch.setattr(buckets, 'PATIENCE', 0)
    monkeypatch.setattr(staging, '_THREADS', 1)
    _put(there, a=b'1' * 1000, b=b'2' * 1000, c=b'3' * 1000)
    part = 'alt=media' if bucket.scheme == 'gs' else '/data/deep/'
    with (
        bucket.fault('refused', 'GET', part, skip=2, times=9),
        pytest.raises(buckets.BucketError),
    ):
        staging.local(there, '--input')
    bucket.requests.clear()
    copy = staging.local(there, '--input')
    assert len(_content(copy)) == 3
    assert len(_transfers(bucket)) == 1


def test_bytes_that_were_damaged_on_the_way(bucket, there):
    _put(there, a=b'1' * 1000)
    part = 'alt=media' if bucket.scheme == 'gs' else '/data/deep/a'
    with bucket.fault('damaged', 'GET', part) as fault:
        assert _content(staging.local(there, '--input')) == {'a': b'1' * 1000}
    assert fault.done == 1


def test_a_full_disk_is_told_before_the_copy(bucket, there, monkeypatch):
    _put(there, a=b'1' * 1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(0, 0, 1 << 30))
    with pytest.raises(InputError, match=r'1e-06 GB that .*set GGCF_JAX_CACHE to a folder'):
        staging.local(there, '--input')
    assert not _transfers(bucket)


def test_names_that_leave_the_folder_are_refused(there, tmp_path):
    found = {'../x': buckets.Info(1, '1', '')}
    with pytest.raises(InputError, match=r"object '../x'"):
        staging._copy(there, tmp_path / 'target', found)


def test_prepared_data_are_shared(bucket, tiny_config, camvid_folder, monkeypatch, tmp_path):
    """One host prepares from a bucket into a bucket; the next one copies what was prepared."""
    manual = places.expand(f'{bucket.scheme}://bucket/camvid')
    for file in camvid_folder.rglob('*.png'):
        buckets.upload(file, manual / file.relative_to(camvid_folder).as_posix())
    tiny_config.data.manual_dir = str(manual)
    tiny_config.data.data_dir = f'{bucket.scheme}://bucket/prepared'
    tiny_config.train.class_weights = 'data'
    first = data.build(tiny_config.data)
    weights = data.class_weights_of(tiny_config, first)
    shared = set(buckets.tree(places.expand(tiny_config.data.data_dir)))
    assert any(name.endswith('dataset_info.json') for name in shared)
    assert any(name.startswith('ggcf_jax_class_pixels/') for name in shared)

    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / 'of_another_host'))
    before = len(bucket.requests)
    second = data.build(tiny_config.data)
    assert second.identity == first.identity
    assert data.class_weights_of(tiny_config, second) == weights
    methods = {method for method, _ in bucket.requests[before:]}
    assert methods <= {'GET', 'HEAD'}
    for split in first.sources:
        one, other = first.source(split), second.source(split)
        assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]


def test_a_host_copies_the_shards_that_it_reads(bucket, tiny_config, monkeypatch, tmp_path):
    """Six shards of one image each; of the second host's two draws, and those of evaluation."""
    monkeypatch.setattr('ggcf_jax.data.records.builder._SHARD_BYTES', 1)
    tiny_config.data.data_dir = f'{bucket.scheme}://bucket/prepared'
    whole = data.build(tiny_config.data)
    bucket.requests.clear()
    assert data.build(tiny_config.data).identity == whole.identity
    assert not [url for method, url in bucket.requests if method == 'GET' and 'train.arr' in url]

    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / 'of_another_host'))
    tiny_config.train.update(batch_size=4, steps=1)
    dataset = data.build(tiny_config.data)

    def copied():
        return {path.name for path in staging.cache().rglob('*.array_record*')}

    assert copied() == set()
    shard = pipeline.Shard(1, 2)
    stream = data.training_batches(tiny_config, dataset, 0, shard)
    (files,) = Records(dataset, ('train',)).shards()
    (needed,) = selection.of_training(
        (files.lengths,), (1.0,), seed=tiny_config.seed, batch_size=4, steps=range(1), shard=shard
    )
    assert copied() == {files.names[i] for i in needed} and len(needed) == 2
    batch = next(stream)
    stream.close()
    expected = data.training_batches(tiny_config, whole, 0, shard)
    np.testing.assert_array_equal(batch['image'], next(expected)['image'])
    expected.close()

    data.evaluation_batches(tiny_config, dataset, 'validation')
    (validation,) = Records(dataset, ('validation',)).shards()
    assert {*validation.names} < copied()
    # What is asked for without being needed is copied then.
    source, ours = whole.source('train'), dataset.source('train')
    assert [source[i] for i in range(6)] == [ours[i] for i in range(6)]
    assert {*files.names, *validation.names} == copied()


def _mesh(hosts, space):
    """What `mesh_lib.shard` reads of a mesh of one device on each host."""
    devices = [types.SimpleNamespace(process_index=i) for i in range(hosts)]
    grid = np.array(devices, object).reshape(hosts // space, space)
    return types.SimpleNamespace(devices=grid, shape={'data': len(grid), 'space': space})


@pytest.mark.parametrize(('hosts', 'space'), [(4, 2), (2, 2)])
def test_hosts_that_share_images_copy_the_same_shards(
    bucket, tiny_config, monkeypatch, tmp_path, hosts, space
):
    """Six shards of one image each: partners of `mesh.space` need all that their images come from.

    Each host has a disk of its own, and reads its batch from there.
    """
    monkeypatch.setattr('ggcf_jax.data.records.builder._SHARD_BYTES', 1)
    tiny_config.data.data_dir = f'{bucket.scheme}://bucket/prepared'
    tiny_config.train.update(batch_size=4, steps=1)
    whole = data.build(tiny_config.data)
    copied, images = [], []
    for host in range(hosts):
        monkeypatch.setattr('jax.process_index', lambda host=host: host)
        monkeypatch.setenv(staging.VARIABLE, str(tmp_path / f'host_{host}'))
        dataset = data.build(tiny_config.data)
        shard = mesh_lib.shard(_mesh(hosts, space))
        stream = data.training_batches(tiny_config, dataset, 0, shard)
        copied.append({path.name for path in staging.cache().rglob('*.array_record*')})
        bucket.requests.clear()
        images.append(next(stream)['image'])
        stream.close()
        # The loader is ahead of the last step: it may ask for another shard, but for none of these.
        assert not [url for _, url in bucket.requests for name in copied[-1] if name in url]
        expected = data.training_batches(tiny_config, whole, 0, shard)
        np.testing.assert_array_equal(images[-1], next(expected)['image'])
        expected.close()
    groups = [range(first, first + space) for first in range(0, hosts, space)]
    for first, *partners in groups:
        for partner in partners:
            assert copied[partner] == copied[first]
            np.testing.assert_array_equal(images[partner], images[first])
    different = [copied[first] for first, *_ in groups]
    assert [len(files) for files in different] == [4 // len(groups)] * len(groups)
    assert len(set.union(*different)) == 4, 'hosts with other images need other shards'


def test_data_that_cannot_be_shared_are_not_prepared(bucket, tiny_config, camvid_folder):
    tiny_config.data.data_dir = f'{bucket.scheme}://bucket/prepared'
    with (
        bucket.fault('refused', 'POST PUT', times=99),
        pytest.raises(InputError, match=r'access is refused.*set --config.data.data_dir'),
    ):
        data.build(tiny_config.data)
    assert not list(staging.cache().rglob('*.array_record*'))
