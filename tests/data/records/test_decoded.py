"""Decoded records in memory: decoded once, as many as fit."""

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ggcf_jax.data.records.codec import IGNORE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset, Records, identity_label_map
from ggcf_jax.data.records.decoded import DecodedRecords
from ggcf_jax.errors import InputError

SIZE = 4 * 5 * (3 + 1)  # bytes of a decoded record


class _Source:
    def __init__(self, first):
        self._first = first

    def __len__(self):
        return 4

    def __getitem__(self, index):
        value = self._first + index
        return {'name': f'image_{value}', 'image': bytes([value]), 'label': bytes([value])}


class _Decoder(FileDecoder):
    """Counts in `decoded`; value 7 is damaged."""

    decoded: list = []

    def image(self, data, name):
        self.decoded.append(name)
        return np.full((4, 5, 3), data[0], np.uint8)

    def label(self, data, name):
        if data[0] == 7:
            raise InputError(f'{name}: damaged')
        return np.full((4, 5), data[0], np.uint8)


def _records():
    dataset = Dataset(
        name='fake',
        classes=('a',),
        colors=((0, 0, 0),),
        sources={'train': _Source(0), 'extra': _Source(4)},
        decoder=_Decoder(identity_label_map(1, IGNORE)),
        identity='fake',
    )
    _Decoder.decoded.clear()
    return Records(dataset, ('train',)), Records(dataset, ('extra',))


@pytest.mark.parametrize(('limit', 'kept'), [(0, 0), (SIZE - 1, 0), (2 * SIZE, 2), (99 * SIZE, 7)])
def test_as_many_as_fit_are_decoded_once(limit, kept):
    records = DecodedRecords(_records(), limit)
    drawn = [(part, index) for part in range(2) for index in range(4) if (part, index) != (1, 3)]
    for epoch in range(3):
        for part, index in drawn[epoch:] + drawn[:epoch]:
            opened = records.open(part, index)
            value = 4 * part + index
            assert opened['name'] == f'image_{value}'
            assert np.all(opened['image'][:, :] == value)
            assert np.all(opened['label'] == value)
    assert len(_Decoder.decoded) == kept + 3 * (len(drawn) - kept)


def test_what_is_kept_cannot_be_written_to():
    records = DecodedRecords(_records(), 99 * SIZE)
    for _ in range(2):
        opened = records.open(0, 1)
        with pytest.raises(ValueError, match='read-only'):
            opened['image'][0, 0] = 3
        with pytest.raises(ValueError, match='read-only'):
            opened['label'][0, 0] = 3


def test_a_record_that_cannot_be_decoded_fails_every_time():
    records = DecodedRecords(_records(), 99 * SIZE)
    for _ in range(2):
        with pytest.raises(InputError, match='image_7: damaged'):
            records.open(1, 3)


def test_threads_keep_no_more_than_fits():
    records = DecodedRecords(_records(), 3 * SIZE)
    drawn = [(0, index % 4) for index in range(400)]
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda at: records.open(*at), drawn))
    assert [each['label'][0, 0] for each in opened] == [index for _, index in drawn]
    again = len(_Decoder.decoded)
    for index in range(4):
        records.open(0, index)
    assert len(_Decoder.decoded) == again + 1


class _Windows(_Decoder):
    """Images of which windows can be decoded."""

    def image(self, data, name):
        return _Windowed(super().image(data, name))


class _Windowed:
    def __init__(self, pixels):
        self.shape, self._pixels, self.taken = pixels.shape, pixels, 0

    def __getitem__(self, window):
        self.taken += 1
        return self._pixels[window]


def test_only_what_is_kept_is_decoded_whole():
    parts = _records()
    dataset = dataclasses.replace(parts[0].dataset, decoder=_Windows(identity_label_map(1, IGNORE)))
    records = DecodedRecords((Records(dataset, ('train',)),), SIZE + 1)
    assert isinstance(records.open(0, 0)['image'], np.ndarray)
    for _ in range(2):
        image = records.open(0, 1)['image']
        assert isinstance(image, _Windowed) and image.taken == 0


def test_workers_start_empty():
    records = DecodedRecords(_records(), 99 * SIZE)
    records.open(0, 0)
    copy = pickle.loads(pickle.dumps(records))
    copy.open(0, 0)
    assert len(_Decoder.decoded) == 2
