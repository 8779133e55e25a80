import types

from ggcf_jax.data.records import progress


def test_a_line_every_ten_seconds_without_a_terminal(monkeypatch, capsys):
    clock = types.SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, 'time', clock)
    with progress.shown('counting classes in', 'counted', '[train]', 5) as advance:
        for now in (1, 11, 12, 13, 22):
            clock.now = now
            advance(1)
    assert capsys.readouterr().out.splitlines() == [
        'counting classes in [train]: 5 images',
        'counting classes in [train]: 2 of 5 images',
        'counting classes in [train]: 5 of 5 images',
        'counted 5 images of [train] in 22 s',
    ]
