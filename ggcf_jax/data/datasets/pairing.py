"""Which label file belongs to which image: two folders, one folder of both, or a list file."""

import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ggcf_jax.data.records import finder, formats, text_files
from ggcf_jax.data.records.dataset import Pair
from ggcf_jax.errors import InputError

# Extensions of label files, in lower case; the content decides what a file is.
LABELS = ('.png', '.tif', '.tiff', '.gif', '.bmp', '.npy')
_LOSSY = ('.jpg', '.jpeg', '.webp')  # beside a label of the same name these are the images


class Endings(NamedTuple):
    """What may stand between the common part of a name and its extension, besides nothing.

    Attributes:
        images: of images, such as '_leftImg8bit'.
        labels: of labels, such as '_mask'.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def parse(cls, images: str, labels: str) -> 'Endings':
        """Parses two lists that are separated by commas.

        Args:
            images: `config.data.image_endings`.
            labels: `config.data.label_endings`.
        """
        parts = (
            tuple(part.strip().lower() for part in text.split(',') if part.strip())
            for text in (images, labels)
        )
        return cls(*parts)


class Pairs(NamedTuple):
    """The pairs of a split.

    Attributes:
        pairs: image and label files, in the order of the images.
        notes: a line for everything that was left out.
    """

    pairs: list[Pair]
    notes: tuple[str, ...]


def find(root: pathlib.Path, text: str, field: str, endings: Endings) -> Pairs:
    """Pairs the files of a split, without reading them.

    Args:
        root: folder that paths are relative to.
        text: value of the field: 'IMAGES,LABELS' folders, one folder of both, or a list file.
        field: field of the configuration, for error messages.
        endings: endings of names that are not part of what images and labels have in common.

    Raises:
        InputError: a folder or file that does not exist, an image without label, or no images.
    """
    parts = [pathlib.Path(part.strip()).expanduser() for part in text.split(',')]
    if len(parts) > 2:
        raise InputError(f"{field}={text!r} must be two folders, 'IMAGES,LABELS', or a list file")
    if len(parts) == 1 and not (root / parts[0]).is_dir():
        return _of_list(root, parts[0], field, text)
    for folder in parts:
        if not (root / folder).is_dir():
            raise InputError(f'{field}={text!r}: {root / folder} is not a directory')
    return _of_folders(root / parts[0], root / parts[-1], f'{field}={text!r}', endings)


def _of_folders(
    image_folder: pathlib.Path, label_folder: pathlib.Path, where: str, endings: Endings
) -> Pairs:
    """The pairs of two folders, or of one that holds both."""
    found = finder.find(image_folder, formats.EXTENSIONS)
    images, notes = found.files, list(finder.describe(found.left_out))
    if label_folder.resolve() == image_folder.resolve():
        labels = finder.find(image_folder, LABELS).files
        images, labels = _apart(images, labels, endings)
    else:
        found = finder.find(label_folder, LABELS)
        labels = found.files
        notes += finder.describe(found.left_out)
    if not images:
        raise InputError(
            f'{where}: no images found; supported extensions: {", ".join(formats.EXTENSIONS)}'
            + _also(notes)
        )
    matched = _match(images, labels, image_folder, label_folder, endings)
    alone = [image for image in images if image not in matched]
    used = set(matched.values())
    left = [label for label in labels if label not in used]
    if alone:
        expected = label_folder / alone[0].relative_to(image_folder).with_suffix('.png')
        raise InputError(
            f'{where}: {len(alone)} of {len(images)} images have no label, the first is '
            f'{finder.printable(alone[0])}; its label would be {finder.printable(expected)}, or '
            'have an ending of config.data.label_endings'
            + _also([f'{len(left)} labels without image ({_names(left)})'] if left else [])
            + _also(notes)
        )
    if left:
        notes.append(f'{len(left)} labels without image ({_names(left)})')
    return Pairs([(image, matched[image]) for image in images], tuple(notes))


def _also(notes: Iterable[str]) -> str:
    text = '; '.join(notes)
    return f'; left out: {text}' if text else ''


def _names(paths: Iterable[pathlib.Path]) -> str:
    return finder.listed(path.name for path in paths)


def _apart(
    images: Sequence[pathlib.Path], labels: Sequence[pathlib.Path], endings: Endings
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Images and labels of one folder: labels have an ending, or stand beside a lossy image."""
    lossy = {path.with_suffix('') for path in images if path.suffix.lower() in _LOSSY}
    are_labels = {
        path
        for path in labels
        if path.stem.lower().endswith(endings.labels or ('\0',)) or path.with_suffix('') in lossy
    }
    return [path for path in images if path not in are_labels], sorted(are_labels)


def _match(
    images: Sequence[pathlib.Path],
    labels: Sequence[pathlib.Path],
    image_folder: pathlib.Path,
    label_folder: pathlib.Path,
    endings: Endings,
) -> dict[pathlib.Path, pathlib.Path]:
    """Image -> label: by equal paths, by paths without endings, by such names in any folder."""
    matched: dict[pathlib.Path, pathlib.Path] = {}
    rounds = (
        (lambda path, folder, _: [_stem(path.relative_to(folder))], True),
        (lambda path, folder, ends: _without_ending(_stem(path.relative_to(folder)), ends), True),
        (lambda path, _, ends: _without_ending(_stem(pathlib.Path(path.name)), ends), False),
    )
    left_images, left_labels = list(images), list(labels)
    for keys, is_definite in rounds:
        by_key: tuple[dict[str, list[pathlib.Path]], ...] = (defaultdict(list), defaultdict(list))
        for path in left_images:
            for key in keys(path, image_folder, endings.images):
                by_key[0][key].append(path)
        for path in left_labels:
            for key in keys(path, label_folder, endings.labels):
                by_key[1][key].append(path)
        for key, its_images in by_key[0].items():
            its_labels = [p for p in by_key[1].get(key, []) if p not in matched.values()]
            its_images = [p for p in its_images if p not in matched]
            if not its_labels or not its_images:
                continue
            if len(its_images) > 1 or len(its_labels) > 1:
                if is_definite:
                    _refuse_several(its_images, its_labels)
                continue
            matched[its_images[0]] = its_labels[0]
        left_images = [path for path in left_images if path not in matched]
        used = set(matched.values())
        left_labels = [path for path in left_labels if path not in used]
        if not left_images:
            break
    return matched


def _refuse_several(images: list[pathlib.Path], labels: list[pathlib.Path]) -> None:
    several = images if len(images) > 1 else labels
    what, whose = ('images', labels[0]) if len(images) > 1 else ('labels', images[0])
    raise InputError(
        f'{finder.printable(several[0])} and {finder.printable(several[1])} are both {what} of '
        f'{finder.printable(whose)}; rename or remove one, or give its ending alone in '
        'config.data.image_endings or config.data.label_endings'
    )


def _stem(path: pathlib.Path) -> str:
    """A path without its extension, with accents in one form."""
    return finder.composed(path.with_suffix('').as_posix())


def _without_ending(stem: str, endings: tuple[str, ...]) -> list[str]:
    """The stem itself, and what is left of it without each of the endings that it has."""
    return [
        stem,
        *(stem[: -len(end)] for end in endings if stem.lower().endswith(end) and stem[: -len(end)]),
    ]


def by_stem(files: Iterable[pathlib.Path], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns path relative to the folder, without extension -> file.

    Args:
        files: files inside the folder.
        folder: folder that the names are relative to.

    Raises:
        InputError: two files differ in their extension alone.
    """
    found: dict[str, pathlib.Path] = {}
    for path in files:
        stem = path.relative_to(folder).with_suffix('').as_posix()
        if stem in found:
            raise InputError(
                f'{found[stem]} and {path} have the same name up to the extension; rename or '
                'remove one'
            )
        found[stem] = path
    return found


def _of_list(root: pathlib.Path, file: pathlib.Path, field: str, text: str) -> Pairs:
    """The pairs of a list file, in its order."""
    path = root / file
    if not path.is_file():
        raise InputError(
            f"{field}={text!r}: {path} is not a file; give 'IMAGES,LABELS' folders or a list file"
        )
    pairs: list[Pair] = []
    for number, line in enumerate(text_files.read(path, any_bytes=True).splitlines(), 1):
        if not line.strip() or line.startswith('#'):
            continue
        # Names with spaces are separated by a tab or comma.
        separator = next((s for s in ('\t', ',') if s in line), None)
        parts = [part.strip() for part in line.split(separator)]
        if len(parts) != 2:
            raise InputError(f"{path}:{number}: {finder.printable(line)!r} is not 'image label'")
        pair = [finder.existing(root / pathlib.Path(part).expanduser()) for part in parts]
        for part, found in zip(parts, pair):
            if found is None:
                raise InputError(
                    f'{path}:{number}: there is no file {finder.printable(root / part)}'
                )
        pairs.append((pair[0], pair[1]))  # type: ignore[arg-type]  # both are there
    if not pairs:
        raise InputError(f'{field}={text!r}: no images found; {path} lists none')
    return Pairs(pairs, ())
