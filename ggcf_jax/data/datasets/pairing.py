"""Which label file belongs to which image: folders, patterns of paths, or a list file."""

import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ggcf_jax import places
from ggcf_jax.data.records import finder, formats, text_files
from ggcf_jax.data.records.dataset import Pair
from ggcf_jax.errors import InputError

# Extensions of label files, in lower case; the content decides what a file is.
LABELS = ('.png', '.tif', '.tiff', '.gif', '.bmp', '.npy')
_WILDCARD = re.compile(r'\*|\?|\[[^\]/]+\]')  # of a pattern, as the shell has them
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
        text: value of the field: 'IMAGES,LABELS' as folders, or as patterns such as
            '*/images/*.png,*/masks/*.png', where each wildcard of the labels stands for what that
            of the images has matched; one folder of both; or a list file. A third part,
            'IMAGES,LABELS,NAMES', names those images that are used: a file with a name at the
            start of each line, or the names themselves, separated by spaces. Several of these
            are separated by semicolons.
        field: field of the configuration, for error messages.
        endings: endings of names that are not part of what images and labels have in common.

    Raises:
        InputError: a folder or file that does not exist, an image without label, or no images.
    """
    if ';' in text:
        found = [find(root, part.strip(), field, endings) for part in text.split(';')]
        return Pairs(
            [pair for each in found for pair in each.pairs],
            tuple(note for each in found for note in each.notes),
        )
    parts = [part.strip() for part in text.split(',')]
    where = f'{field}={text!r}'
    if len(parts) > 3:
        raise InputError(
            f"{where} must be 'IMAGES,LABELS' or 'IMAGES,LABELS,NAMES', or a list file"
        )
    names = _names_of(root, parts.pop(), where) if len(parts) == 3 else None
    paths = [places.expand(part, field) for part in parts]
    if len(paths) == 2 and _WILDCARD.search(parts[0]) and not (root / paths[0]).is_dir():
        return _of_patterns(root, str(paths[0]), str(paths[1]), where, names)
    if len(paths) == 1 and not (root / paths[0]).is_dir():
        return _of_list(root, paths[0], field, text)
    for folder in paths:
        if not (root / folder).is_dir():
            raise InputError(f'{where}: {root / folder} is not a directory')
    return _of_folders(root / paths[0], root / paths[-1], where, endings, names)


def _of_folders(
    image_folder: pathlib.Path,
    label_folder: pathlib.Path,
    where: str,
    endings: Endings,
    names: list[str] | None,
) -> Pairs:
    """The pairs of two folders, or of one that holds both; all, or those of some names."""
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
    if names is not None:
        images = _named(images, image_folder, names, where)
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
    if left and names is None:
        notes.append(f'{len(left)} labels without image ({_names(left)})')
    return Pairs([(image, matched[image]) for image in images], tuple(notes))


def _of_patterns(
    root: pathlib.Path, images: str, labels: str, where: str, names: list[str] | None
) -> Pairs:
    """The pairs whose paths match two patterns."""
    wildcards, filled = _WILDCARD.findall(images), _WILDCARD.findall(labels)
    if len(wildcards) != len(filled):
        raise InputError(
            f'{where}: the images have {len(wildcards)} wildcards and the labels {len(filled)}; '
            'each wildcard of the labels stands for what that of the images has matched'
        )
    fixed = _WILDCARD.split(images)[0].rpartition('/')[0]
    if not (root / fixed).is_dir():
        raise InputError(f'{where}: {root / fixed} is not a directory')
    pattern = _pattern(images)
    found = []
    for path in finder.find(root / fixed, formats.EXTENSIONS).files:
        text = path if images.startswith('/') else path.relative_to(root)
        if match := pattern.fullmatch(text.as_posix()):
            found.append((path, root / _filled(labels, match.groups())))
    if not found:
        raise InputError(f'{where}: no images found; nothing in {root / fixed} matches the pattern')
    if names is not None:
        label_of = dict(found)
        kept = _named([image for image, _ in found], root, names, where)
        found = [(image, label_of[image]) for image in kept]
    pairs = [(image, finder.existing(label)) for image, label in found]
    alone = [at for at, (_, label) in enumerate(pairs) if label is None]
    if alone:
        image, expected = found[alone[0]]
        raise InputError(
            f'{where}: {len(alone)} of {len(found)} images have no label, the first is '
            f'{finder.printable(image)}; its label would be {finder.printable(expected)}'
        )
    return Pairs([(image, label) for image, label in pairs if label is not None], ())


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of paths as a regular expression, with a group for each wildcard."""
    expression = ''
    end = 0
    for wildcard in _WILDCARD.finditer(text):
        expression += re.escape(text[end : wildcard.start()])
        end = wildcard.end()
        if wildcard[0] in '*?':
            expression += '([^/]*)' if wildcard[0] == '*' else '([^/])'
        else:
            negated = '^' if wildcard[0][1] == '!' else ''
            expression += f'([{negated}{wildcard[0][1:-1].removeprefix("!")}])'
    return re.compile(expression + re.escape(text[end:]))


def _filled(pattern: str, parts: Sequence[str]) -> str:
    """The path that a pattern is with a text for each of its wildcards."""
    fixed = _WILDCARD.split(pattern)
    return fixed[0] + ''.join(part + text for part, text in zip(parts, fixed[1:]))


def _names_of(root: pathlib.Path, text: str, where: str) -> list[str]:
    """The names that the third part gives: of a file, or separated by spaces."""
    path = root / places.expand(text, where.partition('=')[0])
    if os.path.isfile(path):  # False, not an error, for what is too long to be a name
        lines = text_files.read(path, any_bytes=True).splitlines()
        names = [line.split()[0] for line in lines if line.strip() and not line.startswith('#')]
    else:
        names = text.split()
    if not names:
        raise InputError(f'{where}: no images found; {finder.printable(path)} names none')
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f'{where}: {finder.printable(twice)} is named twice')
    return names


def _named(
    images: Sequence[pathlib.Path], folder: pathlib.Path, names: list[str], where: str
) -> list[pathlib.Path]:
    """The images of these names, in their order.

    Args:
        images: images to choose from.
        folder: folder that holds them.
        names: paths relative to the folder, or names of files; with or without extension.
        where: field and value, for error messages.
    """
    by_name: dict[str, set[pathlib.Path]] = defaultdict(set)
    for image in images:
        path = finder.composed(image.relative_to(folder).as_posix())
        for name in (path, finder.composed(image.name)):
            by_name[name].add(image)
            by_name[name.removesuffix(image.suffix)].add(image)
    found = [by_name.get(finder.composed(name), set()) for name in names]
    missing = [name for name, its in zip(names, found) if not its]
    if missing:
        raise InputError(
            f'{where}: {len(missing)} of {len(names)} names are no image of '
            f'{finder.printable(folder)}, the first is {finder.printable(missing[0])}'
            + ('; there is no file of that name either' if len(names) == 1 else '')
        )
    for name, its in zip(names, found):
        if len(its) > 1:
            first, second = sorted(its)[:2]
            raise InputError(
                f'{where}: {finder.printable(name)} names {finder.printable(first)} and '
                f'{finder.printable(second)}; write the path'
            )
    return [next(iter(its)) for its in found]


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
    used: set[pathlib.Path] = set()
    for keys, is_definite in rounds:
        by_key: tuple[dict[str, list[pathlib.Path]], ...] = (defaultdict(list), defaultdict(list))
        for path in left_images:
            for key in keys(path, image_folder, endings.images):
                by_key[0][key].append(path)
        for path in left_labels:
            for key in keys(path, label_folder, endings.labels):
                by_key[1][key].append(path)
        for key, its_images in by_key[0].items():
            its_labels = [p for p in by_key[1].get(key, []) if p not in used]
            its_images = [p for p in its_images if p not in matched]
            if not its_labels or not its_images:
                continue
            if len(its_images) > 1 or len(its_labels) > 1:
                if is_definite:
                    _refuse_several(its_images, its_labels)
                continue
            matched[its_images[0]] = its_labels[0]
            used.add(its_labels[0])
        left_images = [path for path in left_images if path not in matched]
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
        pair = [finder.existing(root / places.expand(part, f'{path}:{number}')) for part in parts]
        for part, found in zip(parts, pair):
            if found is None:
                raise InputError(
                    f'{path}:{number}: there is no file {finder.printable(root / part)}'
                )
        pairs.append((pair[0], pair[1]))  # type: ignore[arg-type]  # both are there
    if not pairs:
        raise InputError(f'{field}={text!r}: no images found; {path} lists none')
    return Pairs(pairs, ())
