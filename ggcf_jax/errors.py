"""The one exception for problems that the user can fix."""


class InputError(ValueError):
    """A configuration, data set, workdir or command line that cannot be used as given.

    The message names the value and the cure. `main.py` prints it alone, without a traceback; any
    other exception is a bug in ggcf_jax and keeps its traceback.
    """
