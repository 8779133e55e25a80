import glob
import json
import pathlib
import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from ggcf_jax.errors import InputError
from ggcf_jax.workdir.metrics_log import Writer, read_rows


def _events(path):
    data = pathlib.Path(path).read_bytes()
    position = 0
    while position < len(data):
        head = data[position : position + 8]
        length = int.from_bytes(head, 'little')
        event = data[position + 12 : position + 12 + length]
        sums = data[position + 8 : position + 12], data[position + 12 + length :][:4]
        for content, sum_ in zip((head, event), sums):
            assert masked_crc32c(content) == int.from_bytes(sum_, 'little')
        yield Event.FromString(event)
        position += 16 + length


def _all_events(workdir):
    return [event for path in sorted(glob.glob(f'{workdir}/events*')) for event in _events(path)]


def test_rows_start_with_step_and_are_on_disk_before_close(tmp_path):
    with Writer(tmp_path / 'new', 0) as writer:
        writer.scalars(5, {'train/loss': 1.25, 'val/iou/terrain': 0.5})
        text = (tmp_path / 'new' / 'metrics.jsonl').read_text()
        assert text == '{"step": 5, "train/loss": 1.25, "val/iou/terrain": 0.5}\n'


@pytest.mark.parametrize(
    'value, text',
    [
        (0.1, '0.1'),
        (1 / 3, repr(1 / 3)),
        (np.float32(0.1), '0.1'),
        (jnp.float32(1 / 3), '0.33333334'),
        (jnp.bfloat16(0.5), '0.5'),
        (np.int64(7), '7'),
        (1e-7, '1e-07'),
        (float('nan'), 'null'),
        (jnp.float32('inf'), 'null'),
        (None, 'null'),
    ],
)
def test_numbers_are_shortest_that_read_back_the_same(tmp_path, value, text):
    with Writer(tmp_path, 0) as writer:
        writer.scalars(1, {'x': value})
    assert (tmp_path / 'metrics.jsonl').read_text() == f'{{"step": 1, "x": {text}}}\n'
    read = read_rows(tmp_path)[0]['x']
    assert read is None if text == 'null' else np.asarray(value).dtype.type(read) == value


def test_resume_keeps_the_bytes_up_to_its_step_and_drops_the_rest(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    kept = '{"step": 10, "a": 0.10}\n{"a":2,"step":20}\n'
    path.write_text(kept + '{"step": 30, "a": 3.0}\n{"step": 25, "a": 3.0}\n{"step": 4')
    with Writer(tmp_path, 20) as writer:
        assert path.read_text() == kept
        writer.scalars(30, {'a': 4.0})
    assert path.read_text() == kept + '{"step": 30, "a": 4.0}\n'
    assert {file.name.split('.')[0] for file in tmp_path.iterdir()} == {'metrics', 'events'}


def test_whole_last_line_without_newline_is_kept(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}')
    with Writer(tmp_path, 2) as writer:
        writer.scalars(3, {})
    assert [row['step'] for row in read_rows(tmp_path)] == [1, 2, 3]


def test_damaged_line_is_named_and_nothing_changes(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1}\n{"st\n{"step": 9}\n')
    with pytest.raises(InputError, match=r'metrics\.jsonl, line 2 '):
        Writer(tmp_path, 1)
    assert path.read_text() == '{"step": 1}\n{"st\n{"step": 9}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_read_rows_without_a_file_and_with_a_torn_line(tmp_path):
    assert read_rows(tmp_path) == []
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": null}\n{"step": 2, "a":')
    assert read_rows(tmp_path) == [{'step': 1, 'a': None}]


@pytest.mark.parametrize('value', ['high', True, np.zeros(2), [1.0]])
def test_bad_values_are_named(tmp_path, value):
    with Writer(tmp_path, 0) as writer:
        with pytest.raises(ValueError, match="metric 'train/loss'"):
            writer.scalars(1, {'train/loss': value})
        with pytest.raises(ValueError, match="key 'step'"):
            writer.scalars(1, {'step': 1})
    assert read_rows(tmp_path) == []


def test_each_line_is_echoed(tmp_path):
    lines = []
    with Writer(tmp_path, 0, echo=lines.append) as writer:
        writer.scalars(1, {'train/loss': 0.5})
        writer.scalars(2, {'train/loss': float('nan')})
    assert '\n'.join([*lines, '']) == (tmp_path / 'metrics.jsonl').read_text()


def test_event_file_has_the_scalars_and_the_image(tmp_path):
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    with Writer(tmp_path, 0) as writer:
        writer.scalars(3, {'train/loss': 0.5, 'bad': float('nan'), 'none': None})
        writer.image(3, 'panels/0', image)
        writer.scalars(2**40, {'/a b(c)': -1e-3})
        with pytest.raises(ValueError, match=r'float64 \[2, 2\]'):
            writer.image(3, 'panels/1', np.zeros((2, 2)))
    values = {v.tag: (e.step, v) for e in _all_events(tmp_path) for v in e.summary.value}
    assert set(values) == {'train/loss', 'panels/0', 'a_b_c_'}
    assert values['a_b_c_'][0] == 2**40
    assert values['a_b_c_'][1].simple_value == np.float32(-1e-3)
    encoded = np.frombuffer(values['panels/0'][1].image.encoded_image_string, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], image)
    assert values['train/loss'][0] == 3 and values['train/loss'][1].simple_value == 0.5
    assert (values['panels/0'][1].image.height, values['panels/0'][1].image.width) == (4, 6)


def test_second_writer_keeps_the_first_event_file_and_purges_later_steps(tmp_path):
    # Both within one second, which is the resolution of the names.
    for step in (0, 10):
        with Writer(tmp_path, step) as writer:
            writer.scalars(step + 10, {'a': 1.0})
    events = _all_events(tmp_path)
    assert len(glob.glob(f'{tmp_path}/events*')) == 2
    assert [e.step for e in events if e.summary.value] == [10, 20]
    starts = [e.step for e in events if e.session_log.status == e.session_log.START]
    assert starts == [1, 11]


@pytest.mark.slow
def test_rows_survive_a_kill(tmp_path):
    code = (
        'import os, pathlib, sys; from ggcf_jax.workdir.metrics_log import Writer\n'
        'writer = Writer(pathlib.Path(sys.argv[1]), 0)\n'
        'writer.scalars(1, {"a": 1.0}); os.kill(os.getpid(), 9)'
    )
    result = subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=False)
    assert result.returncode == -9
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 1, 'a': 1.0}


@pytest.mark.slow
def test_works_where_tensorflow_and_tensorboard_cannot_be_imported(tmp_path):
    """And imports nothing large that tensorboardX takes where it is installed."""
    code = (
        'import sys; sys.modules |= {"tensorflow": None, "tensorboard": None}\n'
        'import numpy, pathlib; from ggcf_jax.workdir.metrics_log import Writer\n'
        'with Writer(pathlib.Path(sys.argv[1]), 0) as writer:\n'
        '    writer.scalars(1, {"a": 1.0}); writer.image(1, "b", numpy.zeros((2, 2, 3), "uint8"))\n'
        'assert not {"torch", "boto3", "google.cloud.storage"} & set(sys.modules)\n'
        'import importlib.util; assert importlib.util.find_spec("boto3"), "it stays hidden"'
    )
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True)
    tags = [value.tag for event in _all_events(tmp_path) for value in event.summary.value]
    assert tags == ['a', 'b']
