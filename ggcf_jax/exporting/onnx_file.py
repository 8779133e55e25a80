"""Conversion of a function to ONNX, and the check of the file in onnxruntime.

`jax2onnx` converts. It replaces functions of Flax and jax.numpy while it traces, and its
replacements of `nnx.BatchNorm` and `nnx.max_pool` do not compute what our layers do. So the
function is traced before, by JAX alone, and what is converted are the primitives of that trace.

Files use opset 17 and only operators that TensorRT (github.com/onnx/onnx-tensorrt,
docs/operators.md) and OpenVINO (github.com/openvinotoolkit/openvino,
src/frontends/onnx/docs/supported_ops.md) document.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core as jax_core
from jaxtyping import Float, Int, UInt8

from ggcf_jax.errors import InputError

OPSET = 17
OUTPUTS = ('labels', 'probabilities')

# In both lists, of what the graphs, context modules and backbones of this package use, and
# neighbours of it.
OPERATORS = frozenset(
    {
        'Abs', 'Add', 'And', 'ArgMax', 'Cast', 'Ceil', 'Clip', 'Concat', 'Constant',
        'ConstantOfShape', 'Conv', 'Div', 'Einsum', 'Equal', 'Exp', 'Expand', 'Floor', 'Gather',
        'GatherND', 'Gemm', 'Greater', 'GreaterOrEqual', 'Identity', 'If', 'LeakyRelu', 'Less',
        'LessOrEqual', 'Log', 'Loop', 'MatMul', 'Max', 'MaxPool', 'Mean', 'Min', 'Mul', 'Neg',
        'Not', 'Or', 'Pad', 'Pow', 'Range', 'ReduceMax', 'ReduceMean', 'ReduceMin', 'ReduceProd',
        'ReduceSum', 'Relu', 'Reshape', 'Round', 'ScatterND', 'Shape', 'Sigmoid', 'Sign', 'Slice',
        'Softmax', 'Split', 'Sqrt', 'Squeeze', 'Sub', 'Sum', 'Tanh', 'Tile', 'Transpose',
        'Unsqueeze', 'Where',
    }
)  # fmt: skip

# Pixels whose two most probable classes differ by less than this may have either: float32 sums in
# another order.
TIE = 1e-3

Run = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def needs() -> None:
    """Checks that the libraries are there, before anything is computed.

    Raises:
        InputError: one is not installed.
    """
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--format=onnx needs jax2onnx and onnxruntime ({error}): pip install 'ggcf_jax[onnx]'"
        ) from error


def convert(run: Run, shape: tuple[int, ...], metadata: Mapping[str, str]) -> bytes:
    """Converts a function of images, with all the weights that it holds.

    Args:
        run: function uint8 [b, h, w, 3] -> labels [b, h, w], probabilities [b, h, w, classes].
        shape: [b, h, w, 3] of the images, fixed.
        metadata: texts that the file tells of itself.

    Returns:
        Content of the file.

    Raises:
        InputError: an operator that TensorRT or OpenVINO do not document.
    """
    import jax2onnx

    images = jax.ShapeDtypeStruct(shape, np.uint8)
    primitives = jax_core.jaxpr_as_fun(jax.make_jaxpr(run)(images))
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # shapes that onnx_ir does not write, once a node
    try:
        model: Any = jax2onnx.to_onnx(
            lambda x: tuple(primitives(x)),
            [images],
            model_name='ggcf_jax',
            opset=OPSET,
            input_names=['images'],
            output_names=list(OUTPUTS),
        )
    finally:
        logging.disable(before)
    unknown = sorted(set(_operators(model.graph)) - OPERATORS)
    if unknown:
        raise InputError(
            f'--format=onnx: the network needs the operators {", ".join(unknown)}, which TensorRT '
            'or OpenVINO do not document; leave Context Pruning (config.eval.pruning) out, choose '
            'other heads or another context module, or --format=programs'
        )
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _operators(graph: Any) -> Iterator[str]:
    """The operators of a graph and of the bodies of its loops."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField('g'):
                yield from _operators(attribute.g)


def run_file(
    content: bytes, images: UInt8[np.ndarray, 'b h w 3']
) -> tuple[Int[np.ndarray, 'b h w'], Float[np.ndarray, 'b h w classes']]:
    """Runs a file on the CPU.

    Args:
        content: content of the file.
        images: RGB images of its shape.

    Returns:
        Labels and probabilities.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # initialisers of loops that are not used
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    labels, probabilities = session.run(list(OUTPUTS), {'images': images})
    return labels, probabilities


def check(
    content: bytes,
    images: UInt8[np.ndarray, 'n h w 3'],
    labels: Int[np.ndarray, 'n h w'],
    probabilities: Float[np.ndarray, 'n h w classes'],
    batch: int,
) -> int:
    """Compares what onnxruntime computes with what the network does.

    Args:
        content: content of the file.
        images: RGB images, a multiple of the batch of the file.
        labels: the network's labels of them.
        probabilities: the network's probabilities.
        batch: number of images that the file takes at once.

    Returns:
        Number of pixels of another label, all of them ties.

    Raises:
        InputError: a label differs by more than a tie.
    """
    parts = [run_file(content, images[i : i + batch]) for i in range(0, len(images), batch)]
    found = np.concatenate([part[0] for part in parts])
    differ = found != labels
    theirs = np.take_along_axis(probabilities, found[..., None].astype(np.int64), -1)[..., 0]
    gap = probabilities.max(-1) - theirs
    wrong = int((gap > TIE).sum())
    if wrong:
        raise InputError(
            f'--format=onnx: onnxruntime gives {wrong:,} of {labels.size:,} pixels another class '
            f'than the network, by up to {gap.max():.3f} in probability; nothing was written. '
            'Please report the configuration with the versions of jax2onnx and onnxruntime'
        )
    return int(differ.sum())
