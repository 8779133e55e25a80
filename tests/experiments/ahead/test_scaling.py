"""The model of docs/scaling.md on numbers that are easily computed by hand."""

import pytest

from experiments.ahead import accelerators, scaling
from experiments.common import cli
from ggcf_jax.errors import InputError
from tests.helpers import ROOT

GB = 10**9
CHIP = scaling.Chip(
    flops=100e12, bandwidth=1e12, memory=16 * GB, clock=0, start=1e-6, source='made up'
)
NETWORK = scaling.Network(bandwidth=100 * GB, latency=10e-6, why='made up')
ROW = {
    'target': 'h100x8', 'batch': '2', 'memory': str(20 * GB), 'flops': str(10**12),
    'traffic': str(5 * GB), 'operations': '1000', 'cycles': '0',
    'collectives': f'all-reduce 100 {GB // 5}',
}  # fmt: skip


def machine(devices, **changes):
    chip = scaling.dataclasses.replace(CHIP, **changes)
    return scaling.Machine(chip, NETWORK, devices, 'h100x8')


def test_prediction():
    program = scaling.Compiled.from_row(ROW)
    p = scaling.predict(machine(4), program)
    assert p.fastest == pytest.approx(10e-3)  # 1 TFLOP; 5 GB take 5 ms
    assert p.slowest == pytest.approx(10e-3 + 5e-3 + 1e-3)
    assert p.communication == pytest.approx(100 * 10e-6 + 2 * 3 / 4 * 2e-3)
    assert p.efficiency() == pytest.approx((10 / 14, 16 / 20))
    assert scaling.predict(machine(1), program).communication == 0
    # The compiler's cycles, where they say more.
    cycles = scaling.dataclasses.replace(program, cycles=50 * 10**6)
    assert scaling.predict(machine(1, clock=1e9), cycles).slowest == pytest.approx(50e-3)
    assert scaling.predict(machine(1, clock=10e9), cycles).slowest == pytest.approx(16e-3)


def test_other_collectives_are_refused():
    with pytest.raises(ValueError, match='all-gather'):
        scaling.Compiled.from_row({**ROW, 'collectives': 'all-gather 1 5; all-reduce 1 4'})
    assert scaling.Compiled.from_row({**ROW, 'collectives': ''}).collectives == 0


def test_table(monkeypatch):
    monkeypatch.setattr(scaling, 'MACHINES', {'four': machine(4)})
    other = {**ROW, 'target': 'v5e'}
    lines = scaling.table([other, ROW, {**ROW, 'batch': '4', 'flops': ''}])
    assert lines[2:] == [
        '| four | 2 | 18.6 GiB, does not fit | 10 - 16 | 100, 191 | 4.0 | 71% - 80% | 400 - 571 '
        '| 12 - 17 |'
    ]


def test_command_line_selects_the_programs_of_a_configuration(tmp_path, capsys):
    def run(*arguments):
        options = cli.parse(scaling.make_parser(), [str(ROOT / 'docs' / 'memory.csv'), *arguments])
        scaling.main(options)
        return capsys.readouterr().out

    default = run()
    assert '| 8 x H100 | 1 |' in default and '| v5e-256 |' in default
    assert default == run('--config=configs/cityscapes.py:r101', '--remat=inplace_abn')
    with pytest.raises(InputError, match='no training step of that configuration'):
        run('--overrides=train.remat=none')


def test_clock_of_the_tpu_agrees_with_its_peak():
    assert scaling.V5E.clock == pytest.approx(1.5e9, rel=0.01)


def test_programs_of_the_machines_can_be_compiled():
    for name, m in scaling.MACHINES.items():
        assert (m.devices == 1) == (accelerators.TARGETS[m.target].devices == 1), name
