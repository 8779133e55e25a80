"""Fig. 1: cosine similarity of features to those at a query point, for models side by side.

    python -m experiments.figures.fig1_similarity --out=runs/fig1 --workdir runs/table1/full \
        runs/table1/local_grid_8_16_24

The paper shows "how similar backbone features distribute, with respect to the backbone feature
whose positions are marked" and does not name the measure. Here it is the cosine, both of the
backbone's features (the input of the context module) and of the fused ones (its output, before the
classifier). The table has the mean similarity of positions of the query's class, of the other
classes of its family and of all others, and the area under the ROC curve: the probability that a
position of the query's class is more similar than one of the others (0.5: the feature cannot
distinguish them).

Writes <out>/similarity_<image>_<y>_<x>.png for each query point, <out>/similarity.csv and
<out>/similarity.md. Run it from the root of the repository.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from experiments.common import cli, confusable, pictures, queries, runs, tables
from experiments.common.confusable import ConfusableGroup
from experiments.common.pictures import Cell
from experiments.common.queries import Pixel, QueryImage
from experiments.common.runs import LoadedRun, SelectedRun
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.models.layers.resize import nearest_positions
from ggcf_jax.models.segmenter import Segmenter

FEATURES = ('backbone', 'fused')


class Separation(NamedTuple):
    """How well similarity to a query separates its class from the others; NaN of no positions.

    Attributes:
        same: mean cosine similarity of labelled positions of the query's class, without the query.
        family: the same of the other classes of its family.
        other: the same of all other classes.
        tells_family: area under the ROC curve of the query's class against its family.
        tells_other: the same against all other classes.
    """

    same: float
    family: float
    other: float
    tells_family: float
    tells_other: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of features of one model at one query point.

    Attributes:
        model: title of the run.
        image: name of the record.
        y: row of the query point.
        x: column of the query point.
        label: class of the query point.
        features: 'backbone' or 'fused'.
        same, family, other, tells_family, tells_other: fields of `Separation`.
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


Similarities = Callable[
    [UInt8[np.ndarray, 'h w 3'], Sequence[Pixel]],
    tuple[Float32[np.ndarray, 'features queries rows columns'], UInt8[np.ndarray, 'h w']],
]


def make_similarities(loaded: LoadedRun) -> Similarities:
    """Builds the function (image, query points) -> (similarities, prediction) of a model.

    Similarities are the `cosine` of the features at every position of the feature map to those at
    the query points, in the order of `FEATURES`; the prediction has train ids.
    """

    def compute(network: Segmenter, image: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        h, w, _ = image.shape
        images = image[None]
        *_, backbone = network.backbone(
            network.normalization(images).astype(network.dtype), train=False, key=None
        )
        fused = network.context(backbone, train=False)
        logits = network.classifier(fused).astype(jnp.float32)
        maps = jnp.stack([cosine(features[0], at) for features in (backbone, fused)])
        prediction = network.upsample(logits, (h, w)).argmax(-1)
        return maps, prediction[0].astype(jnp.uint8)

    network = loaded.model.network

    def similarities(
        image: np.ndarray, query_points: Sequence[Pixel]
    ) -> tuple[np.ndarray, np.ndarray]:
        at = nearest_positions(
            np.asarray(query_points), network.stride, image.shape[:2], network.first
        )
        return loaded.model.run(compute, image, at)

    return similarities


def cosine(
    features: Float[Array, 'rows columns channels'], at: Int[Array, 'queries 2']
) -> Float32[Array, 'queries rows columns']:
    """Computes the cosine similarity of features to those at some positions.

    Args:
        features: feature map.
        at: row and column of each position.
    """
    x = features.astype(jnp.float32)
    # A feature that is zero everywhere is similar to none.
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return jnp.einsum('hwc,mc->mhw', x, x[at[:, 0], at[:, 1]], precision='highest')


def measure(
    similarity: Float[np.ndarray, 'rows columns'],
    label: UInt8[np.ndarray, 'rows columns'],
    at: Pixel,
    members: Sequence[int],
) -> Separation:
    """Measures how well similarity to a query separates its class from the others.

    Args:
        similarity: similarity of each position to the query.
        label: train id at each position.
        at: position of the query.
        members: train ids of the query's family, its own class included.
    """
    own = label[at]
    same = label == own
    same[at] = False
    near = np.isin(label, members) & (label != own)
    far = (label != own) & ~near & (label != IGNORE)
    groups = [similarity[where] for where in (same, near, far)]
    means = [float(group.mean()) if group.size else float('nan') for group in groups]
    return Separation(
        same=means[0],
        family=means[1],
        other=means[2],
        tells_family=roc_area(groups[0], groups[1]),
        tells_other=roc_area(groups[0], groups[2]),
    )


def roc_area(positive: Float[np.ndarray, ' m'], negative: Float[np.ndarray, ' n']) -> float:
    """Computes the area under the ROC curve, NaN without values of either kind.

    It is the probability that a value of `positive` exceeds one of `negative`; ties count half.
    """
    if not (positive.size and negative.size):
        return float('nan')
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, 'left')
    at_most = np.searchsorted(ordered, positive, 'right')
    return float((below + at_most).mean() / (2 * negative.size))


def compare(
    selected: Sequence[SelectedRun],
    checkpoint: str,
    images: Sequence[QueryImage],
    groups: Sequence[ConfusableGroup],
    out: pathlib.Path,
) -> list[Row]:
    """Measures and draws every query point for every model; one model is in memory at a time.

    Args:
        selected: runs to compare.
        checkpoint: 'best', 'latest' or a step number.
        images: images with query points.
        groups: confusable classes.
        out: folder of the pictures.
    """
    rows: list[Row] = []
    pages: dict[tuple[str, Pixel], list[list[Cell | None]]] = {}
    for run, loaded in runs.load_each(selected, checkpoint):
        similarities = make_similarities(loaded)
        for each in images:
            maps, prediction = similarities(each.image, each.queries)
            painted = pictures.colorize(prediction, loaded.dataset)
            for i, query in enumerate(each.queries):
                found = _measure_query(run.title, loaded, each, query, maps[:, i], groups)
                page = pages.setdefault((each.name, query), _first_row(loaded, each, query))
                cells = [
                    _cell(row, each, query, similarity, loaded.model.network)
                    for row, similarity in zip(found, maps[:, i])
                ]
                page.append([Cell(run.title, painted, marker=query), *cells])
                rows += found
    for (name, (y, x)), page in pages.items():
        path = out / f'similarity_{name.replace("/", "_")}_{y}_{x}.png'
        pictures.draw_table(path, page)
        print(path)
    return rows


def _measure_query(
    title: str,
    loaded: LoadedRun,
    image: QueryImage,
    query: Pixel,
    maps: np.ndarray,
    groups: Sequence[ConfusableGroup],
) -> list[Row]:
    """Returns a row for each kind of features."""
    network = loaded.model.network
    label, at = queries.coarse_label(image.label, query, network.stride, network.first)
    own = image.label[query]
    members = [m for group in groups if own in group.members for m in group.members]
    y, x = query
    return [
        Row(
            title,
            image.name,
            y,
            x,
            loaded.dataset.classes[own],
            features,
            *measure(similarity, label, at, members),
        )
        for features, similarity in zip(FEATURES, maps)
    ]


def _first_row(loaded: LoadedRun, image: QueryImage, query: Pixel) -> list[list[Cell | None]]:
    title = f'{image.name}: {loaded.dataset.classes[image.label[query]]}'
    truth = pictures.colorize(image.label, loaded.dataset)
    return [
        [Cell(title, image.image, marker=query), Cell('ground truth', truth, marker=query), None]
    ]


def _cell(
    row: Row, image: QueryImage, query: Pixel, similarity: np.ndarray, network: Segmenter
) -> Cell:
    lowest = float(similarity.min())
    heat = ((similarity - lowest) / max(1 - lowest, 1e-6)).clip(0, 1)
    areas = (f'{area:.2f}' for area in (row.tells_family, row.tells_other) if area == area)
    title = f'{row.features} {lowest:.2f} to 1, ROC area {", ".join(areas)}'
    dimmed = pictures.dim(image.image)
    return Cell(title, dimmed, heat, network.stride, network.first, marker=query)


def markdown(rows: Sequence[Row]) -> str:
    """Formats the rows as a table, with the paper's claim."""
    columns = (
        'model', 'query', 'features', 'same class', 'family', 'others', 'ROC area: family', 'others'
    )  # fmt: skip
    lines = []
    for row in rows:
        query = f'{row.image} ({row.y}, {row.x}) {row.label}'
        values = (row.same, row.family, row.other, row.tells_family, row.tells_other)
        shown = ('' if np.isnan(value) else f'{value:.3f}' for value in values)
        lines.append((row.model, query, row.features, *shown))
    return (
        'Mean cosine similarity to the feature at the query point, and the area under the ROC\n'
        'curve of its class against the others of its family and against all others. The paper\n'
        "(Fig. 1) shows pictures without numbers: where classes look alike, a non-local network's\n"
        'backbone "outputs indistinguishable features", an area of 0.5 against the family.\n\n'
        + tables.markdown(columns, lines)
    )


def main(options: argparse.Namespace) -> None:
    """Compares the runs of the command line."""
    selected = runs.select(options.workdir)
    dataset = runs.common_dataset(selected)
    groups = confusable.groups_of(dataset.name, dataset.classes, options.family)
    images = queries.select(dataset, options.split, groups, options.image, options.query)
    rows = compare(selected, options.checkpoint, images, groups, options.out)
    tables.write_csv(options.out / 'similarity.csv', rows)
    tables.write_text(options.out / 'similarity.md', markdown(rows))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    runs.add_workdirs(parser)
    runs.add_checkpoint(parser)
    queries.add_arguments(parser)
    confusable.add_arguments(parser)
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
