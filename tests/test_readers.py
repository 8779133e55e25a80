"""What is parsed is validated: every place that parses, and what validates there."""

import re

from tests.helpers import ROOT

# File -> number of calls that parse, and why they may: what validates, or who alone writes it.
_PARSERS = {
    'ggcf_jax/json_files.py': (1, 'what all readers of files and requests go through'),
    'ggcf_jax/workdir/config.py': (1, 'of what to_json has just written'),
    'ggcf_jax/export.py': (1, 'of what to_json has just written'),
    'ggcf_jax/distributed/liveness.py': (2, 'from processes of this run, by the same code'),
    'ggcf_jax/distributed/processes.py': (1, 'from process 0 of this run, by the same code'),
    'ggcf_jax/data/class_uniform.py': (1, 'dtype, shape, ranges and order are checked'),
    'experiments/common/cache.py': (1, 'the key and the checksums of the zip file'),
    'experiments/benchmark/onnx_files.py': (1, 'a row that the same command has written'),
    'experiments/soak.py': (1, 'its own record'),
    'experiments/tables/speed.py': (1, 'what its own process has just printed'),
}
_CALL = re.compile(r'\bjson\.loads?\(|\bnp\.load\(|\bpickle\.loads?\(|\bmarshal\.|\byaml\.')


def test_every_parser_is_known():
    found = {
        path.relative_to(ROOT).as_posix(): len(_CALL.findall(path.read_text()))
        for folder in ('ggcf_jax', 'experiments', 'configs')
        for path in (ROOT / folder).rglob('*.py')
    }
    found = {name: count for name, count in found.items() if count}
    assert found == {name: count for name, (count, _) in _PARSERS.items()}
