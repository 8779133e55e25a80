"""Fig. 1: how similar features are to the one at a marked position, for models side by side.

    python -m experiments.figures.fig1_similarity --out=runs/fig1 --workdir runs/table1/full \
        runs/table1/local_grid_8_16_24

The paper shows "how similar backbone features distribute, with respect to the backbone feature
whose positions are marked" and does not say by what measure. Here it is the cosine, of the
backbone's features (the input of the context module) and of the fused ones (its output, before the
classifier). Beside the picture there are numbers: the mean similarity of positions of the marked
class, of the rest of its family and of all others, and the area under the ROC curve, which is the
probability that a position of the marked class is more similar than one of the others (0.5: the
feature cannot tell them apart).

Writes <out>/similarity_<image>_<y>_<x>.png for each mark, <out>/similarity.csv and
<out>/similarity.md. Run it from the root of the repository.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cli, confusable, pictures, tables
from experiments.common import queries as marks
from experiments.common import runs as chosen
from experiments.common.confusable import Family
from experiments.common.pictures import Cell
from experiments.common.queries import Marked
from experiments.common.trained import Trained
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.models import merge
from ggcf_jax.models.layers.resize import nearest_positions, upsample

FEATURES = ('backbone', 'fused')


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of features of one model at one mark.

    Attributes:
        model: title of the run. image: name of the record.
        y, x: the marked pixel. label: its class.
        features: 'backbone' or 'fused'.
        same, family, other: mean cosine similarity of labelled positions of the marked class (the
            mark itself left out), of the other classes of its family, of all others; NaN of none.
        tells_family, tells_other: area under the ROC curve of the same class against those.
    """

    model: str
    image: str
    y: int
    x: int
    label: str
    features: str
    same: float
    family: float
    other: float
    tells_family: float
    tells_other: float


def make_similarities(
    trained: Trained,
) -> Callable[[np.ndarray, Sequence[marks.Pixel]], tuple[np.ndarray, np.ndarray]]:
    """Builds the function (image, m pixels) -> (similarities, prediction) of a model.

    The image is uint8 [h, w, 3] RGB. Similarities are the `cosine` of every position's features to
    those at the pixels, float32 [2, m, ceil(h / stride), ceil(w / stride)] in the order of
    `FEATURES`; the prediction is uint8 [h, w] of train ids.
    """

    @jax.jit
    def compute(params, stats, images, at):
        model = merge(trained.graphdef, params, stats)
        *_, backbone = model.backbone(model.normalization(images).astype(model.dtype), False, None)
        fused = model.context(backbone, False)
        logits = model.classifier(fused).astype(jnp.float32)
        maps = jnp.stack([cosine(features[0], at) for features in (backbone, fused)])
        prediction = upsample(logits, model.stride, images.shape[1:3]).argmax(-1)
        return maps, prediction[0].astype(jnp.uint8)

    stride = trained.model.stride

    def similarities(image, queries):
        at = nearest_positions(queries, stride, image.shape[:2])
        maps, prediction = compute(trained.params, trained.stats, image[None], at)
        return np.asarray(maps), np.asarray(prediction)

    return similarities


def cosine(features: jax.Array, at: np.ndarray) -> jax.Array:
    """Cosine of the features [h, w, c] to those at positions [m, 2]: float32 [m, h, w]."""
    x = features.astype(jnp.float32)
    # A feature that is zero everywhere is similar to none.
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return jnp.einsum('hwc,mc->mhw', x, x[at[:, 0], at[:, 1]], precision='highest')


def measure(
    similarity: np.ndarray, label: np.ndarray, at: tuple[int, int], members: Sequence[int]
) -> dict[str, float]:
    """The numbers of a `Row`.

    Args:
        similarity: [h, w], to the mark. label: [h, w], the class at each position.
        at: (row, column) of the mark. members: classes of its family, its own included.
    """
    own = label[at]
    same = label == own
    same[at] = False
    near = np.isin(label, members) & (label != own)
    far = (label != own) & ~near & (label != IGNORE)
    groups = [similarity[where] for where in (same, near, far)]
    means = [float(group.mean()) if group.size else float('nan') for group in groups]
    return {
        **dict(zip(('same', 'family', 'other'), means)),
        'tells_family': roc_area(groups[0], groups[1]),
        'tells_other': roc_area(groups[0], groups[2]),
    }


def roc_area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that one of `positive` exceeds one of `negative`, ties half; NaN of none."""
    if not (positive.size and negative.size):
        return float('nan')
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, 'left')
    at_most = np.searchsorted(ordered, positive, 'right')
    return float((below + at_most).mean() / (2 * negative.size))


def compare(
    runs: Sequence[chosen.Chosen],
    which: str,
    marked: Sequence[Marked],
    known: Sequence[Family],
    out: pathlib.Path,
) -> list[Row]:
    """Measures and draws every mark for every model; models are in memory one after the other."""
    rows, pages = [], {}
    for run, trained in chosen.load(runs, which):
        similarities, stride = make_similarities(trained), trained.model.stride
        for each in marked:
            maps, prediction = similarities(each.image, each.queries)
            painted = pictures.painted(prediction, trained.dataset)
            for i, query in enumerate(each.queries):
                found = _rows(run, trained, each, query, maps[:, i], known)
                page = pages.setdefault((each.name, *query), _first_row(each, query, trained))
                cells = [_cell(each, query, *pair, stride) for pair in zip(found, maps[:, i])]
                page.append([Cell(run.title, painted, mark=query), *cells])
                rows += found
    for (name, y, x), page in pages.items():
        path = out / f'similarity_{name.replace("/", "_")}_{y}_{x}.png'
        pictures.draw(path, page)
        print(path)
    return rows


def _rows(run, trained: Trained, each: Marked, query, maps, known: Sequence[Family]) -> list[Row]:
    stride = trained.model.stride
    label, at = marks.coarse_label(each.label, query, stride)
    own = each.label[query]
    members = [m for family in known if own in family.members for m in family.members]
    return [
        Row(
            run.title,
            each.name,
            *query,
            trained.dataset.classes[own],
            features,
            **measure(similarity, label, at, members),
        )
        for features, similarity in zip(FEATURES, maps)
    ]


def _first_row(each: Marked, query, trained: Trained) -> list[list[Cell | None]]:
    title = f'{each.name}: {trained.dataset.classes[each.label[query]]}'
    truth = pictures.painted(each.label, trained.dataset)
    return [[Cell(title, each.image, mark=query), Cell('ground truth', truth, mark=query), None]]


def _cell(each: Marked, query, row: Row, similarity: np.ndarray, stride: int) -> Cell:
    lowest = float(similarity.min())
    heat = ((similarity - lowest) / max(1 - lowest, 1e-6)).clip(0, 1)
    areas = (f'{area:.2f}' for area in (row.tells_family, row.tells_other) if area == area)
    title = f'{row.features} {lowest:.2f} to 1, ROC area {", ".join(areas)}'
    return Cell(title, pictures.dimmed(each.image), heat, stride, mark=query)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table, with what the paper claims."""
    numbers = ('same', 'family', 'other', 'tells_family', 'tells_other')
    columns = ('model', 'mark', 'features', 'same class', 'family', 'others', 'ROC area: family')
    lines = []
    for row in rows:
        mark = f'{row.image} ({row.y}, {row.x}) {row.label}'
        values = (getattr(row, name) for name in numbers)
        shown = ('' if np.isnan(value) else f'{value:.3f}' for value in values)
        lines.append((row.model, mark, row.features, *shown))
    return (
        'Mean cosine similarity to the feature at the mark, and the area under the ROC curve of\n'
        'its class against the others of its family and against all others. The paper (Fig. 1)\n'
        "shows pictures without numbers: where classes look alike, a non-local network's backbone\n"
        '"outputs indistinguishable features", an area of 0.5 against the family.\n\n'
        + tables.markdown((*columns, 'others'), lines)
    )


def main(options) -> None:
    runs = chosen.choose(options.workdir)
    dataset = chosen.common_dataset(runs)
    known = confusable.of(dataset.name, dataset.classes, options.family)
    marked = marks.choose(dataset, options.split, known, options.image, options.query)
    rows = compare(runs, options.checkpoint, marked, known, options.out)
    tables.write_csv(options.out / 'similarity.csv', rows)
    tables.write_text(options.out / 'similarity.md', markdown(rows))


if __name__ == '__main__':
    parser = cli.parser(__doc__)
    chosen.add_workdirs(parser)
    chosen.add_checkpoint(parser)
    marks.add_arguments(parser)
    confusable.add_arguments(parser)
    cli.run(main, parser)
