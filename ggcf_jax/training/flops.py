"""FLOPs of the matrix products and convolutions that a JAX function executes."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from ggcf_jax import models
from ggcf_jax.attention import target
from ggcf_jax.models.layers import forms


def of_training(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    stats: nnx.State,
    size: tuple[int, int],
    frozen: Any = None,
) -> int:
    """Counts the model FLOPs of a training step for one image.

    A product takes as many again for the gradient of each operand that depends on a parameter which
    is trained: three times the forward pass in most of a network, twice in its first
    convolution, once below the first layer that is trained. What rematerialisation computes again
    is not counted, so that the share of the peak compares runs (Chowdhery et al., PaLM, 2022,
    appendix B), nor does the number depend on the device: attention is counted as products, and
    convolutions as such.

    Args:
        graphdef: structure of the network.
        params: parameters, or their shapes.
        stats: batch statistics, or their shapes.
        size: (height, width) of the image, in pixels.
        frozen: a boolean for each parameter, whether it is not trained; None where all are trained.
    """

    def forward(params: nnx.State, stats: nnx.State, images: jax.Array) -> object:
        model = models.merge(graphdef, params, stats)
        return model(images, train=True, key=jax.random.key(0))

    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    with target.tracing_for('cpu'), forms.keeping_convolutions():
        jaxpr = jax.make_jaxpr(forward)(params, stats, images).jaxpr
    if frozen is None:
        trained = [True] * len(jax.tree.leaves(params))
    else:
        trained = [not each for each in jax.tree.leaves(frozen)]
    return _walk(jaxpr, trained + [False] * (len(jaxpr.invars) - len(trained)))[0]


def count(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Counts the FLOPs of a traced function (`jax.jit(f).trace(...).jaxpr`), 2 per multiply-add.

    A loop's body counts once for each iteration. Recomputation by rematerialisation, masked
    attention scores, and products with the zeros that a convolution pads or dilates its input with
    count as well; elementwise operations do not.

    Raises:
        ValueError: a product inside a loop of unknown length.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return _walk(jaxpr, [False] * len(jaxpr.invars))[0]


def _walk(jaxpr: Jaxpr, trained: Sequence[bool]) -> tuple[int, list[bool]]:
    """Counts products and their gradients.

    Args:
        jaxpr: function.
        trained: which of its inputs depend on a parameter that is trained: a product takes as many
            FLOPs again for the gradient of each operand that does.

    Returns:
        FLOPs, and which of the outputs do.
    """
    active = {variable for variable, yes in zip(jaxpr.invars, trained, strict=True) if yes}
    total = 0
    for equation in jaxpr.eqns:
        inputs = [isinstance(each, Var) and each in active for each in equation.invars]
        found, outputs = _of_equation(equation, inputs)
        total += found
        active.update(each for each, yes in zip(equation.outvars, outputs, strict=True) if yes)
    return total, [isinstance(each, Var) and each in active for each in jaxpr.outvars]


def _of_equation(equation: JaxprEqn, inputs: list[bool]) -> tuple[int, list[bool]]:
    name, params = equation.primitive.name, equation.params
    anywhere = [any(inputs)] * len(equation.outvars)
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        shape = _array(equation.invars[0]).shape
        each = 2 * _array(equation.outvars[0]).size * math.prod(shape[axis] for axis in contracted)
        return each * (1 + sum(inputs)), anywhere
    if name == 'conv_general_dilated':
        kernel, numbers = _array(equation.invars[1]), params['dimension_numbers']
        window = kernel.size // kernel.shape[numbers.rhs_spec[0]]  # one output channel's
        each = 2 * _array(equation.outvars[0]).size * window // math.prod(params['lhs_dilation'])
        return each * (1 + sum(inputs)), anywhere
    inner = [
        _walk_inside(jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr, equation, inputs)
        for jaxpr in _jaxprs(params.values())
    ]
    counts = [found for found, _ in inner]
    if name == 'cond':
        return max(counts), anywhere
    if name == 'while' and any(counts):
        raise ValueError('a product inside a loop of unknown length cannot be counted')
    total = sum(counts) * (params['length'] if name == 'scan' else 1)
    if len(inner) == 1 and len(inner[0][1]) == len(equation.outvars):
        return total, inner[0][1]
    return total, anywhere


def _walk_inside(
    jaxpr: Jaxpr, equation: JaxprEqn, inputs: Sequence[bool]
) -> tuple[int, list[bool]]:
    """A function that an equation calls, with the equation's inputs."""
    if len(jaxpr.invars) != len(inputs):  # such as a branch, which does not get the index
        inputs = [any(inputs)] * len(jaxpr.invars)
    if equation.primitive.name != 'scan':
        return _walk(jaxpr, inputs)
    # What is carried stands between the constants and what is read step by step, and among the
    # outputs before what is written step by step: the latter two have one axis more outside.
    read = _further_axis(equation.invars, jaxpr.invars)
    carried = len(equation.outvars) - _further_axis(equation.outvars, jaxpr.outvars)
    first = len(inputs) - read - carried
    inputs = list(inputs)
    while True:  # until no more of what is carried depends on parameters
        total, outputs = _walk(jaxpr, inputs)
        before = inputs[first : first + carried]
        after = [a or b for a, b in zip(before, outputs[:carried], strict=True)]
        if after == before:
            return total, outputs
        inputs[first : first + carried] = after


def _further_axis(outside: Sequence[Var | Literal], inside: Sequence[Var | Literal]) -> int:
    """How many of the variables of a loop have more axes than in its body."""
    pairs = zip(outside, inside, strict=True)
    return sum(_array(whole).ndim > _array(step).ndim for whole, step in pairs)


def _array(variable: Var | Literal) -> jax.core.ShapedArray:
    assert isinstance(variable.aval, jax.core.ShapedArray)
    return variable.aval


def _jaxprs(values: Iterable[object]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in values:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
