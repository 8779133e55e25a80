"""The command line: a mistake ends in one clear line on stderr and exit code 2."""

import ast
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT, one_device

# What only some modes, devices or environments need.
LATE = ('jax.experimental.pallas.tpu', 'matplotlib', 'tensorboardX', 'tensorflow', 'torch')

# All mistakes in one process: importing JAX takes longer than finding them.
_DRIVER = """
import shlex, sys
sys.path.insert(0, {root!r})
from absl import flags
import main
print(sorted({{{late}}} & set(sys.modules)))
for line in sys.stdin:
    flags.FLAGS.unparse_flags()
    try:
        sys.argv = ['main.py', *shlex.split(line)]  # ml_collections looks there for overrides
        code = main.main(main.parse_flags(sys.argv))
    except SystemExit as exit:
        code = exit.code
    print('exit', code, file=sys.stderr, flush=True)
"""


MISTAKES = {
    '': '--config is missing; try --config=configs/street_scenes.py',
    'train': r"unexpected arguments ['train']",
    '--config=configs/camvit.py': '--config=configs/camvit.py: there is no such file',
    '--config=configs/camvid.py --mode=trian': 'should be one of <train|evaluate|predict|',
    '--config=configs/camvid.py --config.train.step=5': 'Did you mean "steps" instead of "step"?',
    '--config=configs/camvid.py --config.train.steps=many': 'invalid literal for int',
    '--config=configs/camvid.py': 'pass --config.data.manual_dir=DIR',
    '--config=configs/camvid.py --config.data.name=camvit': "'camvit' is not one of ade20k, camvid",
    '--config=configs/camvid.py --config.model.heads=gird:8': "head 'gird:8' is not one of full",
    '--config=configs/cityscapes.py': (
        'it must hold leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip'
    ),
    '--config=configs/ade20k.py': ('it must hold ADEChallengeData2016.zip'),
    '--mode=evaluate --workdir=nowhere': 'nowhere is not the workdir of a run',
    '--mode=predict --workdir=nowhere --input=a --output=b': 'nowhere is not the workdir of a run',
    '--mode=predict --config=configs/camvid.py --input=a': '--output=DIR is missing',
    '--mode=predict --config=configs/camvid.py --input=a --output=b': 'is not the workdir of a run',
    '--mode=export --workdir=nowhere --output=a': 'nowhere is not the workdir of a run',
    '--mode=export --config=configs/camvid.py': '--output=FILE is missing',
    '--mode=export --config=configs/camvid.py --output=a': 'is not the workdir of a run',
    '--mode=export --config=configs/camvid.py --output=a --sizes=3': "'3' is not HEIGHTxWIDTH",
    '--mode=export --config=configs/camvid.py --output=docs': '--output=docs is a folder',
    '--mode=export --config=configs/camvid.py --output=docs --format=folder': (
        '--output=docs exists and is no released model'
    ),
    '--mode=export --config=configs/camvid.py --output=a --format=folder --sizes=3x4': (
        '--sizes=3x4 is for --format=programs and onnx'
    ),
    '--mode=export --config=configs/camvid.py --output=a --format=onnx --sizes=3x4,5x6': (
        'a file of ONNX is for images of one size'
    ),
    '--mode=export --config=configs/camvid.py --output=a --format=backbone': (
        'the name of a backbone ends in .safetensors'
    ),
    # HOME is the root of the repository here; behind the equals sign no shell expands ~.
    '--config=~/configs/camvit.py': f'--config={ROOT}/configs/camvit.py: there is no such file',
    '--config=~/configs/camvid.py --workdir=~/LICENSE/run': 'pass --config.data.manual_dir=DIR',
    '--mode=evaluate --workdir=~/nowhere': f'{ROOT}/nowhere is not the workdir of a run',
    '--mode=evaluate --workdir=~nobody-of-this-name/a': 'there is no such home directory',
    '--mode=score --input=~nobody-of-this-name/a': 'there is no such home directory',
    '--mode=export --config=configs/camvid.py --output=~/docs': f'--output={ROOT}/docs is a folder',
    '--mode=export --config=configs/camvid.py --output=LICENSE/a': 'LICENSE cannot be written',
    '--mode=predict --config=configs/camvid.py --input=a --output=LICENSE/a': (
        'LICENSE/a cannot be written'
    ),
    '--mode=score --input=docs --output=LICENSE/a': 'LICENSE cannot be written',
    '--mode=score --input=~/nowhere': f'--input={ROOT}/nowhere is not a folder',
    '--mode=score --input=docs --labels=~/nowhere': f'--labels={ROOT}/nowhere is not a folder',
    '--mode=score --input=docs --labels=docs --classes=~/nowhere': f'--classes={ROOT}/nowhere',
    '--mode=serve --workdir=nowhere': 'nowhere is not the workdir of a run',
    '--mode=serve --config=configs/camvid.py --port=70000': 'port',
    '--mode=serve --config=configs/camvid.py --sizes=3': "'3' is not HEIGHTxWIDTH",
    '--config=configs/camvid.py --config.eval.window=5,5 --config.eval.stride=6,6': (
        'config.eval: stride=(6, 6) is larger than window=(5, 5)'
    ),
    '--config=configs/camvid.py --config.eval.scales=0.5,0': (
        'config.eval: scales=(0.5, 0) must be one or more factors above 0'
    ),
    '--config=configs/camvid.py --config.eval.pruning=full:drop=0.5': (
        "config.eval.pruning='full:drop=0.5': pruning rule 'full:drop=0.5': the model has no full"
    ),
}


@pytest.fixture(scope='module')
def process():
    """A process that makes all mistakes."""
    return subprocess.run(
        [sys.executable, '-c', _DRIVER.format(root=str(ROOT), late=str(LATE)[1:-1])],
        input='\n'.join(MISTAKES),
        env=dict(one_device(), TFDS_DATA_DIR='nowhere', HOME=str(ROOT)),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def answers(process):
    """What each mistake gets on stderr."""
    parts = process.stderr.split('exit ')
    assert len(parts) == len(MISTAKES) + 1, process.stderr
    return {line: (text, int(after[0])) for line, text, after in zip(MISTAKES, parts, parts[1:])}


def test_a_start_does_not_wait_for_what_it_may_not_need(process):
    assert process.stdout.splitlines()[0] == '[]'


@pytest.mark.parametrize('line', MISTAKES)
def test_mistake(answers, line):
    text, code = answers[line]
    assert MISTAKES[line] in text
    assert 'Traceback' not in text
    assert 'error: ' in text and code == 2


def _flags_of_modes():
    """(flag, mode) for each mode that the help of a flag begins a sentence with."""
    tree = ast.parse((ROOT / 'main.py').read_text())
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and 'flags.DEFINE' in ast.unparse(call.func):
            texts = [
                each.value
                for each in call.args
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            for modes in re.findall(r'(?:^|\. )([a-z, ]+): ', texts[-1]):
                yield from ((texts[0], mode) for mode in modes.split(', '))


def test_modes_read_the_flags_that_are_said_to_be_theirs():
    found = list(_flags_of_modes())
    assert {('sizes', 'export'), ('sizes', 'serve'), ('split', 'score')} <= set(found)
    for flag, mode in found:
        assert f'flags.{flag}' in (ROOT / 'ggcf_jax' / f'{mode}.py').read_text(), (flag, mode)
