"""What a file of ONNX computes: images -> labels and probabilities."""

import contextlib

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax import models
from ggcf_jax.attention import target
from ggcf_jax.evaluation import inference
from ggcf_jax.exporting.onnx_file import Run
from ggcf_jax.models.layers import forms


def of_plan(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    stats: nnx.State,
    plan: inference.Plan,
    *,
    converted: bool,
) -> Run:
    """Returns the function of images [b, h, w, 3] to labels and probabilities.

    Args:
        graphdef: structure of the network.
        params: its parameters.
        stats: its batch statistics.
        plan: how the class scores of an image are found.
        converted: whether it is for `onnx_file.convert`; otherwise it is the program of evaluations
            on a CPU, which the file is compared with.
    """

    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Loops over blocks of a stage are unrolled; convolutions are the other runtime's.
        stay = forms.keeping_convolutions() if converted else contextlib.nullcontext()
        if converted:
            images = images.astype(jnp.int32)  # TensorRT cuts, turns and joins no 8-bit arrays
        with target.tracing_for('cpu', kind=target.ONNX if converted else ''), stay:
            network = models.merge(graphdef, params, stats)
            scores = inference.scores(network, images, plan)
        return scores.argmax(-1).astype(jnp.int32), inference.probabilities(scores, plan)

    return run
