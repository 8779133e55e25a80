"""Objects in the place of files, on both services; `fault` makes requests fail."""

import asyncio
import hashlib
import pathlib
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from ggcf_jax import atomic, buckets, places
from ggcf_jax.errors import InputError
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The libraries wait for seconds before they repeat a request."""
    sleep = asyncio.sleep
    monkeypatch.setattr('asyncio.sleep', lambda seconds, *rest: sleep(min(seconds, 0.01), *rest))


@pytest.fixture
def there(bucket):
    return places.expand(f'{bucket.scheme}://bucket/folder')


def test_paths_of_a_bucket(bucket, there):
    path = there / 'a' / 'b.json'
    assert str(path) == f'{bucket.scheme}://bucket/folder/a/b.json'
    assert path.relative_to(there).as_posix() == 'a/b.json'
    assert path.parent.parent == there == places.expand(there) == there.resolve().expanduser()
    assert pickle.loads(pickle.dumps(path)) == path
    assert isinstance(path.with_name('c'), buckets.BucketPath)


@pytest.mark.parametrize('bad', ['gs://', 's3:///', pathlib.Path('gs://bucket/run')])
def test_paths_that_name_no_bucket(bad):
    with pytest.raises(InputError, match=r'no bucket|lost a slash'):
        places.expand(bad)


def test_the_extra_is_named_where_its_library_is_missing(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"needs s3fs.*pip install 'ggcf_jax\[s3\]'"):
        places.expand('s3://bucket/run')


def test_what_stands_in_for_files(there):
    path = there / 'a' / 'b.json'
    assert not path.exists() and not there.is_dir() and buckets.tree(there) == {}
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    with pytest.raises(FileNotFoundError):
        list(there.iterdir())
    atomic.write(path, b'one')
    assert path.read_bytes() == b'one' and path.stat().st_size == 3
    assert path.is_file() and not path.is_dir()
    assert there.is_dir() and not there.is_file()
    assert [p.name for p in there.iterdir()] == ['a']
    assert list(there.glob('*/*.json')) == list(there.rglob('*.json')) == [path]
    assert list(there.glob('*.json')) == []
    with atomic.replacing(path) as file:
        file.write_bytes(b'two')
        assert path.read_text() == 'one'
    assert path.read_text() == 'two'
    with pytest.raises(RuntimeError), atomic.replacing(path) as file:
        raise RuntimeError
    assert path.read_text() == 'two'
    path.unlink()
    path.unlink(missing_ok=True)
    assert not there.exists()


def test_one_creates(there):
    assert atomic.create(there / 'lease', b'first')
    assert not atomic.create(there / 'lease', b'second')
    assert (there / 'lease').read_bytes() == b'first'


def test_who_created_is_told_although_the_answer_was_an_error(bucket, there):
    with bucket.fault('done', 'POST PUT', 'lease') as fault:
        assert atomic.create(there / 'lease', b'first')
    assert fault.done == 1


@pytest.fixture
def folder(tmp_path, rng):
    source = tmp_path / 'source'
    (source / 'deep').mkdir(parents=True)
    (source / 'deep' / 'large').write_bytes(rng.bytes(3 << 20))
    (source / 'empty').touch()
    (source / 'mark').write_text('complete')
    return source


def _content(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_folders_are_copied_moved_and_removed(bucket, there, folder, tmp_path):
    buckets.upload_tree(folder, there / 'x', last='mark')
    written = [url for method, url in bucket.requests if method in ('PUT', 'POST')]
    assert 'mark' in written[-1]
    buckets.move_tree(there / 'x', there / 'y', mark='mark')
    assert buckets.tree(there / 'x') == {}
    buckets.download_tree(there / 'y', tmp_path / 'copy')
    copied = _content(tmp_path / 'copy')
    assert copied.pop(buckets.MANIFEST)
    assert copied == _content(folder)
    buckets.remove_tree(there / 'y', first='mark')
    assert buckets.tree(there) == {}


@pytest.mark.parametrize('kind', ['busy', 'cut', 'missing'])
def test_reading_goes_on_after_a_fault(bucket, there, folder, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(buckets, '_CHUNK', 1 << 20)
    buckets.upload(folder / 'deep' / 'large', there / 'large')
    times = {'busy': 2, 'cut': 2, 'missing': 1}[kind]
    part = 'alt=media' if bucket.scheme == 'gs' else 'large'
    with bucket.fault(kind, 'GET', part, times=times, skip=1) as fault:
        buckets.download(there / 'large', tmp_path / 'large')
    assert fault.done == times
    assert (tmp_path / 'large').read_bytes() == (folder / 'deep' / 'large').read_bytes()


@pytest.mark.parametrize('kind', ['busy', 'lost', 'done'])
def test_writing_goes_on_after_a_fault(bucket, there, folder, kind):
    with bucket.fault(kind, 'POST PUT', times=2) as fault:
        buckets.upload(folder / 'deep' / 'large', there / 'large')
    assert fault.done == 2
    expected = hashlib.md5((folder / 'deep' / 'large').read_bytes()).hexdigest()
    assert buckets.info(there / 'large').md5 == expected


def test_bytes_that_were_damaged_on_the_way_are_read_again(bucket, there, folder, tmp_path):
    buckets.upload(folder / 'deep' / 'large', there / 'large')
    part = 'alt=media' if bucket.scheme == 'gs' else 'large'
    with bucket.fault('damaged', 'GET', part) as fault:
        buckets.download(there / 'large', tmp_path / 'large')
    assert fault.done == 1
    assert (tmp_path / 'large').read_bytes() == (folder / 'deep' / 'large').read_bytes()


def test_an_interrupted_download_goes_on_where_it_stopped(
    bucket, there, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(buckets, '_CHUNK', 1 << 20)
    monkeypatch.setattr(buckets, 'PATIENCE', 0)
    buckets.upload(folder / 'deep' / 'large', there / 'large')
    part = 'alt=media' if bucket.scheme == 'gs' else 'large'
    with bucket.fault('refused', 'GET', part, skip=2), pytest.raises(buckets.BucketError):
        buckets.download(there / 'large', tmp_path / 'large')
    assert not (tmp_path / 'large').exists()
    added = []
    buckets.download(there / 'large', tmp_path / 'large', added.append)
    assert added == [2 << 20, 1 << 20]
    assert (tmp_path / 'large').read_bytes() == (folder / 'deep' / 'large').read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith('.part')] == []


# Writes an object in one of two ways.
_WRITING = """
import sys
from ggcf_jax import atomic
content = bytes(3 << 20)
if sys.argv[2] == 'write':
    atomic.write(sys.argv[1], content)
else:
    with atomic.replacing(sys.argv[1]) as file:
        file.write_bytes(content)
"""


@pytest.mark.slow
@pytest.mark.parametrize('how', ['write', 'replacing'])
def test_kill_in_the_middle_of_an_upload_leaves_what_was_there(bucket, there, how):
    """Everything but checkpoints is written in one of these ways."""
    (there / 'x').write_bytes(b'before')
    command = [sys.executable, '-c', _WRITING, str(there / 'x'), how]
    began = threading.Event()
    with (
        subprocess.Popen(command, cwd=ROOT) as process,
        bucket.fault('lost', 'POST PUT', 'x', call=lambda: (process.kill(), began.set())),
    ):
        assert process.wait(60) == -signal.SIGKILL
    assert began.is_set()
    assert [path.name for path in there.iterdir()] == ['x']
    assert (there / 'x').read_bytes() == b'before'


def test_an_object_that_is_there_and_not_there_is_read_again(bucket, there):
    (there / 'x').write_bytes(b'here')
    part = 'alt=media' if bucket.scheme == 'gs' else '/folder/x'
    with bucket.fault('missing', 'GET', part) as fault:
        assert (there / 'x').read_bytes() == b'here'
    assert fault.done == 1


def test_a_refused_request_is_told_at_once(bucket, there):
    with (
        bucket.fault('refused', 'POST PUT', times=99) as fault,
        pytest.raises(buckets.BucketError, match=f'{bucket.scheme}://bucket/folder.* refused'),
    ):
        buckets.check_writable(there)
    assert fault.done == 1


def test_a_bucket_that_does_not_exist(bucket):
    with pytest.raises(buckets.NotThere, match=f'no bucket {bucket.scheme}://absent'):
        buckets.check_writable(places.expand(f'{bucket.scheme}://absent/run'))


def test_patience_ends(bucket, there, monkeypatch):
    monkeypatch.setattr(buckets, 'PATIENCE', 0)
    with (
        bucket.fault('busy', 'GET HEAD', times=99),
        pytest.raises(buckets.BucketError, match=f'{bucket.scheme}://bucket/folder/x'),
    ):
        (there / 'x').read_bytes()
