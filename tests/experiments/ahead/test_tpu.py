"""The TPU kernels through the compiler of TPUs; only where the extra `aot` is installed."""

import csv
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from experiments.ahead import accelerators, tpu_attention
from experiments.common import cli
from ggcf_jax.attention import attend, parse, target
from tests.attention.cases import slow
from tests.helpers import ROOT

compiler = pytest.mark.skipif(
    accelerators.missing(accelerators.TARGETS['v5e']) is not None,
    reason=str(accelerators.missing(accelerators.TARGETS['v5e'])),
)


@compiler
@pytest.mark.parametrize('head', ['local:8', *slow(['local:24', 'full'])])
def test_budgets_of_a_v5e(head, tmp_path):
    # A program of its own: what the compiler writes is decided when it is loaded.
    command = [sys.executable, '-m', 'experiments.ahead.tpu_attention', f'--heads={head}']
    subprocess.run(
        [*command, f'--out={tmp_path / "rows.csv"}'],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    with open(tmp_path / 'rows.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['kernels']) for row in rows] == [1, 3]
    for row, budget in zip(rows, tpu_attention.BUDGETS[head]):
        assert sum(tpu_attention.milliseconds(row)) <= budget


@compiler
@pytest.mark.parametrize('name', ['v5e', *slow(['v6e'])])
@pytest.mark.parametrize(
    'case',
    [
        ('local:2', (1, 17, 40), 20, jnp.float32),
        *slow(
            [
                ('local:4', (2, 33, 40), 512, jnp.bfloat16),
                ('local:3', (1, 1, 7), 8, jnp.bfloat16),
                ('full', (2, 33, 40), 20, jnp.float32),
                ('full', (1, 97, 97), 256, jnp.bfloat16),
            ]
        ),
    ],
    ids=str,
)
def test_odd_shapes_are_compiled(case, name):
    head, shape, channels, dtype = case
    device = accelerators.devices(accelerators.TARGETS[name])[0]
    sharding = SingleDeviceSharding(device)
    x, v = (
        jax.ShapeDtypeStruct((*shape, heads, channels), dtype, sharding=sharding)
        for heads in (2, 1)
    )

    def run(q, k, v, do):
        graph = parse(head)[0]
        o, pull = jax.vjp(lambda *x: attend(*x, graph, implementation='pallas'), q, k, v)
        return o, pull(do)

    with target.tracing_for('tpu', kind=device.device_kind):
        compiled = jax.jit(run).lower(x, x, v, x).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3


@compiler
@pytest.mark.parametrize(
    'case', [('local:2', 20, jnp.float32), *slow([('local:24', 64, jnp.bfloat16)])], ids=str
)
def test_the_kernel_that_prunes_is_compiled(case):
    head, channels, dtype = case
    device = accelerators.devices(accelerators.TARGETS['v5e'])[0]
    x = jax.ShapeDtypeStruct((1, 40, 70, 2, channels), dtype, sharding=SingleDeviceSharding(device))
    graph = parse(head)[0]
    with target.tracing_for('tpu', kind=device.device_kind):
        f = jax.jit(lambda *x: attend(*x, graph, drop_rate=0.5, implementation='pallas'))
        compiled = f.lower(x, x, x).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1


def test_bundles_count_as_often_as_they_run():
    text = """
     0   :  { %1 = vst }
  0x1 LB: > { %2 = vld }
  0x2   : >> { %3 = vmul }
  0x3   : >> { %4 = vadd }
"""
    assert tpu_attention.bundles(text, 10, 4) == 1 + 10 + 2 * 40
    with pytest.raises(ValueError, match='no bundles'):
        tpu_attention.bundles('nothing', 1, 1)


def test_the_page_has_the_printed_table(monkeypatch, capsys):
    monkeypatch.setattr(
        'sys.argv', ['script', '--only_print', f'--out={ROOT / "docs" / "attention_tpu.csv"}']
    )
    cli.run(tpu_attention.main, tpu_attention.make_parser())
    assert capsys.readouterr().out in (ROOT / 'docs' / 'performance.md').read_text()
