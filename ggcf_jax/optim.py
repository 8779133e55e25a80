"""The optimiser: SGD with momentum, weight decay and a polynomial learning-rate schedule."""

import optax


def schedule(train) -> optax.Schedule:
    """Poly policy of section 4.1: lr = learning_rate * (1 - step / steps) ** poly_power."""
    return optax.polynomial_schedule(train.learning_rate, 0.0, train.poly_power, train.steps)


def optimizer(train) -> optax.GradientTransformation:
    """SGD from `config.train` in PyTorch's form: decay joins the gradient before the momentum.

    The decay covers every parameter, as in OCNet and openseg; the paper does not say.
    """
    return optax.chain(
        optax.add_decayed_weights(train.weight_decay),
        optax.sgd(schedule(train), momentum=train.momentum),
    )
