"""Context Pruning for each kind of head (section 3.4): the rules, and their grammar."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
from jaxtyping import PRNGKeyArray

from ggcf_jax.attention import GRAPHS, Graph

_RULE = re.compile(
    r'(?P<kind>[A-Za-z_][\w.:]*?):(?:drop=(?P<drop>[0-9.]+)|keep=(?P<keep>[0-9]+))'
    r'(?P<random>:random(?:=(?P<seed>[0-9]+))?)?'
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which neighbours of a query the heads of one kind keep; see `attention.attend`.

    Attributes:
        kind: kind of the heads' graphs as written in a list of heads: 'local',
            'package.module:Class'.
        keep: number of neighbours to keep per query, or None.
        drop_rate: instead, share of each query's own neighbours to drop, or None.
        priority: 'top' keeps the neighbours of largest affinity, 'random' random ones.
        seed: seed of the random choice; every head draws its own.

    Raises:
        ValueError: values that no head can have.
    """

    kind: str
    keep: int | None = None
    drop_rate: float | None = None
    priority: Literal['top', 'random'] = 'top'
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in GRAPHS and '.' not in self.kind:
            raise ValueError(f'{self.kind!r} is not one of {", ".join(GRAPHS)}')
        if (self.keep is None) == (self.drop_rate is None):
            raise ValueError(f'pruning of {self.kind} heads needs either keep or drop')
        if self.keep is not None and self.keep < 1:
            raise ValueError(f'{self.kind}:keep={self.keep} must be at least 1')
        if self.drop_rate is not None and not 0 <= self.drop_rate < 1:
            raise ValueError(f'{self.kind}:drop={self.drop_rate} must be in [0, 1)')

    def key(self, head: int) -> PRNGKeyArray | None:
        """The PRNG key of the `head`-th head, None where nothing is drawn."""
        if self.priority == 'top':
            return None
        return jax.random.fold_in(jax.random.key(self.seed), head)

    def __str__(self) -> str:
        amount = f'drop={self.drop_rate:g}' if self.keep is None else f'keep={self.keep}'
        seed = f'={self.seed}' if self.seed else ''
        return f'{self.kind}:{amount}' + (f':random{seed}' if self.priority == 'random' else '')


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of a text such as 'full:drop=0.5,local:keep=200', () for ''.

    Each rule is KIND:drop=RATE or KIND:keep=NUMBER, and with ':random' or ':random=SEED' behind it
    drops at random, which is the control of Fig. 4. Heads of a kind without a rule keep all.

    Raises:
        ValueError: a rule that is not of this form, a value out of range, or two rules of a kind.
    """
    rules: list[Rule] = []
    for part in (part.strip() for part in text.split(',')) if text.strip() else ():
        match = _RULE.fullmatch(part)
        try:
            if match is None:
                raise ValueError('it is not of this form')
            drop, keep = match['drop'], match['keep']
            rule = Rule(
                match['kind'],
                keep=None if keep is None else int(keep),
                drop_rate=None if drop is None else float(drop),
                priority='random' if match['random'] else 'top',
                seed=int(match['seed'] or 0),
            )
        except ValueError as error:
            raise ValueError(
                f'pruning is written like full:drop=0.5,local:keep=200,grid:drop=0.3:random; '
                f'{part!r}: {error}'
            ) from error
        if rule.kind in (other.kind for other in rules):
            raise ValueError(f'{text!r} has two rules for {rule.kind} heads')
        rules.append(rule)
    return tuple(rules)


def assign(rules: Iterable[Rule], heads: Sequence[Graph]) -> tuple[Rule | None, ...]:
    """The rule of each head, None for those that keep all their neighbours.

    Args:
        rules: at most one per kind.
        heads: graphs of the heads.

    Raises:
        ValueError: a rule for a kind that none of the heads has.
    """
    kinds = [head.kind() for head in heads]
    by_kind = {rule.kind: rule for rule in rules}
    for kind, rule in by_kind.items():
        if kind not in kinds:
            raise ValueError(
                f'pruning rule {str(rule)!r}: the model has no {kind} head, its heads '
                f'are {", ".join(map(str, heads))}'
            )
    return tuple(by_kind.get(kind) for kind in kinds)
