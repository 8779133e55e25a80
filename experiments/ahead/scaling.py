"""Predicts step time, efficiency and memory on many accelerators from compiled programs.

    python -m experiments.ahead.scaling docs/memory.csv > runs/scaling.md

Reads what `experiments.ahead.compile` wrote for the training steps of one and of many devices and
prints Markdown. Nothing is measured: docs/scaling.md says what is assumed.
"""

import argparse
import dataclasses
import pathlib

from experiments.ahead.compile import read

GIB = 2**30
IMAGES = 50_000 * 8  # that the paper's recipe trains on


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published numbers of an accelerator.

    Attributes:
        flops: dense bfloat16 FLOP/s. bandwidth: of its memory, bytes/s. memory: bytes.
        clock: Hz; 0 where the compiler does not estimate cycles.
        start: seconds that an operation takes at least.
        source: where they are published.
    """

    flops: float
    bandwidth: float
    memory: int
    clock: float
    start: float
    source: str


@dataclasses.dataclass(frozen=True)
class Network:
    """How devices are joined.

    Attributes:
        bandwidth: bytes/s at which a device sends in a reduction over all of them.
        latency: seconds that a collective takes, however small it is.
        why: where the two are from.
    """

    bandwidth: float
    latency: float
    why: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to predict for.

    Attributes:
        chip, network: see there.
        devices: number of them.
        target: whose compiled program a device runs, of `accelerators.TARGETS`: XLA divides a
            data-parallel step before it compiles for a chip, so that of 16 stands for 256.
    """

    chip: Chip
    network: Network
    devices: int
    target: str


H100 = Chip(989.4e12, 3.35e12, 84978434048, 0, 3e-6, 'NVIDIA H100 SXM data sheet')
# 197 TFLOP/s are four 128 x 128 systolic arrays, two FLOPs a cell and cycle, at this clock.
V5E = Chip(
    197e12, 819e9, 16 * GIB, 197e12 / (4 * 2 * 128**2), 0, 'Google Cloud TPU v5e page'
)  # fmt: skip
NVLINK = Network(450e9, 20e-6, 'NVLink 4: 900 GB/s both ways; 20 us assumed for an NCCL call')
# 51.2 TB/s of all-reduce bandwidth a pod of 256 are 200 GB/s a chip: four ports at 50 GB/s each.
# A 4 x 4 slice does not close its axes to rings, which leaves half.
MESH = Network(100e9, 12e-6, 'half of a pod, without rings; 12 hops of 1 us assumed')
TORUS = Network(200e9, 32e-6, '51.2 TB/s of all-reduce a pod; 32 hops of 1 us assumed')

MACHINES = {
    '1 x H100': Machine(H100, NVLINK, 1, 'h100'),
    '8 x H100': Machine(H100, NVLINK, 8, 'h100x8'),
    'v5e-1': Machine(V5E, MESH, 1, 'v5e'),
    'v5e-16': Machine(V5E, MESH, 16, 'v5e:4x4'),
    'v5e-256': Machine(V5E, TORUS, 256, 'v5e:4x4'),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A training step, as rows of the CSV file tell; bytes and FLOPs are those of a device."""

    batch: int
    memory: int
    flops: int
    traffic: int
    operations: int
    cycles: int
    collectives: int
    reduced: int

    @staticmethod
    def of(row: dict[str, str]) -> 'Compiled':
        kinds = [kind.split() for kind in row['collectives'].split('; ') if kind]
        others = [kind for kind, _, _ in kinds if kind != 'all-reduce']
        if others:
            raise ValueError(f'the model knows all-reduce only, and the program has {others}')
        return Compiled(
            batch=int(row['batch']),
            memory=int(row['memory']),
            flops=int(row['flops']),
            traffic=int(row['traffic']),
            operations=int(row['operations']),
            cycles=int(row['cycles']),
            collectives=sum(int(count) for _, count, _ in kinds),
            reduced=sum(int(size) for _, _, size in kinds),
        )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a step: computation between two bounds, and communication that hides nowhere."""

    fastest: float
    slowest: float
    communication: float

    def efficiency(self) -> tuple[float, float]:
        """Share of the step that is computation, with the fastest and the slowest."""
        return tuple(t / (t + self.communication) for t in (self.fastest, self.slowest))


def predict(machine: Machine, program: Compiled) -> Prediction:
    """The model of docs/scaling.md.

    Products at the peak rate, and memory traffic at the published bandwidth, either overlap wholly
    or not at all; then starting operations takes its time, too. Where a TPU's compiler expects more
    than that, the slower bound is its estimate. An all-reduce is a ring: each device sends
    2 (n - 1) / n of the bytes.
    """
    chip, n = machine.chip, machine.devices
    products, moving = program.flops / chip.flops, program.traffic / chip.bandwidth
    slowest = products + moving + program.operations * chip.start
    if chip.clock:
        slowest = max(slowest, program.cycles / chip.clock)
    communication = 0.0
    if n > 1:
        communication = program.collectives * machine.network.latency
        communication += 2 * (n - 1) / n * program.reduced / machine.network.bandwidth
    return Prediction(max(products, moving), slowest, communication)


def table(rows: list[dict[str, str]]) -> list[str]:
    """Markdown lines: one a machine and batch of which the rows have the program."""
    lines = [
        '| machine | images a device | memory a device | computation ms | all-reduces, MiB '
        '| communication ms | efficiency | images/s | 400,000 images, minutes |',
        '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    compiled = [row for row in rows if row['flops']]
    for name, machine in MACHINES.items():
        for row in compiled:
            if row['target'] != machine.target:
                continue
            program = Compiled.of(row)
            p = predict(machine, program)
            steps = [t + p.communication for t in (p.slowest, p.fastest)]
            rates = [program.batch * machine.devices / t for t in steps]
            fits = '' if program.memory <= machine.chip.memory else ', does not fit'
            low, high = p.efficiency()
            lines.append(
                f'| {name} | {program.batch} | {program.memory / GIB:.1f} GiB{fits} '
                f'| {p.fastest * 1e3:.0f} - {p.slowest * 1e3:.0f} '
                f'| {program.collectives}, {program.reduced / 2**20:.0f} '
                f'| {p.communication * 1e3:.1f} | {low:.0%} - {high:.0%} '
                f'| {rates[0]:.0f} - {rates[1]:.0f} '
                f'| {IMAGES / rates[1] / 60:.0f} - {IMAGES / rates[0] / 60:.0f} |'
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('csv', type=pathlib.Path)
    parser.add_argument('--config', default='configs/cityscapes.py:r101')
    parser.add_argument('--overrides', default='')
    parser.add_argument('--size', default='769x769', help='of the crops')
    parser.add_argument('--remat', default='inplace_abn')
    options = parser.parse_args()
    height, _, width = options.size.partition('x')
    rows = [
        row
        for row in read(options.csv)
        if (row['config'], row['overrides'], row['step'], row['height'], row['width'], row['remat'])
        == (options.config, options.overrides, 'train', height, width, options.remat)
    ]
    if not rows:
        parser.error(f'{options.csv} has no training step of that configuration')
    print('\n'.join(table(rows)))


if __name__ == '__main__':
    main()
