"""Programs compiled for accelerators; those for a TPU only where the extra `aot` is installed."""

import dataclasses
import functools
import gzip
import hashlib
import os

import jax
import pytest

from experiments.ahead import (
    accelerators,
    collectives,
    compile,
    cost,
    memory,
    program_table,
    programs,
)
from experiments.common import cli
from ggcf_jax.errors import InputError
from tests.helpers import ROOT, load_config

CACHE = ROOT / '.cache' / 'compile_ahead'
TARGET = accelerators.TARGETS['v5e:4x4']
SUM = collectives.Collective('all-reduce', ('f32[64]',), 256, 3, 'jit(f)/sum')
GATHER = collectives.Collective(
    'all-gather', ('bf16[2,97,97,512]',), 19270016, 1, 'jit(f)/dot_general'
)


def tiny_config():
    config = load_config('camvid')
    config.update_from_flattened_dict(
        {
            'model.backbone.name': 'resnet10',
            'model.backbone.width': 4,
            'model.heads': 'local:1,grid:2,full',
            'model.ggcf.channels': 8,
            'model.ggcf.key_channels': 4,
            'model.ggcf.value_channels': 4,
            'model.aux_channels': 4,
        }
    )
    return config


@functools.cache
def compiled_for_a_tpu(step: str, remat: str) -> str:
    """The compiled program's text; kept between runs while the program stays the same."""
    reason = accelerators.missing(TARGET)
    if reason:
        pytest.skip(reason)
    case = programs.Case('v5e:4x4', step, 24, 32, 1, remat)
    lowered, count = programs.lower(tiny_config(), case, 11)
    assert count > 0
    versions = f'{jax.__version__} {accelerators.compiler(TARGET)}'
    key = hashlib.sha256(f'{versions}\n{lowered.as_text()}'.encode()).hexdigest()
    path = CACHE / f'{key}.hlo.gz'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f'.{os.getpid()}')
        temporary.write_bytes(gzip.compress(lowered.compile().as_text().encode()))
        os.replace(temporary, path)
    return gzip.decompress(path.read_bytes()).decode()


@pytest.mark.parametrize('step, remat', [('train', 'inplace_abn'), ('evaluate', 'none')])
def test_nothing_is_gathered_on_16_tpus(step, remat):
    text = compiled_for_a_tpu(step, remat)
    found = collectives.of_program(text)
    assert collectives.gathers(tuple(found)) == []
    total = collectives.totals(found)['all-reduce']
    if step == 'evaluate':
        # The confusion matrix, and the mean IoU of each image.
        assert 11 * 11 * 4 <= sum(c.bytes for c in found) <= 11 * 11 * 4 + 16 * 4
    else:
        assert {c.kind for c in found} == {'all-reduce'}
        _, params, _ = programs.models.abstract(tiny_config(), 11)
        gradients = sum(4 * x.size for x in jax.tree.leaves(params))
        # Besides the gradients the statistics of batch norms, forward and backward, and the loss.
        assert gradients < total.bytes < 1.1 * gradients
    assert cost.estimated_cycles(text) > 0
    assert cost.traffic(text) > 0


def test_a_gather_is_found():
    small = collectives.Collective('all-gather', ('s32[16]',), 64, 1, '')
    assert collectives.gathers((SUM, GATHER, small)) == [GATHER]


def test_what_heads_gather_is_meant():
    of_full = dataclasses.replace(GATHER, source='jit(f)/jvp()/shard_map/all_gather')
    assert collectives.gathers((of_full, GATHER)) == [GATHER]


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(accelerators.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='libtpu is not installed; install the extra aot'):
        accelerators.devices(TARGET)


def test_configuration_is_checked(monkeypatch):
    monkeypatch.setattr(accelerators, 'devices', lambda target: jax.devices()[: target.devices])
    config = tiny_config()
    config.train.accumulate = 2
    with pytest.raises(InputError, match='not divisible by 8 devices x config'):
        programs.lower(config, programs.Case('h100x8', 'train', 24, 32, 1, 'none'), 11)


def test_class_weights_that_need_data_are_refused(monkeypatch):
    monkeypatch.setattr(accelerators, 'devices', lambda target: jax.devices()[:1])
    config = tiny_config()
    config.train.class_weights = 'data'
    with pytest.raises(InputError, match=r'config\.train\.class_weights'):
        programs.lower(config, programs.Case('h100', 'train', 24, 32, 1, 'none'), 11)


def test_reported_numbers(monkeypatch, tmp_path):
    """What is reported of a program, with CPU devices in place of the target's."""
    monkeypatch.setattr(accelerators, 'devices', lambda target: jax.devices()[: target.devices])
    case = programs.Case('h100x8', 'evaluate', 24, 32, 2, 'none')
    program = programs.compile_case(tiny_config(), case, 11, tmp_path / 'kept' / 'program.hlo.gz')
    # The confusion matrix, and the mean IoU of 16 images.
    assert collectives.totals(program.collectives) == {
        'all-gather': collectives.Total(1, 16 * 4),
        'all-reduce': collectives.Total(1, 11 * 11 * 4),
    }
    assert collectives.gathers(program.collectives) == []
    _, params, stats = programs.models.abstract(tiny_config(), 11)
    # The auxiliary head is not evaluated and not given to the program.
    used = [{k: v for k, v in x.items() if not k.startswith('aux')} for x in (params, stats)]
    state = sum(4 * x.size for x in jax.tree.leaves(used))
    images = 2 * (24 * 32 * (3 + 1) + 2 * 4)  # with their labels and their heights and widths
    assert program.arguments == state + images + 11 * 11 * 4
    assert program.memory == (
        program.temporary + program.arguments + program.outputs - program.aliased
    )
    text = gzip.decompress((tmp_path / 'kept' / 'program.hlo.gz').read_bytes()).decode()
    assert tuple(collectives.of_program(text)) == program.collectives
    assert cost.traffic(text) == program.traffic > state


@pytest.mark.slow
def test_training_step_on_more_devices_has_more_flops(monkeypatch):
    monkeypatch.setattr(accelerators, 'devices', lambda target: jax.devices()[: target.devices])
    counts = {}
    for target, remat in (('h100', 'none'), ('h100x8', 'block'), ('h100', 'block')):
        case = programs.Case(target, 'train', 24, 32, 2, remat)
        counts[target, remat] = programs.lower(tiny_config(), case, 11)[1]
    assert counts['h100x8', 'block'] == 8 * counts['h100', 'block']
    assert counts['h100', 'none'] < counts['h100', 'block'] < 1.4 * counts['h100', 'none']


def test_a_program_in_the_table_is_not_compiled_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(accelerators, 'compiler', lambda target: 'c 2')
    arguments = ['--config=configs/cityscapes.py:r50', '--config.train.remat=block']
    options = cli.parse(compile.make_parser(), [*arguments, '--targets=h100x8', '--batches=1, 2'])
    loaded = cli.load_config(str(ROOT / 'configs' / 'cityscapes.py:r50'), options.config_overrides)
    found = compile.cases(options, loaded)
    assert found == [programs.Case('h100x8', 'train', 769, 769, n, 'block') for n in (1, 2)]
    path = tmp_path / 'memory.csv'
    row = {
        'config': loaded.path, 'overrides': 'train.remat=block', **vars(found[1]),
        'jax': jax.__version__, 'compiler': 'c 2', 'collectives': 'all-gather 1 19270016',
    }  # fmt: skip
    program_table.append(path, row)
    gathers = compile.run(found[1], loaded, 19, compile.Output(path, None))
    assert gathers == ['h100x8 train 769 769 2 block: all-gather 1 19270016']
    assert f'already in {path}' in capsys.readouterr().out


def test_rows_and_tables(tmp_path):
    path = tmp_path / 'memory.csv'
    row = {
        'config': 'configs/cityscapes.py:r101', 'overrides': '', 'target': 'h100x8',
        'step': 'train', 'height': 769, 'width': 769, 'batch': 2, 'remat': 'block',
        'jax': '1', 'compiler': 'c 2', 'memory': 3 * 2**30, 'temporary': 2**31, 'arguments': 2**30,
        'flops': 1, 'traffic': 1, 'cycles': 0,
        'collectives': program_table.format_collectives((SUM, SUM, GATHER)),
    }  # fmt: skip
    assert program_table.read(path) == []
    program_table.append(path, row)
    program_table.append(path, {**row, 'remat': 'none', 'temporary': '', 'collectives': ''})
    rows = program_table.read(path)
    assert program_table.gathers_of_row(rows[0]) == ['all-gather 1 19270016']
    assert program_table.gathers_of_row(rows[1]) == []
    assert rows[0]['collectives'] == 'all-gather 1 19270016; all-reduce 6 1536'
    assert memory.memory_table(rows)[2:] == [
        '| cityscapes:r101 | 769 x 769 | h100x8 | 2 | does not fit (3.0 in all) |  | 2.00 |'
    ]
    assert memory.collectives_table(rows)[2:] == [
        '| cityscapes:r101 | train, block | 769 x 769 | h100x8 | 2 | 1 all-gather, 18.38 MiB, '
        '6 all-reduce, 0.00 MiB | 2.00 | 1.00 |'
    ]
