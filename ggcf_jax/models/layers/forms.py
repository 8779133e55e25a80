"""Whether an operation is computed in a form of its own, because the platform runs that faster."""

import jax

from ggcf_jax.attention import target


def for_cpu() -> bool:
    """Whether to compute in the forms that XLA:CPU runs fast.

    They are for maps that one device has whole: with the mesh axis `space`, whose devices share the
    rows of an image, XLA exchanges the borders of convolutions and windows, and would gather whole
    maps for products and slices.
    """
    rows = jax.sharding.get_abstract_mesh().shape.get('space', 1)
    return target.current() == 'cpu' and rows == 1
