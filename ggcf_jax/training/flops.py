"""FLOPs of the matrix products and convolutions that a JAX function executes."""

import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from ggcf_jax import models


def of_training(
    graphdef: nnx.GraphDef, params: nnx.State, stats: nnx.State, size: tuple[int, int]
) -> int:
    """Counts the model FLOPs of a training step for one image: three times the forward pass.

    The backward pass takes twice the forward pass. What rematerialisation computes again is not
    counted, so that the share of the peak compares runs (Chowdhery et al., PaLM, 2022, appendix B).

    Args:
        graphdef: structure of the network.
        params: parameters, or their shapes.
        stats: batch statistics, or their shapes.
        size: (height, width) of the image, in pixels.
    """

    def forward(params: nnx.State, stats: nnx.State, images: jax.Array) -> object:
        model = models.merge(graphdef, params, stats)
        return model(images, train=True, key=jax.random.key(0))

    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    return 3 * count(jax.jit(forward).trace(params, stats, images).jaxpr)


def count(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Counts the FLOPs of a traced function (`jax.jit(f).trace(...).jaxpr`), 2 per multiply-add.

    A loop's body counts once for each iteration. Recomputation by rematerialisation, masked
    attention scores, and products with the zeros that a convolution pads or dilates its input with
    count as well; elementwise operations do not.

    Raises:
        ValueError: a product inside a loop of unknown length.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        shape = _array(equation.invars[0]).shape
        return 2 * _array(equation.outvars[0]).size * math.prod(shape[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel, numbers = _array(equation.invars[1]), params['dimension_numbers']
        window = kernel.size // kernel.shape[numbers.rhs_spec[0]]  # one output channel's
        return 2 * _array(equation.outvars[0]).size * window // math.prod(params['lhs_dilation'])
    inner = [count(jaxpr) for jaxpr in _jaxprs(params.values())]
    if name == 'cond':
        return max(inner)
    if name == 'while' and any(inner):
        raise ValueError('a product inside a loop of unknown length cannot be counted')
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _array(variable: Var | Literal) -> jax.core.ShapedArray:
    assert isinstance(variable.aval, jax.core.ShapedArray)
    return variable.aval


def _jaxprs(values: Iterable[object]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in values:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
