"""Predicts step time, efficiency and memory on many accelerators from compiled programs.

    python -m experiments.ahead.scaling docs/memory.csv > runs/scaling.md

Reads what `experiments.ahead.compile` wrote for the training steps of one and of many devices and
prints Markdown. Nothing is measured; docs/scaling.md states the assumptions.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Self

from experiments.ahead import program_table
from experiments.ahead.program_table import Row
from experiments.common import cli
from ggcf_jax.errors import InputError

GIB = 2**30
IMAGES = 50_000 * 8  # number of crops in the training of the paper's recipe


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published numbers of an accelerator.

    Attributes:
        flops: peak rate of dense bfloat16 products, FLOP/s.
        bandwidth: bandwidth of its memory, bytes/s.
        memory: size of its memory, bytes.
        clock: clock rate, Hz; 0 where the compiler does not estimate cycles.
        start: minimum duration of an operation, seconds.
        source: publication of these numbers.
    """

    flops: float
    bandwidth: float
    memory: int
    clock: float
    start: float
    source: str


@dataclasses.dataclass(frozen=True)
class Network:
    """Interconnect of the devices.

    Attributes:
        bandwidth: rate at which a device sends in a reduction over all devices, bytes/s.
        latency: minimum duration of a collective, seconds.
        why: source of both numbers.
    """

    bandwidth: float
    latency: float
    why: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to predict for.

    Attributes:
        chip: accelerator.
        network: interconnect.
        devices: number of devices.
        target: key of `accelerators.TARGETS` whose compiled program a device runs. XLA partitions a
            data-parallel step before it compiles for a chip, so the program of 16 chips stands for
            that of 256.
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
    """A compiled training step.

    Attributes:
        batch: images on each device.
        memory: memory on each device, bytes.
        flops: FLOPs of products and convolutions on each device.
        traffic: bytes that each device's memory is read and written.
        operations: number of operations that each device starts.
        cycles: cycles that the compiler estimates; 0 for a GPU.
        collectives: number of all-reduces.
        reduced: bytes that are reduced.
    """

    batch: int
    memory: int
    flops: int
    traffic: int
    operations: int
    cycles: int
    collectives: int
    reduced: int

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Reads a row of the CSV file.

        Raises:
            ValueError: a program with other collectives than all-reduce.
        """
        totals = program_table.parse_collectives(row)
        others = [kind for kind in totals if kind != 'all-reduce']
        if others:
            raise ValueError(f'only all-reduce is modelled, but the program has {others}')
        return cls(
            batch=int(row['batch']),
            memory=int(row['memory']),
            flops=int(row['flops']),
            traffic=int(row['traffic']),
            operations=int(row['operations']),
            cycles=int(row['cycles']),
            collectives=sum(total.count for total in totals.values()),
            reduced=sum(total.bytes for total in totals.values()),
        )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted duration of a step in seconds.

    Attributes:
        fastest: lower bound of the computation.
        slowest: upper bound of the computation.
        communication: communication, none of which overlaps with computation.
    """

    fastest: float
    slowest: float
    communication: float

    def efficiency(self) -> tuple[float, float]:
        """Returns the computation's share of the step, for the fastest and the slowest."""
        fastest, slowest = (t / (t + self.communication) for t in (self.fastest, self.slowest))
        return fastest, slowest


def predict(machine: Machine, program: Compiled) -> Prediction:
    """Predicts the duration of a step by the model of docs/scaling.md.

    Products at the peak rate and memory traffic at the published bandwidth either overlap fully or
    not at all; in the latter case the starts of operations are added. Where a TPU's compiler
    estimates more than that, its estimate is the slower bound. An all-reduce is a ring: each device
    sends 2 (n - 1) / n of the bytes.

    Args:
        machine: devices to predict for.
        program: compiled training step of one device.
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


def table(rows: Sequence[Row]) -> list[str]:
    """Returns Markdown lines, one for each machine and batch whose program is in the rows."""
    lines = [
        '| machine | images per device | memory per device | computation ms | all-reduces, MiB '
        '| communication ms | efficiency | images/s | 400,000 images, minutes |',
        '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    compiled = [row for row in rows if row['flops']]
    for name, machine in MACHINES.items():
        for row in compiled:
            if row['target'] != machine.target:
                continue
            program = Compiled.from_row(row)
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


def main(options: argparse.Namespace) -> None:
    """Prints the predictions for a configuration."""
    height, _, width = options.size.partition('x')
    wanted = {
        'config': options.config,
        'overrides': options.overrides,
        'step': 'train',
        'height': height,
        'width': width,
        'remat': options.remat,
    }
    rows = [row for row in program_table.read(options.csv) if wanted.items() <= row.items()]
    if not rows:
        raise InputError(f'{options.csv} has no training step of that configuration')
    print('\n'.join(table(rows)))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument('csv', type=cli.path, help='CSV file that experiments.ahead.compile wrote')
    parser.add_argument(
        '--config',
        default='configs/cityscapes.py:r101',
        help='configuration of the programs [configs/cityscapes.py:r101]',
    )
    parser.add_argument(
        '--overrides', default='', help='overrides of the programs, as in the CSV file [none]'
    )
    parser.add_argument('--size', default='769x769', help='height x width of the crops [769x769]')
    parser.add_argument(
        '--remat', default='inplace_abn', help='rematerialisation of the programs [inplace_abn]'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
