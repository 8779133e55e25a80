"""Conversion of a function to ONNX, and the check of the file in onnxruntime.

`jax2onnx` converts. It replaces functions of Flax and jax.numpy while it traces, and its
replacements of `nnx.BatchNorm` and `nnx.max_pool` do not compute what our layers do. So the
function is traced before, by JAX alone, and what is converted are the primitives of that trace.
The number of images is a symbolic dimension of it, unless it is fixed.

Files use opset 17 and only operators that TensorRT (github.com/onnx/onnx-tensorrt,
docs/operators.md at 96e7811) and OpenVINO (github.com/openvinotoolkit/openvino,
src/frontends/onnx/docs/supported_ops.md) document.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jax.extend import core as jax_core
from jaxtyping import Float, Int, UInt8

from ggcf_jax.errors import InputError

OPSET = 17
CONVERTER = 'jax2onnx>=0.17.1,<0.18'
OUTPUTS = ('labels', 'probabilities')

# In both lists, of what the graphs, context modules and backbones of this package use, and
# neighbours of it; with the types of their first array that TensorRT 10.0 documents (of `Where` the
# second; `Cast` also from uint8, the type of the images).
OPERATORS = {
    name: frozenset(types.split())
    for types, names in {
        'float32': (
            'Ceil Clip Conv CumSum Einsum Erf Exp Floor Gemm LeakyRelu Log MatMul MaxPool Pow '
            'Round Sigmoid Softmax Sqrt Tanh'
        ),
        'float32 int32 int64': (
            'Abs Add ArgMax Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min '
            'Mod Mul Neg Pad Range ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum '
            'ReduceSumSquare Relu ScatterND Sign Sub Sum TopK'
        ),
        'float32 int32 int64 bool': (
            'Cast Concat Constant ConstantOfShape Expand Gather GatherND Identity If Loop '
            'Reshape Shape Slice Split Squeeze Tile Transpose Unsqueeze Where'
        ),
        'bool': ('And Not Or Xor'),
    }.items()
    for name in names.split()
}

# A pixel may have either of two classes, since float32 adds up to other sums in another order, if
# their probabilities differ by less than this, ...
TIE = 1e-3
# ... or their logits by less than this part of the largest logit. Of a WideResNet-38 whose largest
# logit was 10,454, those of XLA were 0.012 away from those of float64 (1.1e-6 of it), those of
# onnxruntime 0.008, and the two 0.014 from each other; of a ResNet-50 it was 15,232, 0.017, 0.010
# and 0.018. Two logits may be off in opposite directions.
ROUNDING = 64 * float(np.finfo(np.float32).eps)  # 7.6e-6
# ... and if images are rescaled, by less than this: a sample that lies in the middle between two of
# 8 bits becomes either, and with it what the network sees.
RESCALED_TIE = 1e-2

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
            f"--format=onnx needs jax2onnx and onnxruntime ({error}): pip install 'ggcf_jax[onnx]' "
            f"and then pip install --no-deps '{CONVERTER}'"
        ) from error


def convert(
    run: Run, size: tuple[int, int], metadata: Mapping[str, str], *, batch: int | None = None
) -> bytes:
    """Converts a function of images, with all the weights that it holds.

    Args:
        run: function uint8 [b, h, w, 3] -> labels [b, h, w], probabilities [b, h, w, classes].
        size: (height, width) of the images.
        metadata: texts that the file tells of itself.
        batch: number of images that the file takes at once; None for any.

    Returns:
        Content of the file.

    Raises:
        InputError: an operator that TensorRT or OpenVINO do not document.
    """
    import jax2onnx

    number = jax_export.symbolic_shape('b')[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((number, *size, 3), np.uint8)
    primitives = jax_core.jaxpr_as_fun(jax.make_jaxpr(run)(images))
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # shapes that onnx_ir does not write, once a node
    try:
        with _mended():
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
    _replace(model, 'Equal', ['bool'], _without_equal)
    _replace(model, 'Div', ['int32', 'int64'], _without_signs)
    unknown = sorted({node.op_type for node, _ in nodes(model.graph)} - set(OPERATORS))
    if unknown:
        raise InputError(
            f'--format=onnx: the network needs the operators {", ".join(unknown)}, which TensorRT '
            'or OpenVINO do not document; choose other heads or another context module, or '
            '--format=programs'
        )
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


@contextlib.contextmanager
def _mended() -> Iterator[None]:
    """Mends functions of jax2onnx 0.17.1 and onnx_ir 1.1.0 meanwhile.

    - jax2onnx hands symbolic dimensions of JAX over as they are (`plugins/jax/lax/pad.py`), and
      onnx_ir takes everything with an `__int__`, which theirs refuses, for a number.
    - After each equation jax2onnx looks for its results among all nodes so far, and its optimiser
      looks among all nodes for those that read a value: most of the time of a conversion. A value
      that knows its node also knows who reads it, and nothing need be looked for.
    """
    from jax2onnx.converter import ir_optimizations, output_binding
    from onnx_ir import _core as core

    convert = core._maybe_convert_to_symbolic_dim
    connected = output_binding._value_is_graph_connected
    readers = ir_optimizations._consumer_nodes

    def by_name(dim: Any) -> Any:
        return core.SymbolicDim(str(dim)) if jax_export.is_symbolic_dim(dim) else convert(dim)

    def by_node(context: Any, value: Any) -> bool:
        node = value.producer()
        known = node is not None and node.graph is context.builder.graph
        return known or connected(context, value)

    def by_value(nodes: Sequence[Any], value: Any) -> list[Any]:
        node = value.producer() if isinstance(value, core.Value) else None
        if node is None or node.graph is None or node.graph is not nodes[0].graph:
            return readers(nodes, value)
        return [reader for reader in value.consumers() if reader.graph is node.graph]

    core._maybe_convert_to_symbolic_dim = by_name
    output_binding._value_is_graph_connected = by_node
    ir_optimizations._consumer_nodes = by_value
    try:
        yield
    finally:
        core._maybe_convert_to_symbolic_dim = convert
        output_binding._value_is_graph_connected = connected
        ir_optimizations._consumer_nodes = readers


def nodes(
    graph: Any, types: Mapping[str, str] | None = None
) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """Yields the nodes of a graph and of the bodies of its loops, with the types of arrays there.

    Args:
        graph: `onnx.GraphProto`, after `onnx.shape_inference` where the types matter.
        types: those of the arrays around the graph.

    Yields:
        A node, and name of an array -> name of its type, 'float32'.
    """
    from onnx import helper

    known = dict(types or {})
    for value in (*graph.input, *graph.value_info, *graph.output):
        if kind := value.type.tensor_type.elem_type:
            known[value.name] = helper.tensor_dtype_to_np_dtype(kind).name
    for tensor in graph.initializer:
        known[tensor.name] = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    for node in graph.node:
        yield node, known
        for attribute in node.attribute:
            if attribute.HasField('g'):
                yield from nodes(attribute.g, known)


def _replace(
    model: Any, operator: str, types: Sequence[str], become: Callable[[Any], list[Any]]
) -> None:
    """Replaces nodes, those in the bodies of loops, too.

    Args:
        model: `onnx.ModelProto`, changed in place.
        operator: type of the nodes.
        types: types of their first array.
        become: function of a node to those that compute its output.
    """
    import onnx

    kinds = {
        node.output[0]: known.get(node.input[0])
        for node, known in nodes(onnx.shape_inference.infer_shapes(model).graph)
        if node.op_type == operator
    }

    def replace(graph: Any) -> None:
        for index in range(len(graph.node) - 1, -1, -1):
            node = graph.node[index]
            for attribute in node.attribute:
                if attribute.HasField('g'):
                    replace(attribute.g)
            if node.op_type == operator and kinds.get(node.output[0]) in types:
                others = become(node)
                del graph.node[index]
                for other in reversed(others):
                    graph.node.insert(index, other)

    replace(model.graph)


def _without_equal(node: Any) -> list[Any]:
    """`Equal` of booleans, which TensorRT does not document, as the negation of `Xor`."""
    from onnx import helper

    (name,) = node.output
    return [
        helper.make_node('Xor', node.input, [f'{name}_differ']),
        helper.make_node('Not', [f'{name}_differ'], [name]),
    ]


def _without_signs(node: Any) -> list[Any]:
    """`Div` of integers as that of their absolute values, with the sign put back.

    ONNX rounds quotients towards zero. OpenVINO rounds those of constants down, since
    src/frontends/onnx/frontend/src/op/div.cpp at 1b6ebf8 leaves `m_pythondiv` of `Divide` true; the
    others its CPU rounds towards zero (github.com/openvinotoolkit/openvino/issues/38248).
    """
    from onnx import helper

    (name,) = node.output
    sizes = [f'{name}_dividend', f'{name}_divisor']
    signs = [f'{size}_sign' for size in sizes]
    return [
        *(helper.make_node('Abs', [x], [size]) for x, size in zip(node.input, sizes)),
        *(helper.make_node('Sign', [x], [sign]) for x, sign in zip(node.input, signs)),
        helper.make_node('Div', sizes, [f'{name}_size']),
        helper.make_node('Mul', signs, [f'{name}_sign']),
        helper.make_node('Mul', [f'{name}_size', f'{name}_sign'], [name]),
    ]


def load(content: bytes) -> Callable[[UInt8[np.ndarray, 'b h w 3']], list[np.ndarray]]:
    """Loads a file into onnxruntime, on the CPU.

    Args:
        content: content of the file.

    Returns:
        Function of RGB images to their labels and probabilities.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # initialisers of loops that are not used
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(list(OUTPUTS), {'images': images})


def check(
    content: bytes,
    images: UInt8[np.ndarray, 'n h w 3'],
    labels: Int[np.ndarray, 'n h w'],
    probabilities: Float[np.ndarray, 'n h w classes'],
    batches: Sequence[int],
    largest_logit: float,
    rescaled: bool = False,
) -> int:
    """Compares what onnxruntime computes with what the network does.

    Args:
        content: content of the file.
        images: RGB images.
        labels: the network's labels of them.
        probabilities: the network's probabilities.
        batches: how many images the file is given at once, one call after the other; their sum is
            the number of images.
        largest_logit: largest absolute value of the network's logits.
        rescaled: whether the network sees rescaled images.

    Returns:
        Number of pixels of another label, all of them ties.

    Raises:
        InputError: a label differs by more than a tie.
    """
    run = load(content)
    parts = np.split(images, np.cumsum(batches)[:-1])
    found = np.concatenate([run(part)[0] for part in parts])
    differ = found != labels
    theirs = np.take_along_axis(probabilities, found[..., None].astype(np.int64), -1)[..., 0]
    most = probabilities.max(-1)
    gap = most - theirs
    # The difference of two logits is the logarithm of the quotient of their probabilities.
    odds = np.log(most) - np.log(np.maximum(theirs, np.finfo(np.float32).tiny))
    tie = RESCALED_TIE if rescaled else TIE
    wrong = int(((gap > tie) & (odds > ROUNDING * largest_logit)).sum())
    if wrong:
        raise InputError(
            f'--format=onnx: onnxruntime gives {wrong:,} of {labels.size:,} pixels another class '
            f'than the network, by up to {gap.max():.3f} in probability; nothing was written. '
            'Please report the configuration with the versions of jax2onnx and onnxruntime'
        )
    return int(differ.sum())
