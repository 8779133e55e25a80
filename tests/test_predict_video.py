"""Videos: as many frames out as in, each with the labels of its image; damaged ones are told."""

import pathlib
import re

import cv2
import numpy as np
import pytest
from PIL import Image

import ggcf_jax
from ggcf_jax import buckets, places, predict
from ggcf_jax.data.datasets.street_painter import paint
from ggcf_jax.errors import InputError
from ggcf_jax.prediction import video
from ggcf_jax.workdir import config as workdir_config
from tests import bucket_server

SIZE = (40, 56)


def _write(path: pathlib.Path, frames, codec: str) -> pathlib.Path:
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, size)
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    return path


def _read(path: pathlib.Path) -> list[np.ndarray]:
    reader = video.Reader(path)
    found = []
    while frames := reader.frames(3):
        found += frames
    assert not list(reader.report())
    return found


@pytest.fixture(scope='module')
def scene():
    """A painted street that is passed from left to right: 14 frames."""
    image, _ = paint.paint_scene(0, 'train', 0, (64, 128))
    return [image[12:52, 5 * i : 5 * i + 56] for i in range(14)]


@pytest.mark.slow
@pytest.mark.parametrize('factor', [1, 2])
def test_every_frame_has_the_labels_of_its_image(untrained_run, tmp_path, scene, capsys, factor):
    """Frames of factor 2 are larger than what goes through the network at once."""
    size = (SIZE[0] * factor, SIZE[1] * factor)
    frames = [frame.repeat(factor, 0).repeat(factor, 1) for frame in scene]
    clip = _write(tmp_path / 'street.AVI', frames, 'MJPG')
    config = workdir_config.load(untrained_run)
    config.predict.frames, config.predict.max_side = True, 64
    output = tmp_path / 'out'
    assert predict.predict(config, untrained_run, 'best', str(clip), output)
    said = capsys.readouterr().out
    assert 'predicted 14 frames of street in ' in said
    assert f'{output / "overlays" / "street.mp4"}: 14 frames' in said
    assert {path.name for path in (output / 'overlays').iterdir()} == {'street.mp4'}
    reader = video.Reader(output / 'overlays' / 'street.mp4')
    assert (reader.rate, reader.size) == (10.0, size)
    assert len(reader.frames(100)) == 14
    files = sorted((output / 'labels' / 'street').glob('*.png'))
    assert [path.stem for path in files] == [f'{i:06d}' for i in range(14)]
    model = ggcf_jax.load(untrained_run, config=config)
    for path, frame in list(zip(files, _read(clip), strict=True))[::5]:
        labels = np.array(Image.open(path))  # the indices of its palette
        np.testing.assert_array_equal(labels, model.predict(frame))


@pytest.mark.slow
def test_a_video_in_a_bucket(untrained_run, tmp_path, scene, bucket_services, monkeypatch):
    monkeypatch.setenv('GGCF_JAX_CACHE', str(tmp_path / 'cache'))
    clip = _write(tmp_path / 'street.avi', scene[:5], 'MJPG')
    config = workdir_config.load(untrained_run)
    config.predict.frames = True
    assert predict.predict(config, untrained_run, 'best', str(clip), tmp_path / 'out')
    expected = {
        path.relative_to(tmp_path / 'out').as_posix(): path.read_bytes()
        for path in (tmp_path / 'out').rglob('*.*')
        if path.suffix in ('.mp4', '.png')
    }
    assert len(expected) == 6
    for scheme in bucket_server.SCHEMES:
        bucket_services(scheme)
        there = places.expand(f'{scheme}://bucket/video')
        buckets.upload(clip, there / 'street.avi')
        output = there / 'out'
        assert predict.predict(config, untrained_run, 'best', str(there / 'street.avi'), output)
        found = {name: (output / name).read_bytes() for name in buckets.tree(output)}
        assert {name: found.get(name) for name in expected} == expected


def _chunks(data: bytes) -> list[slice]:
    """Where the frames of an AVI lie, by the index at its end."""
    starts = [found.start() for found in re.finditer(b'00dc', data[: data.rindex(b'idx1')])][1:]
    sizes = [int.from_bytes(data[at + 4 : at + 8], 'little') for at in starts]
    return [slice(at + 8, at + 8 + size) for at, size in zip(starts, sizes)]


def test_damaged_frames_are_skipped_and_told(tmp_path, scene):
    clip = _write(tmp_path / 'a.avi', scene, 'MJPG')
    data = bytearray(clip.read_bytes())
    whole = _read(clip)
    chunks = _chunks(bytes(data))
    assert len(chunks) == 14
    for index in (3, 6, 7):
        data[chunks[index]] = bytes(chunks[index].stop - chunks[index].start)
    clip.write_bytes(data)
    reader = video.Reader(clip)
    found = reader.frames(100)
    assert (reader.count, reader.read, reader.lost) == (14, 11, [3, 6, 7])
    left = [frame for index, frame in enumerate(whole) if index not in (3, 6, 7)]
    for ours, theirs in zip(found, left, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (line,) = reader.report()
    assert line == f'{clip}: 3 frames cannot be decoded and are skipped: 3, 6, 7'

    clip.write_bytes(data[: chunks[8].start])
    reader = video.Reader(clip)
    assert len(reader.frames(100)) == 5
    assert list(reader.report())[-1] == f'{clip}: the video ends 8 frames before its header says'


def test_what_is_no_video(tmp_path, untrained_run):
    (tmp_path / 'a.mp4').write_bytes(b'no video')
    config = workdir_config.load(untrained_run)
    with pytest.raises(InputError, match=r'a.mp4: the video cannot be read; is the file damaged'):
        predict.predict(config, untrained_run, 'best', str(tmp_path / 'a.mp4'), tmp_path / 'out')
    config.predict.label_ids = 'server'
    with pytest.raises(InputError, match=r"label_ids='server': .*a.mp4 is a video"):
        predict.predict(config, untrained_run, 'best', str(tmp_path / 'a.mp4'), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert not video.is_video(tmp_path) and not video.is_video(tmp_path / 'b.mp4')


def test_a_failure_leaves_no_video(tmp_path, scene):
    clip = video.Reader(_write(tmp_path / 'a.avi', scene, 'MJPG'))
    written = []

    def network(frames):
        if len(written) > 4:
            raise RuntimeError('out of memory')
        return [frame[..., 0] for frame in frames]

    writer = video.Writer(tmp_path / 'out' / 'b.mp4', clip.size, clip.rate)
    with pytest.raises(RuntimeError, match='out of memory'), writer.open() as append:
        video.run(
            clip,
            network,
            lambda number, frame, labels: (written.append(number), append(frame)),
            batch=2,
            advance=lambda count: None,
        )
    assert written == sorted(written) and list((tmp_path / 'out').iterdir()) == []
