"""Maps with the axes of heads and channels merged, in which the engine's loops carry them.

XLA gives an axis of length one, that of a single head, an odd place in the layout of an array that
has just been reshaped, and copies the whole map before a loop to move it. A merged map has none.
"""


def merge(x):
    """[b, h, w, heads, c] -> [b, h, w, heads * c]."""
    return x.reshape(*x.shape[:3], -1)


def divide(x, heads):
    """[..., heads * c] -> [..., heads, c]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
