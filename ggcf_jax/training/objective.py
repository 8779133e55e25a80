"""What training minimises: a sum of losses of the main logits, and an auxiliary one."""

import dataclasses
import functools
import re

import jax
from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.errors import InputError
from ggcf_jax.training import losses
from ggcf_jax.training.losses import Loss, LossBuilder
from ggcf_jax.training.losses.cross_entropy import cross_entropy
from ggcf_jax.training.losses.pixels import AVERAGES, Average

_TERM = re.compile(r'(?:(?P<factor>[\d.eE-]+)\*)?(?P<name>[^*+]+)')


@dataclasses.dataclass(frozen=True)
class Objective:
    """loss(logits) + aux_weight * cross entropy(auxiliary logits).

    Attributes:
        loss: loss of the main logits.
        aux_weight: weight of the auxiliary loss, which is always cross entropy.
        class_weights: weight of each class in the auxiliary loss, () for equal ones.
        average: what the means of pixels are taken over.
    """

    loss: Loss
    aux_weight: float
    class_weights: tuple[float, ...] = ()
    average: Average = 'labelled'

    @property
    def aux_loss(self) -> Loss:
        """Loss of the auxiliary logits."""
        return functools.partial(
            cross_entropy, class_weights=self.class_weights, average=self.average
        )


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Objective:
    """Builds the objective of a configuration.

    Args:
        train: `config.train`; `loss` names the terms, `aux_weight` and `loss_average` are read, and
            what the losses themselves read.
        class_weights: weight of each class, or () for 1 each.

    Raises:
        InputError: an unknown loss or average, or terms that cannot be read.
    """
    registry.check(train.loss_average, AVERAGES, 'config.train.loss_average')
    terms = []
    for part in train.loss.split('+'):
        found = _TERM.fullmatch(part.strip())
        try:
            factor = float((found and found['factor']) or 1)
        except ValueError:
            found = None
        if found is None or not 0 < factor < 1e6:
            raise InputError(
                f'config.train.loss={train.loss!r}: write losses, with factors above 0 if need be, '
                "joined by +, such as 'cross_entropy+0.5*dice'"
            )
        make: LossBuilder = registry.find(losses, 'LOSSES', found['name'], 'config.train.loss')
        terms.append((factor, make(train, class_weights)))
    loss = terms[0][1] if terms[0][0] == 1 and len(terms) == 1 else _sum(terms)
    return Objective(loss, train.aux_weight, class_weights, train.loss_average)


def mean(
    total: Float32[Array, '*shape'], weight: Float32[Array, '*shape']
) -> Float32[Array, '*shape']:
    """total / weight; 0 where nothing counts."""
    return total / jax.numpy.where(weight > 0, weight, 1.0)


def _sum(terms: list[tuple[float, Loss]]) -> Loss:
    """The weighted sum of the means of several losses, with the normaliser of the first one."""

    def loss(
        logits: Float[Array, '*pixels classes'], labels: Integer[Array, '*pixels']
    ) -> tuple[Float32[Array, ''], Float32[Array, '']]:
        found = [(factor, *each(logits, labels)) for factor, each in terms]
        weight = found[0][2]
        return weight * sum(factor * mean(total, w) for factor, total, w in found), weight

    return loss
