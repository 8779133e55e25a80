"""Times the backbones on a CPU beside the same networks in torch, interleaved, and writes a table.

    taskset -c 0 python -m experiments.benchmark.backbones --out=runs/benchmark/backbones --layers

Ours and torch's (channels-last) have a process each and run in turn, about a second each a round,
in float32, on as many threads as the process may use cores; ours, as in `main.py`, on a device for
each core where these divide the images of a batch, or where that trains faster on one with all
cores (`JAX_NUM_CPU_DEVICES=1`: on one throughout), with batch norm over all of them. A training
step is forward and backward pass and SGD with momentum, ours with donated parameters; as in
`main.py` the next one is handed to the devices before it ends. Of a forward pass the result is
waited for. `--images=2` doubles the batches. The table has the smallest processor time of each,
their ratio, and the median over the rounds of the ratios of processor and of wall time: whatever
else the machine does meanwhile falls on both. Both have the allocator of `main.py` (`host_memory`).
On a busy machine trust the smallest times on one core (`taskset`).
`--layers` adds a table of every convolution of the networks, and for each how much longer or
shorter it takes than torch's in a training step, the longest first.
Run it from the root of the repository; needs the extra `parity`.
"""

from ggcf_jax.distributed import host_memory

if __name__ == '__main__':
    host_memory.choose_allocator()

import argparse
import collections
import dataclasses
import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmark import processes
from experiments.benchmark.interleaved import Call, Ratio, compare, compare_turns
from experiments.common import cli
from ggcf_jax import config as config_lib
from ggcf_jax.distributed import cpu_devices
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import stacking
from ggcf_jax.models.backbones import (
    convnext,
    dilation,
    dinov2,
    mit,
    mobilenet,
    resnet,
    swin,
    wide_resnet,
)
from ggcf_jax.models.layers.conv import conv
from ggcf_jax.models.layers.depthwise import Depthwise
from ggcf_jax.models.layers.patch import PatchConv
from tests.models.pretrained import (
    torch_convnext,
    torch_dinov2,
    torch_mit,
    torch_mobilenet,
    torch_resnet,
    torch_swin,
    torch_wide_resnet,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its input.

    Attributes:
        name: name of the backbone.
        width: `config.model.backbone.width`.
        batch: number of images.
        side: height and width of the images in pixels.
    """

    name: str
    width: int
    batch: int
    side: int

    def __str__(self) -> str:
        return f'{self.name} of width {self.width}, {self.batch} x {self.side}'


CASES = (
    Case('resnet10', 24, 4, 256),  # configs/street_scenes.py and configs/camvid.py
    Case('resnet10', 16, 4, 256),  # configs/street_scenes.py:small
    Case('resnet18', 64, 2, 129),
    Case('resnet34', 64, 2, 129),
    Case('resnet50', 64, 2, 129),
    Case('resnet50', 64, 1, 257),
    Case('resnet101', 64, 1, 129),
    Case('mobilenet_v2', 32, 2, 129),
    Case('wide_resnet38', 16, 1, 129),
    Case('convnext_tiny', 64, 1, 128),
    Case('swin_tiny', 64, 1, 128),
    Case('dinov2_small', 64, 1, 224),
    Case('dinov2_small', 64, 1, 518),
    Case('mit_b0', 64, 1, 256),
    Case('mit_b2', 64, 1, 256),
)
_RATE = 1e-6  # learning rate: the networks stay as they are, more or less
_STRIDES = {'dinov2': 14, 'mit': 32}  # of families that have one, by their first word
# Distance of the taps that lower the resolution where there is no dilation, and of those of blocks.
_DILATED = ((None, 1), (None, 1), (1, 2), (2, 4))
_DEPTHS = {
    'resnet10': (False, (1, 1, 1, 1)),
    'resnet34': (False, (3, 4, 6, 3)),
}


def _torch_network(case: Case) -> torch.nn.Module:
    """The network of the parity tests, with norms that train, at output stride 8."""
    if case.name == 'mobilenet_v2':
        dilations = [1] * 7 + [2] * 6 + [2] + [4] * 3
        channels = [
            mobilenet._divisible(case.width * number / 32)
            for row in mobilenet.STAGES
            for _, number, count in row
            for _ in range(count)
        ]
        return torch_mobilenet.MobileNetV2(case.width, channels, 8, dilations, grouped=True)
    if case.name == 'wide_resnet38':
        network = torch_wide_resnet.WideResNet38(case.width, (1, 1, 2, 1, 1, 1), (1, 1, 1, 2, 4, 4))
        return _with_training_norms(network)
    if case.name in convnext.ARCHITECTURES:
        architecture = convnext.ARCHITECTURES[case.name]
        return torch_convnext.ConvNeXt(
            architecture.channels * case.width // 64,
            architecture.depths,
            _DILATED,
            timm=False,
            norms=True,
        )
    if case.name in swin.ARCHITECTURES:
        each = swin.ARCHITECTURES[case.name]
        return torch_swin.Swin(
            each.channels * case.width // 64,
            each.heads,
            each.depths,
            _DILATED,
            timm=False,
            norms=True,
        )
    if case.name in dinov2.ARCHITECTURES:
        own = dinov2.ARCHITECTURES[case.name]
        return torch_dinov2.DINOv2(case.width * own.heads, own.heads, own.depth, own.grid)
    if case.name in mit.ARCHITECTURES:
        encoder = mit.ARCHITECTURES[case.name]
        return torch_mit.MiT(encoder.head_channels * case.width // 64, encoder.depths)
    torch_resnet.DEPTHS.update(_DEPTHS)
    plan = dilation.plan(torch_resnet.DEPTHS[case.name][1], stride=8)
    return torch_resnet.ResNet(
        case.name,
        case.width,
        ('numbered', case.width),
        [stage.stride for stage in plan],
        [[(s.first if j == 0 else d, d) for j, d in enumerate(s.dilations)] for s in plan],
        torch.relu,
    )


def _with_training_norms(network: torch.nn.Module) -> torch.nn.Module:
    """Replaces the tests' norms, which only evaluate, by those that torch users train with."""
    for name, child in network.named_children():
        if isinstance(child, torch_wide_resnet.AbsNorm):
            norm = torch.nn.BatchNorm2d(child.num_features)
            setattr(network, name, torch.nn.Sequential(norm, torch.nn.LeakyReLU(0.01)))
        else:
            _with_training_norms(child)
    return network


def _torch_calls(case: Case) -> dict[str, Call]:
    network: Any = _torch_network(case)
    network = network.to(memory_format=torch.channels_last)
    x = torch.tensor(_image(case)).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        network.eval()
        with torch.inference_mode():
            network(x)

    optimizer = torch.optim.SGD(network.parameters(), _RATE, momentum=0.9, fused=True)

    def both() -> None:
        network.train()
        optimizer.zero_grad()
        _, _, third, fourth = network(x)
        ((third**2).mean() + (fourth**2).mean()).backward()
        optimizer.step()

    return {'forward': forward, 'training': both}


def _jax_calls(case: Case) -> dict[str, Call]:
    model = config_lib.default().model
    stride = _STRIDES.get(case.name.split('_')[0], 8)
    model.backbone.update({'name': case.name, 'width': case.width, 'stride': stride})
    builders: dict[str, Any] = {
        **resnet.BACKBONES,
        **mobilenet.BACKBONES,
        **wide_resnet.BACKBONES,
        **convnext.BACKBONES,
        **swin.BACKBONES,
        **dinov2.BACKBONES,
        **mit.BACKBONES,
    }
    build = functools.partial(builders[case.name], model, remat='none', dtype=jnp.float32)
    network = build(rngs=nnx.Rngs(0))
    graphdef, *state = nnx.split(network, nnx.Param, nnx.BatchStat)
    key = jax.random.key(0)
    optimizer = optax.sgd(_RATE, momentum=0.9)

    def merged(params: Any, stats: Any) -> Any:
        return nnx.merge(graphdef, stacking.stack(params), stats, copy=True)

    @jax.jit
    def forward(params: Any, stats: Any, x: jax.Array) -> Any:
        return merged(params, stats)(x, train=False)

    @functools.partial(jax.jit, donate_argnums=0)
    def both(state: Any, x: jax.Array) -> Any:
        params, stats, moments = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            network = merged(params, stats)
            _, _, third, fourth = network(x, train=True, key=key)
            return (third**2).mean() + (fourth**2).mean(), nnx.state(network, nnx.BatchStat)

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), stats, moments

    image = _image(case)
    stacks = stacking.unstacked_for(mesh_lib.make_mesh(jax.devices()), network)
    arrays = stacking.unstack(state[0], stacks)
    of_training = cpu_devices.of_training(arrays, len(image) * case.side**2)

    def on_mesh(devices: Sequence[jax.Device]) -> tuple[jax.sharding.Mesh, Any, jax.Array]:
        """A mesh and copies on it: equal blocks as in `main.py` on CPUs, in their own arrays."""
        mesh = mesh_lib.make_mesh(devices[: math.gcd(len(devices), len(image))])
        params, stats = state
        params = stacking.unstack(params, stacking.unstacked_for(mesh, network))
        everything = params, stats, optimizer.init(params)
        everywhere = NamedSharding(mesh, PartitionSpec())
        copies = jax.device_put(everything, everywhere, may_alias=False)  # they are donated
        return mesh, copies, jax.device_put(image, NamedSharding(mesh, PartitionSpec('data')))

    mesh, (*network_state, _), x = on_mesh(jax.devices())
    training_mesh, trained, training_x = on_mesh(of_training)

    def call_forward() -> Any:
        with jax.set_mesh(mesh):
            return jax.block_until_ready(forward(*network_state, x))

    def call_both() -> Any:
        nonlocal trained
        with jax.set_mesh(training_mesh):
            trained = both(trained, training_x)
        return trained

    return {'forward': call_forward, 'training': call_both}


def _image(case: Case) -> np.ndarray:
    shape = (case.batch, case.side, case.side, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _on_all_cores(calls: Callable[[Case], dict[str, Call]], case: Case) -> dict[str, Call]:
    """The calls on a thread of torch for each core that may be used, or devices as in `main.py`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cpu_devices.one_a_core((case.batch,))
    return calls(case)


def network_rows(cases: list[Case], rounds: int) -> Iterator[str]:
    """Yields the lines of the table of networks, each as soon as it is measured.

    Args:
        cases: networks to time.
        rounds: number of rounds.
    """
    yield '| network | pass | ours ms | torch ms | ours / torch | median | wall |'
    yield '|---|---|--:|--:|--:|--:|--:|'
    for case in cases:
        with (
            processes.turns(_on_all_cores, _jax_calls, case) as ours,
            processes.turns(_on_all_cores, _torch_calls, case) as theirs,
        ):
            for name in ours:
                ratio = compare_turns(ours[name], theirs[name], rounds)
                a, b = ratio.least
                ratios = f'{a / b:.2f} | {ratio.processor:.2f} | {ratio.wall:.2f}'
                yield f'| {case} | {name} | {a:.0f} | {b:.0f} | {ratios} |'


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution and the map that it is applied to.

    Attributes:
        shape: batch, height, width and channels of the input.
        features: number of channels of the output.
        kernel: side of the kernel.
        stride: stride.
        dilation: dilation.
        depthwise: whether each channel is convolved by itself.
    """

    shape: tuple[int, int, int, int]
    features: int
    kernel: int
    stride: int
    dilation: int
    depthwise: bool

    @property
    def is_of_image(self) -> bool:
        """Whether it is of an image, which needs no gradient."""
        return self.shape[3] == 3

    @property
    def is_of_patches(self) -> bool:
        """Whether its windows lie beside each other, without zeros around the map."""
        return self.kernel == self.stride > 1

    def module(self) -> nnx.Conv | Depthwise | PatchConv:
        """Builds the layer."""
        if self.is_of_patches:
            sizes = (self.shape[3], self.features, self.kernel)
            return PatchConv(*sizes, dtype=jnp.float32, rngs=nnx.Rngs(0))
        options: dict[str, Any] = dict(stride=self.stride, dilation=self.dilation)
        options.update(dtype=jnp.float32, rngs=nnx.Rngs(0))
        if self.depthwise:
            return Depthwise(self.features, self.kernel, **options)
        return conv(self.shape[3], self.features, self.kernel, **options)

    def __str__(self) -> str:
        b, h, w, c = self.shape
        options = f', stride {self.stride}' * (self.stride > 1)
        options += f', dilation {self.dilation}' * (self.dilation > 1)
        channels = f'each of {c}' if self.depthwise else f'{c} to {self.features}'
        return f'{self.kernel}x{self.kernel}, {channels}{options}, {b} x {h} x {w}'


def layers(case: Case) -> collections.Counter[Layer]:
    """Counts the convolutions of a network.

    Args:
        case: network and its input.
    """
    found: collections.Counter[Layer] = collections.Counter()

    def note(module: torch.nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        b, c, h, w = inputs[0].shape
        found[
            Layer(
                (b, h, w, c),
                module.out_channels,
                module.kernel_size[0],
                module.stride[0],
                module.dilation[0],
                module.groups > 1,
            )
        ] += 1

    network = _torch_network(case).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.tensor(_image(case)).permute(0, 3, 1, 2))
    return found


def compare_layer(layer: Layer, rounds: int) -> dict[str, Ratio]:
    """Times a convolution and its two gradients, one of an image without that of the image.

    Args:
        layer: convolution to time.
        rounds: number of rounds.

    Returns:
        Comparison by pass: 'forward', 'input' and 'kernel' (gradients).
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=layer.shape).astype(np.float32)
    module = layer.module()
    graphdef, state = nnx.split(module)
    ours = lambda state, x: nnx.merge(graphdef, state, copy=True)(x)  # noqa: E731
    y = jax.eval_shape(ours, state, x)
    g = rng.normal(size=y.shape).astype(np.float32)
    programs = (
        jax.jit(lambda state, x, g: ours(state, x)),
        jax.jit(lambda state, x, g: jax.vjp(lambda x: ours(state, x), x)[1](g)),
        jax.jit(lambda state, x, g: jax.vjp(lambda state: ours(state, x), state)[1](g)),
    )
    arguments = (state, jnp.asarray(x), jnp.asarray(g))

    def last(array: np.ndarray, axes: tuple[int, ...]) -> torch.Tensor:
        array = array.transpose(axes)
        return torch.tensor(array).contiguous(memory_format=torch.channels_last)

    tx, tg = last(x, (0, 3, 1, 2)), last(g, (0, 3, 1, 2))
    tw = last(np.asarray(module.kernel[...]), (3, 2, 0, 1))
    padding = 0 if layer.is_of_patches else layer.dilation * (layer.kernel // 2)
    at = (layer.stride, padding, layer.dilation)
    s, p, d = ([number] * 2 for number in at)
    groups = layer.features if layer.depthwise else 1

    def backward(mask: list[bool]) -> Call:
        return lambda: torch.ops.aten.convolution_backward(
            tg, tx, tw, None, s, p, d, False, [0, 0], groups, mask
        )

    theirs = (
        lambda: torch.conv2d(tx, tw, None, s, p, d, groups),
        backward([True, False, False]),
        backward([False, True, False]),
    )

    def call_of(program: Callable[..., Any]) -> Call:
        return lambda: jax.block_until_ready(program(*arguments))

    return {
        name: compare(call_of(program), peer, rounds)
        for name, program, peer in zip(('forward', 'input', 'kernel'), programs, theirs)
        if name != 'input' or not layer.is_of_image
    }


def layer_rows(cases: list[Case], rounds: int) -> Iterator[str]:
    """Yields the lines of the table of layers: milliseconds of a call, ours / torch's.

    The last column is how many more milliseconds than torch's all layers of a row take in a
    training step.

    Args:
        cases: networks whose layers are timed.
        rounds: number of rounds.
    """
    passes = ('forward', 'input', 'kernel')
    yield '| network | convolution | number | forward | of the input | of the kernel | more |'
    yield '|---|---|--:|--:|--:|--:|--:|'
    for case in cases:
        rows = []
        for layer, count in layers(case).items():
            found = {name: each.least for name, each in compare_layer(layer, rounds).items()}
            more = count * sum(ours - theirs for ours, theirs in found.values())
            cells = ' | '.join(
                '{:.2f} / {:.2f}'.format(*found[name]) if name in found else '' for name in passes
            )
            rows.append((more, f'| {case.name} | {layer} | {count} | {cells} | {more:.1f} |'))
        yield from (row for _, row in sorted(rows, reverse=True))


def main(options: argparse.Namespace) -> None:
    """Measures what is asked for, prints it and writes it to table.md."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    options.out.mkdir(parents=True, exist_ok=True)
    cases = [
        dataclasses.replace(case, batch=options.images * case.batch)
        for case in CASES
        if re.search(options.cases, str(case))
    ]
    tables = [network_rows(cases, options.rounds)]
    if options.layers:
        tables.append(layer_rows(cases, options.rounds))
    with open(options.out / 'table.md', 'w') as file:
        for rows in tables:
            for line in itertools.chain(rows, ['']):
                print(line, flush=True)
                print(line, file=file, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument('--cases', default='', help='regular expression of the networks to time')
    parser.add_argument('--images', type=int, default=1, help='this many times the images')
    parser.add_argument('--rounds', type=int, default=15, help='number of rounds of each pass')
    parser.add_argument('--layers', action='store_true', help='time each convolution as well')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
