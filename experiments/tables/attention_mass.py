"""How much attention falls on the query's class, on confusable classes and on all others.

    python -m experiments.tables.attention_mass --out=runs/families --workdir runs/table1/full \
        runs/table1/local_grid_8_16_24

Queries are random positions whose class is in a family of confusable classes (--family), up to
--queries of each class and image. For each query and head, attention is summed over the positions
of the query's class (itself included), of the other classes of its family, of all other classes and
of those without a label. Chance is the same for uniform attention over all neighbours that the
head's graph gives the query. Means are taken over the queries of a class, then over the classes of
a family, then over the seeds.

Writes <out>/attention_mass.csv, <out>/attention_mass.md and <out>/attention_mass.png. Sums are
cached in <out>/kept. Run it from the root of the repository.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from experiments.common import cache, cli, confusable, pictures, runs, tables
from experiments.common.confusable import ConfusableGroup
from experiments.common.runs import LoadedRun, SelectedRun
from experiments.common.tables import slug, spread
from ggcf_jax import attention, data
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.data import pipeline
from ggcf_jax.display.console import Progress
from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.resize import pixels_of_positions
from ggcf_jax.models.segmenter import Segmenter
from ggcf_jax.workdir.model import TrainedModel

CATEGORIES = ('same', 'family', 'other', 'unlabelled')
_AT_ONCE = 32  # queries whose attention is on the device at a time


@dataclasses.dataclass(frozen=True)
class Row:
    """One head of one run at the queries of one family.

    Attributes:
        model: name of the model.
        run: title of the run.
        head: number and graph of the head; 'all' is the mean over the heads.
        family: name of the group of confusable classes.
        queries: number of queries.
        same: share of the attention on the query's class; the four shares add up to one.
        family_share: share of the attention on the other classes of its family.
        other: share of the attention on all other classes.
        unlabelled: share of the attention on positions without a label.
        chance_same, chance_family, chance_other, chance_unlabelled: the same shares of uniform
            attention over all neighbours.
    """

    model: str
    run: str
    head: str
    family: str
    queries: int
    same: float
    family_share: float
    other: float
    unlabelled: float
    chance_same: float
    chance_family: float
    chance_other: float
    chance_unlabelled: float


def draw_queries(
    label: UInt8[np.ndarray, 'rows columns'],
    classes: Sequence[int],
    most: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, 'queries 2']:
    """Draws random positions of each class.

    Args:
        label: train id at each position.
        classes: train ids, in the order of the result.
        most: maximum number of positions of each class.
        rng: generator to draw from.
    """
    found = []
    for each in classes:
        places = np.argwhere(label == each)
        found.append(rng.permutation(places)[:most])
    return np.concatenate(found)


Masses = Callable[
    [UInt8[np.ndarray, 'h w 3'], UInt8[np.ndarray, 'rows columns'], Int[np.ndarray, 'queries 2']],
    tuple[Float32[np.ndarray, 'queries heads groups'], Float32[np.ndarray, 'queries heads groups']],
]


def make_masses(model: TrainedModel) -> Masses:
    """Builds the function (image, label, queries) -> (attention, chance) of a model.

    The label has the train id, or ignore, at each position. Both results are float32
    [queries, heads, classes + 1], sums over the positions of each class and, last, over those
    without a label: of the attention, and of the number of neighbours.
    """
    classes = len(model.classes)

    def compute(
        network: Segmenter, image: jax.Array, label: jax.Array, at: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weights = network.attention(image[None], at)[0]  # [queries, heads, rows, columns]
        h, w = label.shape
        masks = [attention.neighbor_mask(graph, at, h, w) for graph in network.heads]
        member = jax.nn.one_hot(jnp.minimum(label, classes), classes + 1)  # ignore is the last
        chance = jnp.stack(masks, axis=1).astype(jnp.float32)

        def sum_by_class(maps: jax.Array) -> jax.Array:
            return jnp.einsum('mkhw,hwc->mkc', maps, member, precision='highest')

        return sum_by_class(weights), sum_by_class(chance)

    def masses(
        image: np.ndarray, label: np.ndarray, queries: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        of_attention, of_chance = [], []
        for start in range(0, len(queries), _AT_ONCE):
            chunk = queries[start : start + _AT_ONCE]
            # Padded with the first query, so that all chunks run the same program.
            padded = np.concatenate([chunk, np.repeat(chunk[:1], _AT_ONCE - len(chunk), 0)])
            weights, chance = model.run(compute, image, label, padded)
            of_attention.append(weights[: len(chunk)])
            of_chance.append(chance[: len(chunk)])
        return np.concatenate(of_attention), np.concatenate(of_chance)

    return masses


def shares_by_category(
    masses: Float[np.ndarray, 'queries heads groups'],
    own: Int[np.ndarray, ' queries'],
    members: Sequence[int],
) -> Float[np.ndarray, 'queries heads 4']:
    """Computes the shares of the query's class, the rest of its family, others and no label.

    Args:
        masses: result of `make_masses`, the last group being the positions without a label.
        own: train id of each query.
        members: train ids of the family, `own` among them.

    Returns:
        Float64 shares in the order of `CATEGORIES`; they add up to one.
    """
    masses = masses.astype(np.float64)
    total, unlabelled = masses.sum(-1), masses[..., -1]
    same = np.take_along_axis(masses, own[:, None, None], axis=-1)[..., 0]
    inside = masses[..., list(members)].sum(-1)
    categories = [same, inside - same, total - inside - unlabelled, unlabelled]
    return np.stack(categories, axis=-1) / total[..., None]


def sum_shares(
    loaded: LoadedRun,
    split: str,
    groups: Sequence[ConfusableGroup],
    *,
    most_queries: int,
    images: int,
) -> dict[str, np.ndarray]:
    """Sums the shares of attention over the queries of the first images of a split.

    Args:
        loaded: model with heads, with its data set.
        split: split of its data set.
        groups: confusable classes.
        most_queries: maximum number of queries of each class and image.
        images: number of leading images to take.

    Returns:
        'attention' and 'chance': float64 [groups, classes, heads, 4], by class of the query;
        'count': int64 [groups, classes], the number of queries.
    """
    dataset, network = loaded.dataset, loaded.model.network
    shape = (len(groups), dataset.num_classes)
    heads = len(loaded.model.network.heads)
    sums = {name: np.zeros((*shape, heads, len(CATEGORIES))) for name in ('attention', 'chance')}
    sums['count'] = np.zeros(shape, np.int64)
    masses = make_masses(loaded.model)
    every = pipeline.evaluation_batches(
        dataset,
        split,
        multiple=loaded.model.config.eval.size_multiple,
        max_sizes=loaded.model.config.eval.max_sizes,
        batch_size=1,
    )
    wanted = np.flatnonzero(every.indices[:, 0] < images)
    selected = every.select(wanted)
    loader = data.loader_options(loaded.model.config.data)
    with (
        Progress(loaded.model.step) as progress,
        progress.evaluating(len(selected), split) as advance,
    ):
        for batch in selected.load(loader=loader):
            label = batch['label'][0]
            at = (pixels_of_positions(network.stride, n, network.first) for n in label.shape)
            label = label[np.ix_(*at)]
            for g, group in enumerate(groups):
                # The same queries for every model.
                rng = np.random.default_rng((int(batch['index'][0]), g))
                queries = draw_queries(label, group.members, most_queries, rng)
                if not len(queries):
                    continue
                own = label[tuple(queries.T)].astype(np.int64)
                both = masses(batch['image'][0], label, queries)
                for name, each in zip(('attention', 'chance'), both):
                    np.add.at(sums[name][g], own, shares_by_category(each, own, group.members))
                np.add.at(sums['count'][g], own, 1)
            advance(1)
    return sums


def rows_of(
    run: SelectedRun,
    heads: Sequence[Graph],
    sums: dict[str, np.ndarray],
    groups: Sequence[ConfusableGroup],
) -> list[Row]:
    """Returns the rows of one run; a group without queries has none.

    Args:
        run: run that the sums are of.
        heads: graphs of its heads.
        sums: result of `sum_shares`.
        groups: confusable classes.
    """
    rows = []
    names = [f'{k + 1} {graph}' for k, graph in enumerate(heads)]
    for g, group in enumerate(groups):
        count = sums['count'][g]
        seen = count > 0
        if not seen.any():
            continue
        # Mean over the queries of each class, then over the classes: [heads, 4].
        means = [
            (sums[name][g][seen] / count[seen, None, None]).mean(0)
            for name in ('attention', 'chance')
        ]
        both = np.concatenate(means, axis=-1)
        for name, values in zip((*names, 'all'), (*both, both.mean(0))):
            rows.append(
                Row(run.model, run.title, name, group.name, int(count.sum()), *values.tolist())
            )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Formats mean and deviation over the seeds, one line per model, family and head."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.family, row.head), []).append(row)
    lines = []
    for key, each in found.items():
        first = each[0]  # chance is equal for all seeds
        lines.append(
            (
                *key,
                spread([row.same for row in each]),
                spread([first.chance_same]),
                spread([row.family_share for row in each]),
                spread([first.chance_family]),
                spread([row.other for row in each]),
                spread([first.chance_other]),
            )
        )
    return (
        "Attention of queries on positions of their class, on the other classes of the query's "
        'family, and\non all others, in percent (the rest has no label); chance is the same for '
        'uniform attention over all neighbours.\nThe paper argues (section 1) that FULL mixes '
        'classes that look alike, and gives no numbers.\n\n'
        + tables.markdown(
            ('model', 'family', 'head', 'same', 'chance', 'in family', 'chance', 'other', 'chance'),
            lines,
        )
    )


def draw(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Draws attention over chance on the other classes of the family, the mean over heads.

    Args:
        path: PNG file to write; none is written where every chance is zero.
        rows: rows of all runs.
    """
    names = list(dict.fromkeys(row.family for row in rows))
    values: dict[str, list[list[float]]] = {}
    for row in rows:
        if row.head == 'all' and row.chance_family > 0:
            lists = values.setdefault(row.model, [[] for _ in names])
            lists[names.index(row.family)].append(row.family_share / row.chance_family)
    if values:
        pictures.draw_bars(path, names, values, 'attention on the family / chance')


def main(options: argparse.Namespace) -> None:
    """Measures the runs of the command line."""
    if options.queries < 1 or options.images < 1:
        raise InputError('--queries and --images must be at least 1')
    selected = runs.select(options.workdir)
    dataset = runs.common_dataset(selected)
    groups = confusable.groups_of(dataset.name, dataset.classes, options.family)
    dataset.source(options.split)
    dataset.check_labeled(options.split, 'inspected')
    rows: list[Row] = []
    for run, loaded in runs.load_each(selected, options.checkpoint):
        heads = loaded.model.network.heads
        if not heads:
            print(f'{run.title} has no heads and is left out')
            continue
        key = {
            **loaded.identity(options.split),
            'families': [group.name for group in groups],
            'queries': options.queries,
            'images': options.images,
        }

        def compute(run: SelectedRun = run, loaded: LoadedRun = loaded) -> dict[str, np.ndarray]:
            print(f'{run.title}:', flush=True)
            return sum_shares(
                loaded,
                options.split,
                groups,
                most_queries=options.queries,
                images=options.images,
            )

        path = options.out / 'kept' / f'attention_{slug(run.title)}.npz'
        rows += rows_of(run, heads, cache.load_or_compute(path, key, compute), groups)
    if not rows:
        raise InputError('--workdir: no model with heads, or no class of a family in the images')
    tables.write_csv(options.out / 'attention_mass.csv', rows)
    draw(options.out / 'attention_mass.png', rows)
    tables.write_text(options.out / 'attention_mass.md', markdown(rows))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    runs.add_workdirs(parser)
    runs.add_checkpoint(parser)
    parser.add_argument('--split', default='validation', help='split of the images [validation]')
    confusable.add_arguments(parser)
    parser.add_argument(
        '--queries', default=8, type=int, help='maximum number of queries of a class and image [8]'
    )
    parser.add_argument(
        '--images', default=100, type=int, help='number of leading images to take [100]'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
