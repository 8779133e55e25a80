"""Context Pruning for each kind of head (section 3.4): rules, their grammar, modules that obey."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from ggcf_jax.attention import KINDS, Graph
from ggcf_jax.models.contexts import PrunedContext

_Module = TypeVar('_Module', bound=nnx.Module)

_RULE = re.compile(
    r'(?P<kind>[A-Za-z_][\w.:]*?):(?:drop=(?P<drop>[0-9.]+)|keep=(?P<keep>[0-9]+))'
    r'(?P<random>:random(?:=(?P<seed>[0-9]+))?)?'
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which neighbours of a query the heads of one kind keep; see `attention.attend`.

    Attributes:
        kind: kind of the heads' graphs as written in a list of heads: 'local',
            'package.module:Class'; 'union' and 'intersection' where graphs are combined.
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
        if self.kind not in KINDS and '.' not in self.kind:
            raise ValueError(f'{self.kind!r} is not one of {", ".join(KINDS)}')
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


def options(rule: Rule | None, head: int) -> dict[str, Any]:
    """The named arguments of `attend` and `attention_weights` by which a head follows its rule.

    Args:
        rule: rule of the head; None keeps all neighbours.
        head: number of the head.
    """
    if rule is None:
        return {}
    return {
        'keep': rule.keep,
        'drop_rate': rule.drop_rate,
        'pruning': rule.priority,
        'key': rule.key(head),
    }


def pruned(module: _Module, rules: Iterable[Rule]) -> _Module:
    """A module on the same arrays whose heads prune their contexts (inference only).

    Args:
        module: module that is or holds a `contexts.PrunedContext`, such as a `Segmenter`.
        rules: at most one rule per kind of head; () changes nothing.

    Raises:
        ValueError: a rule for a kind that no head has, or no heads that can be pruned.
    """
    rules = tuple(rules)
    if not rules:
        return module
    module = nnx.merge(*nnx.split(module))
    found = [node for _, node in nnx.iter_graph(module) if isinstance(node, PrunedContext)]
    if not found:
        raise ValueError(f'pruning {",".join(map(str, rules))!r}: the model has no heads to prune')
    for context in found:
        context.pruning = assign(rules, context.heads)
    return module
