import pytest

from ggcf_jax.errors import InputError
from ggcf_jax.training import profiling


def test_spans():
    assert profiling.parse('', 20) is None
    assert profiling.parse('10:12', 20) == profiling.Span(10, 12)
    assert profiling.parse('20:20', 20) == profiling.Span(20, 20)
    for text in ('10', '12:10', '0:3', '10:21', 'a:b', '1:2:3', '-1:2', '1.5:2'):
        with pytest.raises(InputError, match='must be START:STOP'):
            profiling.parse(text, 20)


@pytest.mark.parametrize(
    ('steps', 'events'),
    [
        (range(1, 9), ['start 3', 'stop 5']),
        (range(4, 9), ['start 4', 'stop 5']),  # resumed inside the span
        (range(6, 9), []),  # resumed behind it
        (range(1, 5), ['start 3', 'stop at the end']),  # stopped inside it
    ],
)
def test_the_trace_covers_the_span(monkeypatch, tmp_path, steps, events):
    seen = []
    now = None
    monkeypatch.setattr(
        profiling.jax.profiler, 'start_trace', lambda folder: seen.append(f'start {now}')
    )
    monkeypatch.setattr(profiling.jax.profiler, 'stop_trace', lambda: seen.append(f'stop {now}'))
    profiler = profiling.Profiler(profiling.Span(3, 5), tmp_path)
    written = 0
    for now in steps:
        profiler.before(now, ())
        written += profiler.after(now, ())
    now = 'at the end'
    profiler.close()
    assert seen == events and written == ('stop 5' in events)
