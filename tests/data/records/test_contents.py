import json
import os
import shutil

import pytest

from ggcf_jax.data.records import contents
from ggcf_jax.errors import InputError


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(contents, '_YOUNG', 0.0)


@pytest.fixture
def pairs(tmp_path):
    """Two images with labels that all have one size; the second image is a large one."""
    (tmp_path / 'files').mkdir()
    found = []
    for i, size in enumerate((100, contents.WHOLE + 5)):
        image, label = tmp_path / 'files' / f'{i}.bmp', tmp_path / 'files' / f'{i}.npy'
        image.write_bytes(bytes([i]) * size)
        label.write_bytes(bytes([i]) * contents.WHOLE * 2)
        found.append((image, label))
    return found


def _replace(path, at=0):
    """Another content of the same size and times, as copies have them."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _of(pairs, tmp_path):
    return contents.of_pairs(pairs, tmp_path / 'derived')


@pytest.mark.parametrize('at', [0, -1, 70_000])
@pytest.mark.parametrize('index', [0, 1])
def test_a_replaced_label_is_noticed(pairs, tmp_path, index, at):
    before = _of(pairs, tmp_path)
    assert _of(pairs, tmp_path) == before
    _replace(pairs[index][1], at)
    assert _of(pairs, tmp_path) != before
    _replace(pairs[index][1], at)  # back again
    assert _of(pairs, tmp_path) == before


@pytest.mark.parametrize(('index', 'at'), [(0, 50), (1, 0), (1, -1), (1, contents.WHOLE // 2 + 9)])
def test_a_replaced_image_is_noticed(pairs, tmp_path, index, at):
    before = _of(pairs, tmp_path)
    _replace(pairs[index][0], at)
    assert _of(pairs, tmp_path) != before


def test_place_and_times_do_not_count(pairs, tmp_path):
    before = _of(pairs, tmp_path)
    os.utime(pairs[0][0], (1, 1))
    pairs[0][1].chmod(0o600)
    assert _of(pairs, tmp_path) == before
    shutil.copytree(tmp_path / 'files', tmp_path / 'elsewhere')
    moved = [tuple(tmp_path / 'elsewhere' / path.name for path in pair) for pair in pairs]
    assert _of(moved, tmp_path) == before
    assert _of(pairs[::-1], tmp_path) != before  # the order of the records does


def test_files_are_read_once(pairs, tmp_path, monkeypatch):
    read = []
    digest = contents._digest

    def counted(file, size, *, whole):
        read.append(file.name)
        return digest(file, size, whole=whole)

    monkeypatch.setattr(contents, '_digest', counted)
    before = _of(pairs, tmp_path)
    assert len(read) == 4
    assert _of(pairs, tmp_path) == before
    assert len(read) == 4
    _replace(pairs[1][1])
    _of(pairs, tmp_path)
    assert read[4:] == [str(pairs[1][1])]


def test_files_that_may_still_change_are_not_remembered(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, '_YOUNG', 60.0)
    _of(pairs, tmp_path)
    assert not (tmp_path / 'derived').exists()


@pytest.mark.parametrize(
    'damage',
    [
        b'',
        b'[]',
        b'\xff',
        b'{"label x": [[1, 2, 3], 4]}',
        b'{"label x": [[1, 2], "a"]}',
        b'{"label x": [["1", 2, 3], "a"]}',
        b'{"label x": {"0": 1}}',
        b'[' * 10**5,
    ],
)
def test_a_damaged_memory_costs_time_only(pairs, tmp_path, damage):
    before = _of(pairs, tmp_path)
    (memory,) = (tmp_path / 'derived' / contents.FOLDER).iterdir()
    whole = memory.read_bytes()
    memory.write_bytes(damage.replace(b'label x', f'label {pairs[0][1]}'.encode()))
    assert _of(pairs, tmp_path) == before
    assert json.loads(memory.read_bytes()) == json.loads(whole)


def test_a_memory_that_cannot_be_written_costs_time_only(pairs, tmp_path):
    before = _of(pairs, tmp_path)
    (tmp_path / 'file').write_text('')
    assert contents.of_pairs(pairs, tmp_path / 'file') == before
    assert contents.of_pairs(pairs, None) == before


def test_a_file_that_cannot_be_read_is_named(pairs, tmp_path):
    pairs[1][0].unlink()
    with pytest.raises(InputError, match=r'1\.bmp: the file cannot be read: No such file'):
        _of(pairs, tmp_path)
