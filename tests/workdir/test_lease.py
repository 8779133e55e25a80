"""One writer of a workdir at a time: who is refused, who takes over, who notices."""

import json
import subprocess
import sys

import pytest

from ggcf_jax.errors import InputError
from ggcf_jax.workdir import lease


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A lease is renewed often, and a holder that does not renew it soon counts as dead."""
    monkeypatch.setattr(lease, 'INTERVAL', 0.05)
    monkeypatch.setattr(lease, 'PATIENCE', 1.0)


def _edit(workdir, **values):
    path = workdir / lease.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _refused(workdir, reason):
    with pytest.raises(InputError, match=reason), lease.taken(workdir, lambda line: None):
        pass


def test_the_second_is_refused_and_the_first_named(tmp_path):
    with lease.taken(tmp_path / 'run') as held:
        with (
            pytest.raises(InputError, match=r'in use by another process \(host .*, pid \d+, since'),
            lease.taken(tmp_path / 'run'),
        ):
            pass
        held.check()
    assert not (tmp_path / 'run').exists()  # nothing was written there
    (tmp_path / 'run').mkdir()
    with lease.taken(tmp_path / 'run'):
        assert lease.holder(tmp_path / 'run') is not None
    assert list((tmp_path / 'run').iterdir()) == []


def test_lease_of_an_ended_process_is_taken_over_at_once(tmp_path):
    """As after kill -9: the process is gone, or another one has its id by now."""
    code = (
        'import sys, os, pathlib; from ggcf_jax.workdir import lease\n'
        'with lease.taken(pathlib.Path(sys.argv[1])): os._exit(9)'
    )
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path)]).returncode == 9
    dead = lease.holder(tmp_path)
    assert dead.has_ended() is True
    lines = []
    with lease.taken(tmp_path, lines.append):
        assert lease.holder(tmp_path).token != dead.token
        _edit(tmp_path, began='1')  # this process's id, of another process
        with lease.taken(tmp_path, lines.append):
            pass
    assert lines == []


def test_lease_of_another_machine_is_watched(tmp_path):
    with lease.taken(tmp_path) as held:
        _edit(tmp_path, machine='another', host='node7')
        held._own = lease.holder(tmp_path)  # which it renews from there
        _refused(tmp_path, r'in use by another process \(host node7')
    (tmp_path / 'lease.json').write_text(
        json.dumps(vars(lease.Holder('x', 'node7', 3, 'then', 4, 'another', '5')))
    )
    lines = []
    with lease.taken(tmp_path, lines.append):
        assert lease.holder(tmp_path).host != 'node7'
    (line,) = lines
    assert 'waiting 1 s, whether its holder (host node7, pid 3, since then) is alive' in line


def test_who_lost_the_lease_is_told_and_leaves_it(tmp_path):
    with lease.taken(tmp_path) as held:
        _edit(tmp_path, token='x', host='node7')
        with pytest.raises(InputError, match=r'was taken over by .*host node7'):
            held.check()
    assert lease.holder(tmp_path).host == 'node7'


def test_damaged_lease(tmp_path):
    for content in ('', '[]', '{"token": "x"}'):
        (tmp_path / 'lease.json').write_text(content)
        _refused(tmp_path, r'lease.json is damaged .* delete it')
