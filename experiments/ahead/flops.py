"""FLOPs of the matrix products and convolutions that a JAX function executes."""

import math
from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr


def count(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """FLOPs of a traced function (`jax.jit(f).trace(...).jaxpr`), 2 a multiply-add.

    Loops count as often as they run, recomputation for rematerialisation and masked attention
    scores count too, products with zeros that a convolution pads or dilates its input with count
    as the others do; everything elementwise is left out.

    Raises:
        ValueError: a product inside a loop of unknown length.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel, numbers = equation.invars[1].aval, params['dimension_numbers']
        window = kernel.size // kernel.shape[numbers.rhs_spec[0]]  # one output channel's
        return 2 * equation.outvars[0].aval.size * window // math.prod(params['lhs_dilation'])
    inner = [count(jaxpr) for jaxpr in _jaxprs(params.values())]
    if name == 'cond':
        return max(inner)
    if name == 'while' and any(inner):
        raise ValueError('a product inside a loop of unknown length cannot be counted')
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _jaxprs(values) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in values:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
