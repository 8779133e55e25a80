"""Which files a host needs: those of the records that its own stream reads."""

import bisect
import itertools

import pytest

from ggcf_jax.data import pipeline, selection

LENGTHS = ((5, 0, 3, 7), (2, 2))
WEIGHTS = (0.75, 0.25)


def _read(lengths, weights, seed, batch, steps, shard):
    """By definition: the files of every record that the host draws."""
    drawn = pipeline.draws(tuple(map(sum, lengths)), weights, seed=seed)
    found = [set() for _ in lengths]
    for step in steps:
        for position in range(step * batch + shard.index, (step + 1) * batch, shard.count):
            part, index = drawn[position]
            ends = [*itertools.accumulate(lengths[part])]
            found[part].add(bisect.bisect_right(ends, index))
    return tuple(map(frozenset, found))


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('steps', [range(1), range(2, 5), range(12)])
def test_a_host_needs_the_files_that_it_reads(hosts, steps):
    for index in range(hosts):
        shard = pipeline.Shard(index, hosts)
        options = {'seed': 3, 'batch_size': 4, 'steps': steps, 'shard': shard}
        found = selection.of_training(LENGTHS, WEIGHTS, **options)
        assert found == _read(LENGTHS, WEIGHTS, 3, 4, steps, shard)
    if len(steps) == 12 and hosts == 1:
        assert found == ({0, 2, 3}, {0, 1})


def test_few_steps_on_many_hosts_need_few_files():
    lengths = ((10,) * 100,)
    hosts = [
        selection.of_training(
            lengths, (1.0,), seed=0, batch_size=8, steps=range(3), shard=pipeline.Shard(i, 8)
        )[0]
        for i in range(8)
    ]
    assert all(1 <= len(each) <= 3 for each in hosts)
    assert len(frozenset.union(*hosts)) > 12


def test_what_is_drawn_late_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(selection, '_AHEAD', 3)
    options = {'seed': 0, 'batch_size': 1, 'shard': pipeline.Shard()}
    lengths = ((100,) * 50,)
    (early,) = selection.of_training(lengths, (1.0,), steps=range(3), **options)
    assert selection.of_training(lengths, (1.0,), steps=range(10**9), **options) == (early,)
