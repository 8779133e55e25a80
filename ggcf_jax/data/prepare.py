"""Preparing TFDS data sets without TensorFlow, stored as array_record, and reading them back."""

import pathlib

import tensorflow_datasets as tfds

from ggcf_jax.errors import InputError


class PreparedSource:
    """Records of one prepared split, still encoded.

    A class rather than a lambda over the TFDS source because grain's worker processes pickle it.
    """

    def __init__(self, source, image: str = 'image', label: str = 'label', name: str = 'name'):
        self._source = source
        self._image, self._label, self._name = image, label, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        name = record[self._name]
        return {
            'name': name.decode() if isinstance(name, bytes) else str(name),
            'image': record[self._image],
            'label': record[self._label],
        }


def prepared_sources(builder: tfds.core.DatasetBuilder) -> dict[str, PreparedSource]:
    """Prepares the data set unless it is there, and opens every split.

    TFDS writes into a temporary directory and renames it when it is complete, so an interrupted
    preparation is simply done again.

    Args:
        builder: a builder with the features `name`, `image` and `label`.

    Raises:
        InputError: the data directory cannot be written.
    """
    try:
        builder.download_and_prepare(file_format='array_record')
    except PermissionError as error:
        raise InputError(
            f'cannot prepare data set {builder.info.full_name!r}: {error}; '
            'set --config.data.data_dir to a directory that you can write'
        ) from error
    skip = tfds.decode.SkipDecoding()
    return {
        split: PreparedSource(
            builder.as_data_source(split, decoders={'image': skip, 'label': skip})
        )
        for split in builder.info.splits
    }


def data_directory(data_dir: str | None) -> pathlib.Path:
    """Where prepared data sets live: `data_dir`, or the default of TFDS."""
    return pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
