"""Budgets of attention compiled for an H100; only where the extra `aot` is installed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments.ahead import accelerators, attention, cost, pruned_attention
from experiments.common import cli
from ggcf_jax.attention import attend, parse
from ggcf_jax.distributed import mesh as mesh_lib
from tests.attention.cases import slow, slow_cases
from tests.helpers import ROOT

TARGET = accelerators.TARGETS['h100']
# Kernels of a call, forward and with backward (one head of 64 channels on 128 x 256).
BUDGETS = {'local:8': (25, 70), 'local:24': (25, 70), 'grid:8': (25, 70), 'full': (15, 40)}
SECONDS = 80e-6  # of the forward pass beside the fused kernels, at the bandwidth of the memory


@pytest.mark.skipif(
    accelerators.missing(TARGET) is not None, reason=str(accelerators.missing(TARGET))
)
@pytest.mark.parametrize('head', ['local:8', 'full', *slow(['local:24', 'grid:8'])])
def test_kernels_and_traffic_of_an_h100(head):
    case = attention.Case(head, 1, *attention.MAP, 1, 64, False, 'auto')
    for backward, most in zip((False, True), BUDGETS[head]):
        one = dataclasses.replace(case, backward=backward)
        program = attention.compile_case(one, 'h100')
        assert program.kernels <= most
        assert program.fused == 1 + backward
        if not backward:
            assert program.moved / attention.BANDWIDTH['h100'] <= SECONDS
        # Another batch and more heads are no more kernels but those that copy v to the heads.
        many = attention.compile_case(dataclasses.replace(one, batch=8, heads=6), 'h100')
        assert many.fused == program.fused
        assert many.kernels <= most


@pytest.mark.skipif(
    accelerators.missing(TARGET) is not None, reason=str(accelerators.missing(TARGET))
)
@pytest.mark.parametrize(
    'head, most', [('grid:8', 100), *slow_cases([('local:8', 200), ('full', 6200)])]
)
def test_kernels_of_pruning_on_an_h100(head, most):
    batch, heads = pruned_attention.MANY
    one = pruned_attention.compile_head(head, 1, 1)['kernels']
    many = pruned_attention.compile_head(head, batch, heads)['kernels']
    # XLA fuses small operations in other ways; the steps are the same.
    assert max(one, many) <= most and abs(one - many) <= one // 5


@pytest.mark.skipif(
    accelerators.missing(TARGET) is not None, reason=str(accelerators.missing(TARGET))
)
@pytest.mark.parametrize('head', ['local:2', 'grid:4', 'full', 'local:1|grid:4'])
def test_what_a_graph_is_can_be_asked_under_a_mesh_of_absent_devices(head):
    mesh = mesh_lib.make_mesh(accelerators.devices(TARGET)[:1])
    (graph,) = parse(head)
    q = jax.ShapeDtypeStruct((1, 8, 12, 1, 8), jnp.bfloat16)
    with jax.set_mesh(mesh):
        out = jax.eval_shape(lambda q: attend(q, q, q, graph, drop_rate=0.5), q)
    assert out.shape == q.shape


@pytest.mark.parametrize(
    'script, file',
    [(attention, 'attention_ahead.csv'), (pruned_attention, 'attention_pruned.csv')],
    ids=lambda x: x if isinstance(x, str) else '',
)
def test_the_page_has_the_printed_table(script, file, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['script', '--only_print', f'--out={ROOT / "docs" / file}'])
    cli.run(script.main, script.make_parser())
    page = (ROOT / 'docs' / 'performance.md').read_text()
    assert capsys.readouterr().out in page


def test_traffic_without_fused_kernels():
    text = """HloModule m

ENTRY %main (a: bf16[64]) -> bf16[64] {
  %a = bf16[64]{0} parameter(0)
  %b = bf16[64]{0} negate(%a)
  ROOT %c = bf16[64]{0} custom-call(%b), custom_call_target="__cudnn$fmhaSoftmax"
}
"""
    assert cost.traffic(text) == 4 * 128
    assert cost.traffic(text, without=attention.FUSED) == 2 * 128
    assert cost.operations(text) == 2
