"""The output folder of a prediction: its files, and the model and plan that it belongs to."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float16, Integer, UInt8

from ggcf_jax import atomic, json_files
from ggcf_jax.display import pictures
from ggcf_jax.errors import InputError

KEY_FILE = 'predict.json'
CLASS_FILE = 'classes.csv'
SUBMISSION = 'submission.zip'
_ROWS = 256  # painted at a time: colouring 100 megapixels at once would take a gigabyte


@dataclasses.dataclass(frozen=True)
class Results:
    """Where and how the results of an image are written.

    Attributes:
        folder: folder of all results.
        colors: RGB of each class, 0 to 255.
        ids: value of each class in the label files, 16-bit ones if any is above 255.
        palette: whether label files have a palette with the colours of the classes, so that they
            can be looked at; their values are the same.
        suffix: text between the name of an image and `.png` in the name of its label file.
        overlays: whether to write the images overlaid with the class colours.
        probabilities: whether to write the probabilities.
    """

    folder: pathlib.Path
    colors: tuple[tuple[int, int, int], ...]
    ids: Integer[np.ndarray, ' classes']
    palette: bool
    suffix: str
    overlays: bool
    probabilities: bool

    def label_path(self, name: str) -> pathlib.Path:
        return self.folder / 'labels' / f'{name}{self.suffix}.png'

    def overlay_path(self, name: str) -> pathlib.Path:
        return self.folder / 'overlays' / f'{name}.png'

    def probabilities_path(self, name: str) -> pathlib.Path:
        return self.folder / 'probabilities' / f'{name}.npy'

    def done(self, name: str) -> bool:
        """Whether all files of an image exist."""
        paths = [self.label_path(name)]
        paths += [self.overlay_path(name)] if self.overlays else []
        paths += [self.probabilities_path(name)] if self.probabilities else []
        return all(path.is_file() for path in paths)

    def discard(self, name: str) -> None:
        """Removes the label file of an image, which are its results no longer.

        Args:
            name: name of the image.
        """
        self.label_path(name).unlink(missing_ok=True)

    def write(
        self, name: str, image: UInt8[np.ndarray, 'h w 3'], labels: UInt8[np.ndarray, 'h w']
    ) -> None:
        """Writes overlay and label file, the latter last: what has one is complete.

        Args:
            name: name of the image.
            image: RGB; the overlay is painted into it.
            labels: train id of each pixel.
        """
        if self.overlays:
            self.paint(image, labels)
            pictures.write_png(self.overlay_path(name), image)
        self.write_labels(name, labels)

    def paint(self, image: UInt8[np.ndarray, 'h w 3'], labels: UInt8[np.ndarray, 'h w']) -> None:
        """Paints the colours of the classes over an image, in place.

        Args:
            image: RGB.
            labels: train id of each pixel.
        """
        for top in range(0, len(image), _ROWS):
            rows = slice(top, top + _ROWS)
            painted = pictures.colorize(labels[rows], self.colors, ignore=255)
            image[rows] = cv2.addWeighted(image[rows], 0.5, painted, 0.5, 0)

    def write_labels(self, name: str, labels: UInt8[np.ndarray, 'h w']) -> None:
        """Writes a label file.

        Args:
            name: name of the image.
            labels: train id of each pixel.
        """
        values = self.ids[labels]
        if self.palette and values.dtype == np.uint8:
            encoded = pictures.encode_palette_png(values, dict(zip(self.ids.tolist(), self.colors)))
        else:
            encoded = cv2.imencode('.png', values)[1].tobytes()
        atomic.write(self.label_path(name), encoded)

    def write_classes(self, names: Sequence[str]) -> None:
        """Writes `classes.csv`, a class file as the data set 'folder' reads it.

        Args:
            names: name of each class.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator='\n')
        rows.writerow(['name', 'red', 'green', 'blue', 'ids'])
        for name, color, value in zip(names, self.colors, self.ids.tolist(), strict=True):
            rows.writerow([name, *color, value])
        path, content = self.folder / CLASS_FILE, text.getvalue().encode()
        if not path.exists() or path.read_bytes() != content:
            atomic.write(path, content)

    @contextlib.contextmanager
    def probabilities_file(
        self, name: str, shape: tuple[int, int, int]
    ) -> Iterator[Float16[np.ndarray, 'h w classes']]:
        """Yields an array that is mapped to the file of an image, to be filled.

        Args:
            name: name of the image.
            shape: shape of the array.
        """
        with atomic.replacing(self.probabilities_path(name)) as temporary:
            array = np.lib.format.open_memmap(temporary, 'w+', np.float16, shape)
            yield array
            array.flush()


def label_values(ids: Sequence[int]) -> Integer[np.ndarray, ' classes']:
    """The values of the classes in the narrowest type that a grey PNG can have.

    Args:
        ids: value of each class, below 65,536.
    """
    return np.array(ids, np.uint8 if max(ids) < 256 else np.uint16)


def claim(folder: pathlib.Path, key: Mapping[str, str]) -> None:
    """Makes the folder and writes `predict.json`, or checks that an existing one is equal.

    Args:
        folder: folder of all results.
        key: what the results depend on, by name.

    Raises:
        InputError: the folder holds results of another model or plan, or something else.
    """
    path = folder / KEY_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--output={folder} is a file; give a folder')
    if not path.exists():
        if folder.exists() and any(not p.name.startswith('.') for p in folder.iterdir()):
            raise InputError(
                f'--output={folder} holds files that are not results of a prediction; '
                'give an empty or a new folder'
            )
        atomic.write(path, json.dumps(key, indent=2).encode())
        return
    try:
        there = json_files.parse_object(path.read_bytes())
        for name in there:
            json_files.need(there, name, json_files.is_text, 'a text')
    except ValueError as error:
        raise InputError(f'{path} is damaged ({error}); give another --output') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    differences = [
        f'{name}: {there.get(name)!r} there, {key.get(name)!r} now'
        for name in sorted({*there, *key})
        if there.get(name) != key.get(name)
    ]
    if differences:
        raise InputError(
            f'--output={folder} holds results of another model or plan:\n  '
            + '\n  '.join(differences)
            + '\ngive another folder'
        )


def submit(results: Results, sizes: Mapping[str, tuple[int, int] | None]) -> pathlib.Path:
    """Checks the label files against the images that the server expects, and zips them.

    Args:
        results: results of the split.
        sizes: (height, width) of every image, by its name; None where the header does not say.

    Returns:
        Path of the archive.

    Raises:
        InputError: a file is missing or superfluous, has another size, or holds other values.
    """
    folder = results.folder / 'labels'
    expected = {results.label_path(name): size for name, size in sizes.items()}
    there = set(folder.rglob('*.png'))
    problems = [f'{path} is missing' for path in sorted(expected.keys() - there)]
    problems += [f'{path} is not expected' for path in sorted(there - expected.keys())]
    problems += [
        problem
        for path in sorted(there & expected.keys())
        if (problem := _problem(path, expected[path], results.ids))
    ]
    if problems:
        raise InputError(_report(problems, folder))
    path = results.folder / SUBMISSION
    with (
        atomic.replacing(path) as temporary,
        zipfile.ZipFile(temporary, 'w', zipfile.ZIP_STORED) as file,
    ):
        for each in sorted(expected):  # PNG files are compressed already
            file.writestr(each.name, each.read_bytes())
    return path


def _problem(path: pathlib.Path, size: tuple[int, int] | None, ids: np.ndarray) -> str | None:
    labels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        return f'{path} is not an 8-bit grey PNG'
    if size is not None and labels.shape != size:
        return f'{path} is {labels.shape[0]} x {labels.shape[1]}, its image {size[0]} x {size[1]}'
    other = np.setdiff1d(labels, ids)
    return f'{path} holds the values {other.tolist()}' if len(other) else None


def _report(problems: Sequence[str], folder: pathlib.Path) -> str:
    shown = '\n  '.join(problems[:10])
    return f'{folder} is not what the server expects. Problems ({len(problems)}):\n  {shown}'
