"""FLOPs of the matrix products and convolutions that a JAX function executes."""

import math
from collections.abc import Iterable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var


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
