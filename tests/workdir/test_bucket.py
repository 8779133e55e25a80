"""Workdirs in a bucket: as on a disk, with faults of the service and of the process."""

import asyncio
import json

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ggcf_jax import atomic, buckets, places
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import checkpoint_files, checkpoints, claim, lease, metrics_log
from ggcf_jax.workdir import config as workdir_config

TREES = {'model': {'params': {'w': np.arange(6.0).reshape(2, 3)}, 'stats': {'m': np.ones(3)}}}

# After how many objects of a checkpoint the service refuses the next ones.
SKIPPED = [0, 9, *(pytest.param(skip, marks=pytest.mark.soak) for skip in (2, 4, 6, 8))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The libraries wait for seconds before they repeat a request."""
    sleep = asyncio.sleep
    monkeypatch.setattr('asyncio.sleep', lambda seconds, *rest: sleep(min(seconds, 0.01), *rest))
    monkeypatch.setattr(lease, 'INTERVAL', 0.1)
    monkeypatch.setattr(lease, 'PATIENCE', 0.5)


@pytest.fixture
def workdir(bucket):
    return places.expand(f'{bucket.scheme}://bucket/run')


def _trees(step):
    return jax.tree.map(lambda x: jax.numpy.asarray(x + step, 'float32'), TREES)


def _saved(workdir, *steps, scores=()):
    checkpointer = checkpoints.Checkpointer(workdir)
    for step in steps:
        checkpointer.save(step, _trees(step))
        if step in scores:
            checkpointer.score(step, scores[step])
    checkpointer.close()
    return checkpointer


def _latest(workdir, report=print):
    found = checkpoints.Checkpointer(workdir, report).restore_latest(_trees(0))
    return None if found is None else float(found['model']['params']['w'][0, 0])


def _damage(path):
    """Changes a byte of an array."""
    file = max((path / 'model').rglob('*'), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.slow
def test_the_latest_and_the_best_are_kept(workdir):
    _saved(workdir, 1, 2, 3, 4, scores={1: 0.5, 2: 0.1})
    assert list(checkpoints.steps(workdir)) == [1, 3, 4]
    assert json.loads((workdir / 'checkpoints' / checkpoints.INDEX).read_bytes()) == [1, 3, 4]
    assert checkpoints.exists(workdir) and _latest(workdir) == 4


def test_orbax_reads_a_checkpoint_in_its_bucket(bucket_services, bucket, workdir):
    if bucket.scheme == 's3':
        pytest.skip('Orbax has no s3://')
    _saved(workdir, 3)
    loaded = ocp.load_checkpointables(str(workdir / 'checkpoints' / '3'), _trees(0))
    np.testing.assert_array_equal(loaded['model']['params']['w'], TREES['model']['params']['w'] + 3)


def test_process_0_saves_without_the_others(workdir, monkeypatch):
    """They take no part: whatever Orbax told them would wait, or meet what they compute."""

    def told(*arguments, **options):
        raise AssertionError('the other processes were told something')

    for name in ('broadcast_one_to_all', 'process_allgather', 'sync_global_devices'):
        monkeypatch.setattr(f'jax.experimental.multihost_utils.{name}', told)
    trees = _trees(3)
    monkeypatch.setattr('jax.process_count', lambda: 2)
    checkpoint_files.Saving(workdir / 'checkpoints' / '3', trees, None).wait()
    monkeypatch.undo()
    assert _latest(workdir) == 3


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(workdir):
    _saved(workdir, 1, 2)
    _damage(workdir / 'checkpoints' / '2')
    told = []
    assert _latest(workdir, told.append) == 1
    assert 'renamed to damaged-2' in told[0]
    names = [path.name for path in (workdir / 'checkpoints').iterdir()]
    assert names == ['1', 'damaged-2', checkpoints.INDEX]
    _saved(workdir, 2)
    assert _latest(workdir) == 2


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['busy', 'refused'])
def test_a_checkpoint_is_not_called_damaged_for_a_fault_of_the_service(
    bucket, workdir, kind, monkeypatch
):
    _saved(workdir, 1, 2)
    monkeypatch.setattr(buckets, 'PATIENCE', 0)
    with (
        bucket.fault(kind, 'GET', '_METADATA', times=99),
        pytest.raises(buckets.BucketError),
    ):
        _latest(workdir)
    assert _latest(workdir) == 2


@pytest.mark.slow
def test_a_listing_that_lags_behind_hides_no_checkpoint(bucket, workdir):
    _saved(workdir, 1)
    checkpoints.steps(workdir)
    with bucket.fault('stale', 'GET', 'prefix=run/checkpoints/', times=99) as fault:
        _saved(workdir, 2, 3, 4)
        assert list(checkpoints.steps(workdir)) == [3, 4]
        assert _latest(workdir) == 4
    assert fault.done > 2


def test_a_start_with_a_listing_from_before_the_first_checkpoint(bucket, workdir):
    checkpoints.steps(workdir)  # nothing is there
    # Whether there is a folder is another question to Google's service, which knows.
    part = 'prefix=run/checkpoints/ ' + ('maxResults=1000' if bucket.scheme == 'gs' else '')
    with bucket.fault('stale', 'GET', part, times=99) as fault:
        _saved(workdir, 1)
        assert list(checkpoints.steps(workdir)) == [1] and _latest(workdir) == 1
    assert fault.done


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['busy', 'cut', 'lost', 'done', 'silent'])
def test_saving_goes_on_after_faults(bucket, workdir, kind, monkeypatch):
    if kind == 'silent':
        monkeypatch.setattr(buckets, 'REQUEST_TIMEOUT', 0.5)
    methods = 'POST PUT' if kind in ('lost', 'done') else 'GET HEAD POST PUT DELETE'
    with bucket.fault(kind, methods, 'checkpoints', times=3, skip=2) as fault:
        _saved(workdir, 1, 2, scores={1: 0.25})
    assert fault.done == 3
    assert checkpoints.steps(workdir) == {1: 0.25, 2: None}
    assert _latest(workdir) == 2


@pytest.mark.slow
@pytest.mark.parametrize('skip', SKIPPED)
def test_an_upload_that_ends_is_no_checkpoint(bucket, workdir, skip, monkeypatch):
    """As the process may be killed at any request: the others are intact, and it is saved again."""
    _saved(workdir, 1)
    monkeypatch.setattr(buckets, 'PATIENCE', 0)
    with (
        bucket.fault('refused', 'POST PUT', 'checkpoints/2', times=99, skip=skip) as fault,
        pytest.raises(InputError, match=r'checkpoint 2 could not be written .*intact') as error,
    ):
        _saved(workdir, 2)
    assert fault.done
    assert 'refused' in str(error.value)
    assert list(checkpoints.steps(workdir)) == [1] and _latest(workdir) == 1
    assert [p.name for p in (workdir / 'checkpoints').iterdir()] == ['1', checkpoints.INDEX]
    _saved(workdir, 2)
    assert _latest(workdir) == 2


@pytest.mark.slow
@pytest.mark.parametrize('skip', SKIPPED)
def test_a_removal_that_ends_leaves_no_half(bucket, workdir, skip, monkeypatch):
    _saved(workdir, 1, 2)
    monkeypatch.setattr(buckets, 'PATIENCE', 0)
    with (
        bucket.fault('refused', 'DELETE', 'checkpoints/1/', times=99, skip=skip),
        pytest.raises(InputError, match='cannot be written'),
    ):
        _saved(workdir, 3)
    assert list(checkpoints.steps(workdir))[-1] == 3
    for step in checkpoints.steps(workdir):
        checkpoint_files.load(workdir / 'checkpoints' / str(step), _trees(0))
    _saved(workdir, 4)
    assert list(checkpoints.steps(workdir)) == [3, 4]


def test_a_second_writer_is_refused(workdir):
    with lease.taken(workdir), pytest.raises(InputError, match='in use by another process'):
        lease.Lease(workdir).take(print)
    assert not (workdir / lease.FILE_NAME).exists()


def test_the_lease_of_a_dead_machine_is_taken_over(workdir):
    gone = lease.Lease(workdir)
    content = json.loads(gone._content()) | {'machine': 'another', 'host': 'gone'}
    atomic.write(workdir / lease.FILE_NAME, json.dumps(content).encode())
    told = []
    with lease.taken(workdir, told.append) as held:
        held.check()
        with pytest.raises(InputError, match='taken over by another process'):
            gone.check()
    assert 'host gone' in told[0]


def test_the_log_is_uploaded_and_goes_on(workdir):
    with metrics_log.Writer(workdir, 0) as writer:
        writer.scalars(1, {'loss': 1.0})
        assert not (workdir / metrics_log.FILE_NAME).exists()
        writer.upload()
        assert [row['step'] for row in metrics_log.read_rows(workdir)] == [1]
        writer.scalars(2, {'loss': 0.5})
        writer.image(2, 'panel', np.zeros((4, 4, 3), np.uint8))
        writer.upload()
        writer.scalars(3, {'loss': 0.25})
        # Killed here, the row of step 3 is lost, with the step.
        rows = metrics_log.read_rows(workdir)
    assert [row['step'] for row in rows] == [1, 2]
    assert [row['step'] for row in metrics_log.read_rows(workdir)] == [1, 2, 3]
    with metrics_log.Writer(workdir, 2) as writer:
        writer.scalars(3, {'loss': 0.125})
    assert [row['loss'] for row in metrics_log.read_rows(workdir)] == [1.0, 0.5, 0.125]
    assert len(list(workdir.glob('events.out.tfevents.*'))) == 2


def test_event_files_that_grow_are_not_uploaded_again(workdir, monkeypatch):
    monkeypatch.setattr(metrics_log, '_EVENT_BYTES', 1000)
    with metrics_log.Writer(workdir, 0) as writer:
        for step in range(1, 4):
            writer.image(step, 'panel', np.full((40, 40, 3), step, np.uint8))
            writer.scalars(step, {f'value/{i}': i for i in range(20)})
            writer.upload()
    assert len(list(workdir.glob('events.out.tfevents.*'))) >= 3


def test_a_workdir_that_cannot_be_written_is_told_before_the_work(bucket, workdir, tiny_config):
    with (
        bucket.fault('refused', 'POST PUT', times=99),
        pytest.raises(InputError, match=f'{bucket.scheme}://bucket/run.* cannot be written'),
    ):
        claim.check(tiny_config, None, workdir)
    with pytest.raises(InputError, match='no bucket'):
        claim.check(tiny_config, None, places.expand(f'{bucket.scheme}://absent/run'))
    assert buckets.tree(workdir) == {}


def test_configurations_are_read_back(workdir, tiny_config):
    workdir_config.save(tiny_config, workdir)
    assert workdir_config.load(str(workdir)).to_dict() == tiny_config.to_dict()
