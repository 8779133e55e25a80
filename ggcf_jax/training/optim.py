"""The optimiser: SGD or LARS with momentum, weight decay and a polynomial learning rate."""

import jax
import optax

from ggcf_jax.errors import InputError

OPTIMIZERS = ('sgd', 'lars')
DECAYED = ('all', 'kernels')


def schedule(train) -> optax.Schedule:
    """Poly policy of section 4.1, from `config.train`, after an optional linear warm-up.

    lr = end + (learning_rate - end) * (1 - step / steps) ** poly_power, where steps are those after
    the warm-up, which rises from 0.
    """
    poly = optax.polynomial_schedule(
        train.learning_rate,
        train.end_learning_rate,
        train.poly_power,
        train.steps - train.warmup_steps,
    )
    if not train.warmup_steps:
        return poly
    warmup = optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)
    return optax.join_schedules([warmup, poly], [train.warmup_steps])


def optimizer(train) -> optax.GradientTransformation:
    """The optimiser of `config.train`.

    Gradients are clipped to the global norm `clip_norm` (0: not), then comes weight decay as in
    PyTorch, before the momentum, on what `decay` names; then SGD or LARS (You et al., 2017);
    updates of everything outside of the backbone are multiplied by `head_multiplier`.

    Raises:
        InputError: an unknown optimiser or decay.
    """
    if train.optimizer not in OPTIMIZERS:
        raise InputError(
            f'config.train.optimizer={train.optimizer!r} is not one of {", ".join(OPTIMIZERS)}'
        )
    if train.decay not in DECAYED:
        raise InputError(f'config.train.decay={train.decay!r} is not one of {", ".join(DECAYED)}')
    decayed = kernels if train.decay == 'kernels' else True
    parts = []
    if train.clip_norm:
        parts.append(optax.clip_by_global_norm(train.clip_norm))
    if train.optimizer == 'sgd':
        parts += [
            optax.add_decayed_weights(train.weight_decay, decayed),
            optax.sgd(schedule(train), momentum=train.momentum),
        ]
    else:
        # Norms and biases are left out of the layer-wise rate, as is usual.
        parts.append(
            optax.lars(
                schedule(train),
                weight_decay=train.weight_decay,
                weight_decay_mask=decayed,
                trust_ratio_mask=kernels,
                momentum=train.momentum,
            )
        )
    if train.head_multiplier != 1.0:
        parts.append(optax.masked(optax.scale(train.head_multiplier), outside_backbone))
    return optax.chain(*parts)


def kernels(params) -> object:
    """True for the kernels of convolutions, False for biases and the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == 'kernel', params)


def outside_backbone(params) -> object:
    """True for every parameter that is not the backbone's."""
    return jax.tree_util.tree_map_with_path(lambda path, _: 'backbone' not in _names(path), params)


def _names(path) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator='/').split('/')
