"""Files of a workdir that are JSON, but not what was written: each reader says so in one line."""

import copy
import json
import math
import shutil

import numpy as np
import pytest

from ggcf_jax import json_files
from ggcf_jax.errors import InputError
from ggcf_jax.prediction import outputs
from ggcf_jax.workdir import (
    checkpoint_files,
    classes,
    evaluations,
    lease,
    metrics_log,
    provenance,
    report,
)
from ggcf_jax.workdir import config as workdir_config

_JUNK = (None, [], {}, 'x', '', '\ud800', -1, 10**400, 1e308, True, [[]], {'a': {'b': [1]}}, [None])
_BYTES = (
    b'', b'\xff', b'[]', b'1', b'null', b'"x"', b'[' * 10**5, b'{"a":' * 3000 + b'1' + b'}' * 3000,
    b'{"a":' * 200 + b'1' + b'}' * 200, b'1' * 5000, b'{"step": NaN}', b'{"step": 1e999}',
)  # fmt: skip


def _places(tree, place=()):
    """The place of every value in a tree of objects and lists; of long lists the first."""
    yield place
    items = tree.items() if isinstance(tree, dict) else ()
    for key, value in enumerate(tree[:1]) if isinstance(tree, list) else items:
        yield from _places(value, (*place, key))


def _damaged(tree, junk=_JUNK):
    """Copies of a tree with something else in one place, or nothing."""
    for place in _places(tree):
        for value in junk if place else ():
            copied = copy.deepcopy(tree)
            inside = copied
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            yield copied
        if place and isinstance(place[-1], str):
            copied = copy.deepcopy(tree)
            inside = copied
            for key in place[:-1]:
                inside = inside[key]
            del inside[place[-1]]
            yield copied


_CLASSES = ('road', 'sky')
_EVALUATION = {
    'step': 3,
    'split': 'validation',
    'inference': 'whole image',
    'dataset': 'x',
    'images': 4,
    'conditions': {'by': 'training', 'dtype': 'bfloat16', 'size_multiple': 64},
    'classes': _CLASSES,
    'colors': [[1, 2, 3], [4, 5, 6]],
    'matrix': [[3, 1], [0, 5]],
    'miou': 0.7,
    'pixel_accuracy': 0.8,
    'metrics': {'miou': 0.7, 'pixel_accuracy': 0.8},
    'iou': {'road': 0.7, 'sky': None},
    'absent': ['sky'],
    'category_iou': {},
    'category_miou': None,
    'worst': [{'name': 'a', 'miou': 0.2, 'panel': 'panels/worst/00_a.png'}],
}
_RUN = {
    'command': 'python main.py', 'versions': {'jax': '1'}, 'devices': 'x', 'platform': 'x',
    'started': 'x', 'git': None,
}  # fmt: skip
_ROW = {'step': 1, 'train/loss': 1.5, 'train/elapsed_sec': 3, 'val/miou': None}
_TABLE = {'dataset': 'x', 'names': _CLASSES, 'colors': [[0, 0, 0], [9, 9, 9]], 'ids': [7, 8]}
_LEASE = {
    'token': 'a', 'host': 'node7', 'pid': 7, 'since': '2026', 'renewals': 0, 'machine': 'x',
    'began': '9',
}  # fmt: skip
_FILES = {
    'evaluations/validation_00000003.json': (
        _EVALUATION,
        lambda path: evaluations.read(path),
    ),
    'run.json': (_RUN, lambda path: provenance.read(path.parent)),
    # A last line that was cut off is left out: a second one follows.
    'metrics.jsonl': (_ROW, lambda path: metrics_log.read_rows(path.parent)),
    'classes.json': (_TABLE, lambda path: classes.of_run(None, path.parent)),
    'lease.json': (_LEASE, lambda path: lease.holder(path.parent)),
    'predict.json': ({'a': 'b'}, lambda path: outputs.claim(path.parent, {'a': 'b'})),
}


@pytest.fixture(params=_FILES)
def damage(request, tmp_path):
    """The path of a file, its reader, and what may stand in it."""
    name = request.param
    tree, read = _FILES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    end = b'\n{}' if name == 'metrics.jsonl' else b''
    whole = json.loads(json.dumps(tree))
    contents = [json.dumps(each).encode() + end for each in _damaged(whole)]
    return path, read, [json.dumps(tree).encode(), *contents, *(each + end for each in _BYTES)]


def test_every_reader_refuses_or_understands(damage):
    path, read, contents = damage
    path.write_bytes(contents[0])
    read(path)
    refused = 0
    for number, content in enumerate(contents):
        path.write_bytes(content)
        try:
            read(path)
        except InputError as error:
            refused += 1
            assert str(path.parent) in str(error) and len(str(error).splitlines()) <= 3
            continue
        # What was understood can be shown; a page takes a while to make.
        if number % 37 == 0 and path.name != 'predict.json':
            report.write(path.parent.parent if path.parent.name == 'evaluations' else path.parent)
    assert refused > len(contents) // 4
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError):
        read(path)


def test_a_damaged_score_is_as_none(tmp_path):
    """Its step is evaluated again. A checksum that fits does not make a value of it."""
    checkpoint_files.add_score(tmp_path, 0.5)
    path = tmp_path / 'score.json'
    assert checkpoint_files._score(tmp_path) == 0.5
    whole = json.loads(path.read_text())
    for content in (*_BYTES, *(json.dumps(each).encode() for each in _damaged(whole))):
        path.write_bytes(content)
        assert checkpoint_files._score(tmp_path) is None, content
    for junk in (*_JUNK, 'x'):
        content = {'miou': junk}
        path.write_text(json.dumps(content | {'crc': checkpoint_files._crc(content)}))
        known = {None: -math.inf, -1: -1.0}.get(junk) if isinstance(junk, int | None) else None
        assert checkpoint_files._score(tmp_path) == known, junk


def test_a_damaged_seal_is_damage(tmp_path):
    seal = checkpoint_files._seal({'model': {'a': np.ones(2), 'b': np.zeros(3)}}, 0.5)
    (tmp_path / 'commit_success.txt').touch()
    path = tmp_path / '_CHECKPOINT_METADATA'
    path.write_text(json.dumps({'custom_metadata': seal}))
    assert checkpoint_files.inspect(tmp_path).miou == 0.5
    del seal['crc']
    contents = [json.dumps(each) for each in _damaged({'custom_metadata': seal})]
    for each in _damaged(seal):
        contents.append(
            json.dumps({'custom_metadata': each | {'crc': checkpoint_files._crc(each)}})
        )
    understood = []
    for content in (*_BYTES, *(each.encode() for each in contents)):
        path.write_bytes(content)
        try:
            sealed = checkpoint_files.inspect(tmp_path)
        except checkpoint_files.Damaged:
            continue
        understood.append(sealed)
        assert all(type(x) is int for sums in sealed.checksums.values() for x in sums)
    assert len(understood) < len(contents) // 10


def test_a_damaged_configuration(tiny_config, tmp_path):
    workdir_config.save(tiny_config, tmp_path)
    path = tmp_path / 'config.json'
    whole = json.loads(path.read_text())
    some = {name: whole[name] for name in ('data', 'mesh', 'predict', 'placeholders', 'seed')}
    for junk in _JUNK:
        # One kind of junk in each place: all of them would take a minute.
        for content in list(_damaged(some, [junk]))[len(repr(junk)) % 7 :: 7]:
            path.write_text(json.dumps(whole | content))
            try:
                config = workdir_config.load(tmp_path, lambda line: None)
            except InputError as error:
                assert str(path) in str(error)
            else:
                workdir_config.save(config, tmp_path / 'again')
                report.write(tmp_path)
    for content in _BYTES:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r'config\.json'):
            workdir_config.load(tmp_path)


def test_objects_and_fields():
    assert json_files.parse_object('{"a": 1}') == {'a': 1}
    for text in ('[1]', '{"a": Infinity}', '{', b'\xff'):
        with pytest.raises(ValueError):
            json_files.parse_object(text)
    with pytest.raises(ValueError, match="it has no entry 'b'"):
        json_files.need({'a': 1}, 'b', json_files.is_count, 'a number')
    with pytest.raises(ValueError, match='a=-1 is not a count'):
        json_files.need({'a': -1}, 'a', json_files.is_count, 'a count')
    assert json_files.is_color([0, 255, 7])
    assert not any(map(json_files.is_color, ([0, 1], [0, 1, 256], [0, 1, True], 'abc', None)))


@pytest.mark.parametrize('text', [*_BYTES, b'{}', b'[1, null]', b'[1, "a"]', b'[[1]]'])
def test_lists_are_of_their_items(text):
    assert json_files.parse_list(b'[1, 2]', json_files.is_count) == [1, 2]
    if text == b'[]':
        assert json_files.parse_list(text, json_files.is_count) == []
        return
    with pytest.raises(ValueError):
        json_files.parse_list(text, json_files.is_count)


def test_a_panel_lies_in_the_workdir(tmp_path):
    """The report embeds pictures that an evaluation names: of the run's own panels only."""
    folder = tmp_path / 'run' / 'evaluations'
    folder.mkdir(parents=True)
    for panel in (
        '../secret.png',
        '/etc/x.png',
        'panels/../../secret.png',
        'secret.png',
        'panels/',
    ):
        worst = [{'name': 'a', 'miou': 0.2, 'panel': panel}]
        (folder / 'validation_00000003.json').write_text(json.dumps(_EVALUATION | {'worst': worst}))
        with pytest.raises(InputError, match=r'worst=.* is not a list of images'):
            report.write(tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run')
