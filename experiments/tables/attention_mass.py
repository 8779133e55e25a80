"""How much attention falls on pixels of the same class, of its family and on others.

    python -m experiments.tables.attention_mass --out=runs/families --workdir runs/table1/full \
        runs/table1/local_grid_8_16_24

Queries are random positions whose class is in a family (--family), up to --queries of each class
and image. For each query and head it sums the attention over the positions of the query's class
(itself included), of the other classes of its family, of all others and of those without a label.
Chance is the same with equal attention to all neighbours that the head's graph gives the query.
Means are over the queries of a class, then over the classes of a family, then over the seeds.

Writes <out>/attention_mass.csv, <out>/attention_mass.md and <out>/attention_mass.png. Sums are kept
in <out>/kept. Run it from the root of the repository.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cache, cli, confusable, pictures, tables
from experiments.common import runs as chosen
from experiments.common.confusable import Family
from experiments.common.trained import Trained
from experiments.tables.sweep_runs import slug
from experiments.tables.table1 import spread
from ggcf_jax import attention, data
from ggcf_jax.data import pipeline
from ggcf_jax.display.console import Progress
from ggcf_jax.errors import InputError
from ggcf_jax.models import merge

GROUPS = ('same', 'family', 'other', 'unlabelled')
_AT_ONCE = 32  # queries whose attention is on the device at a time


@dataclasses.dataclass(frozen=True)
class Row:
    """One head of one run at the queries of one family.

    Attributes:
        model: its name. run: title. head: number and graph; 'all' is the mean over the heads.
        family: name. queries: so many.
        same, family_share, other, unlabelled: shares of the attention on the query's class, on the
            others of its family, on all others and on positions without a label; one in sum.
        chance_same, ...: the same with equal attention to all neighbours.
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
    label: np.ndarray, classes: Sequence[int], most: int, rng: np.random.Generator
) -> np.ndarray:
    """Random positions of each class, at most `most` of each: integers [m, 2].

    Args:
        label: the class at each position, [h, w]. classes: in the order of the result.
    """
    found = []
    for each in classes:
        places = np.argwhere(label == each)
        found.append(rng.permutation(places)[:most])
    return np.concatenate(found)


def make_masses(
    trained: Trained,
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Builds the function (image [h, w, 3], label, queries [m, 2]) -> (attention, chance).

    Both are float32 [m, heads, C + 1], sums over the positions of each class and, last, over those
    without a label: of attention, and of the neighbours' number. Label is the class at
    each position, or ignore.
    """
    classes = trained.dataset.num_classes

    @jax.jit
    def masses(params, stats, images, label, at):
        model = merge(trained.graphdef, params, stats)
        weights = model.attention(images, at)[0]  # [m, heads, h, w]
        seen = [attention.neighbours(graph, at, *label.shape) for graph in model.heads]
        member = jax.nn.one_hot(jnp.minimum(label, classes), classes + 1)  # ignore is the last
        chance = jnp.stack(seen, axis=1).astype(jnp.float32)
        return tuple(
            jnp.einsum('mkhw,hwc->mkc', each, member, precision='highest')
            for each in (weights, chance)
        )

    def of_image(image, label, queries):
        found = []
        for start in range(0, len(queries), _AT_ONCE):
            chunk = queries[start : start + _AT_ONCE]
            # Filled up by the first query, so that there is one program.
            filled = np.concatenate([chunk, np.repeat(chunk[:1], _AT_ONCE - len(chunk), 0)])
            both = masses(trained.params, trained.stats, image[None], label, filled)
            found.append([np.asarray(each)[: len(chunk)] for each in both])
        return tuple(np.concatenate(each) for each in zip(*found))

    return of_image


def grouped(masses: np.ndarray, own: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """Shares of the query's class, the rest of its family, all others and what has no label.

    Args:
        masses: [m, heads, C + 1], as `make_masses` gives them. own: the class of each query, [m].
        members: classes of the family, `own` among them.

    Returns:
        float64 [m, heads, 4], in the order of `GROUPS`; one in sum.
    """
    masses = masses.astype(np.float64)
    total, unlabelled = masses.sum(-1), masses[..., -1]
    same = np.take_along_axis(masses, own[:, None, None], axis=-1)[..., 0]
    inside = masses[..., list(members)].sum(-1)
    groups = [same, inside - same, total - inside - unlabelled, unlabelled]
    return np.stack(groups, axis=-1) / total[..., None]


def sums(
    trained: Trained, split: str, known: Sequence[Family], most: int, images: int
) -> dict[str, np.ndarray]:
    """Sums over the queries of the first `images` images of `split`.

    Returns:
        attention, chance: float64 [families, C, heads, 4], by class of the query; count: int64
        [families, C], the number of queries.
    """
    dataset, stride = trained.dataset, trained.model.stride
    shape = (len(known), dataset.num_classes)
    heads = len(trained.model.heads)
    found = {name: np.zeros((*shape, heads, len(GROUPS))) for name in ('attention', 'chance')}
    found['count'] = np.zeros(shape, np.int64)
    of_image = make_masses(trained)
    every = pipeline.plan_evaluation(
        dataset,
        split,
        multiple=trained.config.eval.size_multiple,
        max_sizes=trained.config.eval.max_sizes,
        batch_size=1,
    )
    wanted = np.flatnonzero(every.indices[:, 0] < images)
    plan = pipeline.EvaluationPlan(tuple(every.sizes[i] for i in wanted), every.indices[wanted])
    reading = data.reading(trained.config.data)
    with Progress(trained.step) as progress, progress.evaluating(len(plan), split) as advance:
        for batch in pipeline.evaluation_batches(dataset, split, plan, reading=reading):
            label = batch['label'][0][::stride, ::stride]
            for f, family in enumerate(known):
                # The same queries for every model.
                rng = np.random.default_rng((int(batch['index'][0]), f))
                queries = draw_queries(label, family.members, most, rng)
                if not len(queries):
                    continue
                own = label[tuple(queries.T)].astype(np.int64)
                both = of_image(batch['image'][0], label, queries)
                for name, masses in zip(('attention', 'chance'), both):
                    np.add.at(found[name][f], own, grouped(masses, own, family.members))
                np.add.at(found['count'][f], own, 1)
            advance(1)
    return found


def rows_of(
    run: chosen.Chosen, heads: Sequence, found: dict[str, np.ndarray], known: Sequence[Family]
) -> list[Row]:
    """The rows of one run; a family without queries has none."""
    rows = []
    names = [f'{k + 1} {graph}' for k, graph in enumerate(heads)]
    for f, family in enumerate(known):
        count = found['count'][f]
        there = count > 0
        if not there.any():
            continue
        # Mean over the queries of each class, then over the classes: [heads, 4].
        means = [
            (found[name][f][there] / count[there, None, None]).mean(0)
            for name in ('attention', 'chance')
        ]
        both = np.concatenate(means, axis=-1)
        for name, values in zip((*names, 'all'), (*both, both.mean(0))):
            rows.append(
                Row(run.model, run.title, name, family.name, int(count.sum()), *values.tolist())
            )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Mean and deviation over the seeds, a line a model, family and head."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.family, row.head), []).append(row)
    fields = ('same', 'family_share', 'other')
    lines = []
    for key, each in found.items():
        line = list(key)
        for field in fields:
            chance = 'chance_' + field.removesuffix('_share')
            line.append(spread([getattr(row, field) for row in each]))
            line.append(spread([getattr(each[0], chance)]))  # equal for all seeds
        lines.append(line)
    return (
        'Attention of queries of a family on positions of their class, of the other classes of '
        'the family, and\non all others, in percent (the rest has no label); chance is what equal '
        'attention to all neighbours has.\nThe paper argues (section 1) that FULL mixes classes '
        'that look alike, and gives no numbers.\n\n'
        + tables.markdown(
            ('model', 'family', 'head', 'same', 'chance', 'in family', 'chance', 'other', 'chance'),
            lines,
        )
    )


def draw(path, rows: Sequence[Row]) -> None:
    """Attention over chance on the other classes of the family, mean over heads, as bars."""
    names = list(dict.fromkeys(row.family for row in rows))
    values: dict[str, list[list[float]]] = {}
    for row in rows:
        if row.head == 'all' and row.chance_family > 0:
            lists = values.setdefault(row.model, [[] for _ in names])
            lists[names.index(row.family)].append(row.family_share / row.chance_family)
    if values:
        pictures.bars(path, names, values, 'attention on the family / chance')


def main(options) -> None:
    if options.queries < 1 or options.images < 1:
        raise InputError('--queries and --images must be at least 1')
    runs = chosen.choose(options.workdir)
    dataset = chosen.common_dataset(runs)
    known = confusable.of(dataset.name, dataset.classes, options.family)
    dataset.source(options.split)
    dataset.check_labeled(options.split, 'inspected')
    rows: list[Row] = []
    for run, trained in chosen.load(runs, options.checkpoint):
        heads = trained.model.heads
        if not heads:
            print(f'{run.title} has no heads and is left out')
            continue
        key = {
            'workdir': str(run.workdir.resolve()),
            'step': trained.step,
            'split': options.split,
            'families': [family.name for family in known],
            'queries': options.queries,
            'images': options.images,
        }

        def compute(run=run, trained=trained):
            print(f'{run.title}:', flush=True)
            return sums(trained, options.split, known, options.queries, options.images)

        path = options.out / 'kept' / f'attention_{slug(run.title)}.npz'
        rows += rows_of(run, heads, cache.arrays(path, key, compute), known)
    if not rows:
        raise InputError('--workdir: no model with heads, or no class of a family in the images')
    tables.write_csv(options.out / 'attention_mass.csv', rows)
    draw(options.out / 'attention_mass.png', rows)
    tables.write_text(options.out / 'attention_mass.md', markdown(rows))


if __name__ == '__main__':
    parser = cli.parser(__doc__)
    chosen.add_workdirs(parser)
    chosen.add_checkpoint(parser)
    parser.add_argument('--split', default='validation')
    confusable.add_arguments(parser)
    parser.add_argument('--queries', default=8, type=int, help='of each class and image [8]')
    parser.add_argument('--images', default=100, type=int, help='the first so many [100]')
    cli.run(main, parser)
