"""What label files hold, before the class file is asked: for the doctor, who says what to write."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

from ggcf_jax.data.records import codec, formats
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED, ONE_BYTE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError

_MOST = 100  # number of labels that are looked at
_SHOWN = 8  # number of values or colours that a line lists


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the labels of a split hold.

    Attributes:
        split: name of the split.
        forms: kind of file, such as '8-bit PNG' -> number of labels.
        values: label value -> number of labels that have it.
        colors: (red, green, blue) -> number of labels that have it.
    """

    split: str
    forms: Counter[str]
    values: Counter[int]
    colors: Counter[tuple[int, int, int]]


def survey(dataset: Dataset, split: str) -> Survey | None:
    """Looks at labels of a split, evenly spread over it.

    Args:
        dataset: data set to look at.
        split: split of the data set.

    Returns:
        None where labels are not files of ids or colours that the user chooses the meaning of.
    """
    decoder = dataset.decoder
    if not isinstance(decoder, FileDecoder) or decoder.label_form == ONE_BYTE:
        return None
    found = Survey(split, Counter(), Counter(), Counter())
    source = dataset.source(split)
    for index in np.unique(np.linspace(0, len(source) - 1, min(_MOST, len(source))).astype(int)):
        try:
            data = source[int(index)]['label']
            raw = codec.decode_label(data, '', palette_colors=decoder.label_form == 'colors')
        except InputError:  # the scan names it
            continue
        found.forms[_form(data, raw)] += 1
        if raw.ndim == 2:
            found.values.update(np.unique(raw).tolist())
            continue
        is_grey = not np.ptp(raw, -1).any()
        if is_grey and decoder.label_form != 'colors':
            found.values.update(np.unique(raw[..., 0]).tolist())
        else:
            colors = np.unique(raw.reshape(-1, 3), axis=0)
            found.colors.update((int(r), int(g), int(b)) for r, g, b in colors)
    return found


def _form(data: bytes, raw: np.ndarray) -> str:
    """The kind of a label file."""
    if raw.ndim == 3:
        kind = 'in colours' if np.ptp(raw, -1).any() else 'with three equal channels'
        return f'{formats.read(data).format} {kind}'
    if not data.startswith(formats.SIGNATURES):
        return 'npy'
    header = formats.read(data)
    kind = 'palette' if header.has_palette else f'{header.bits}-bit'
    return f'{kind} {header.format}'


def lines(found: Survey, dataset: Dataset) -> Iterator[str]:
    """Yields what was found, and for what has no class what to write.

    Args:
        found: survey of a split of the data set.
        dataset: the data set.
    """
    forms = ', '.join(f'{count} {form}' for form, count in found.forms.most_common())
    parts = [forms or 'none that can be read']
    if found.values:
        parts.append(f'values {_ranges(sorted(found.values))}')
    if found.colors:
        parts.append(f'{len(found.colors)} colours')
    yield f'labels of {found.split}: {"; ".join(parts)}'
    decoder = dataset.decoder
    assert isinstance(decoder, FileDecoder)
    yield from _about_values(found, decoder, dataset.num_classes)
    yield from _about_colors(found, decoder)


def _about_values(found: Survey, decoder: FileDecoder, num_classes: int) -> Iterator[str]:
    """What to write for values that are no class, or that hide one."""
    label_map = decoder.label_map
    values = set(found.values)
    known = {v for v in values if 0 <= v < len(label_map) and label_map[v] != NOT_ALLOWED}
    unknown = sorted(values - known)
    if values == {0, 255} and (unknown or label_map[255] == IGNORE):
        yield (
            'these are masks of 0 and 255, but 255 is '
            + ('no class' if unknown else 'ignored')
            + ": write the lines 'name,ids', 'background,0', 'object,255' into the class file, and "
            "pass --config.data.ignore='()'"
        )
        return
    if not unknown:
        return
    if 0 in values and unknown == [num_classes] and label_map[0] == 0:
        yield (
            f'there are {num_classes} classes, but values 0 to {num_classes}: if 0 is no class, '
            'pass --config.data.ignore=0,255'
        )
        return
    shown = unknown[:_SHOWN]
    ignored = np.flatnonzero(label_map == IGNORE).tolist()
    flag = ','.join(map(str, [*ignored, *shown]))
    yield (
        f'values without class: {_ranges(unknown)}; write each into the column ids of the class '
        f"file ('NAME,{shown[0]}' under 'name,ids'), or have them ignored by "
        f'--config.data.ignore={flag}' + (' and so on' if len(unknown) > _SHOWN else '')
    )


def _about_colors(found: Survey, decoder: FileDecoder) -> Iterator[str]:
    """What to write for colours that are no class."""
    unknown = [
        color for color, _ in found.colors.most_common() if color not in decoder.label_colors
    ]
    if not unknown:
        return
    rows = ', '.join(f"'NAME,{r},{g},{b}'" for r, g, b in unknown[:_SHOWN])
    more = f' and {len(unknown) - _SHOWN} more' if len(unknown) > _SHOWN else ''
    yield (
        f"colours without class: write them into the class file under 'name,red,green,blue': "
        f"{rows}{more}; with 'ignore' in a column ids for those that are no class"
    )


def _ranges(values: list[int]) -> str:
    """'0-18, 255', the first ones."""
    runs = np.split(np.array(values), np.flatnonzero(np.diff(values) > 1) + 1)
    shown = [str(r[0]) if len(r) == 1 else f'{r[0]}-{r[-1]}' for r in runs[:_SHOWN]]
    more = len(runs) - _SHOWN
    return ', '.join(shown) + (f' and {more} more' if more > 0 else '')
