import io

import pytest
from rich.console import Console

from ggcf_jax.display import console
from ggcf_jax.display.console import Progress, iou_table, metrics_line


def _plain(width=80):
    return Console(file=io.StringIO(), width=width)


def _terminal():
    return Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)


def _shown(table, width=80):
    output = _plain(width)
    output.print(table)
    return output.file.getvalue()


class _Clock:
    """Stands in for the `time` module of the console."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_plain_output_is_one_line_per_update(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(console, 'time', clock)
    output = _plain(width=20)
    with Progress(2000, start_step=1000, console=output) as progress:
        for step, now in ((1010, 60), (1110, 70), (2000, 159)):
            clock.now = now
            progress.update(step, 0.5, 0.01, 8.125)
    # The first estimate knows only the time with compilation, the later ones leave it out.
    assert output.file.getvalue().splitlines() == [
        'step 1010/2000  loss 0.5000  lr 0.01  8.12 images/s  left 1:39:00',
        'step 1110/2000  loss 0.5000  lr 0.01  8.12 images/s  left 0:01:29',
        'step 2000/2000  loss 0.5000  lr 0.01  8.12 images/s  left 0:00:00',
    ]


def test_plain_output_is_flushed_and_bears_nan_and_unknown_rate():
    class File(io.StringIO):
        unflushed = 0

        def write(self, text):
            self.unflushed += 1
            return super().write(text)

        def flush(self):
            self.unflushed = 0

    file = File()
    with Progress(10, console=Console(file=file)) as progress:
        progress.update(0, float('nan'), 1e-5, None)
        assert file.unflushed == 0
        assert file.getvalue() == 'step  0/10  loss nan  lr 1e-05  left -:--:--\n'


def test_print_is_literal_and_unwrapped():
    output = _plain(width=20)
    with Progress(10, console=output) as progress:
        progress.print('[red]heads[/red] ' + 'x' * 40)
    assert output.file.getvalue() == '[red]heads[/red] ' + 'x' * 40 + '\n'


def test_terminal_shows_a_bar_and_messages_above_it():
    output = _terminal()
    with Progress(100, start_step=40, console=output) as progress:
        progress.update(50, 0.25, 0.01, 3.0)
        progress.print('saved checkpoint 50')
        with progress.evaluating(8, 'test') as advance:
            advance(4)
            progress.print('half way')
            advance(4)
    text = output.file.getvalue()
    for piece in ('50/100', 'loss 0.2500', '3 images/s', 'saved checkpoint 50', 'evaluate test'):
        assert piece in text
    assert 'evaluated 8 images of test' in text
    # The bar of the evaluation is gone from the last frame, that of the training stays.
    last = text[text.rindex('evaluated 8') :]
    assert 'train' in last and 'evaluate test' not in text[text.rindex('50/100') :]


def test_evaluation_without_training_prints_one_line():
    output = _plain()
    with Progress(0, console=output) as progress, progress.evaluating(3) as advance:
        advance(2)
        advance(1)
    lines = output.file.getvalue().splitlines()
    assert len(lines) == 1 and lines[0].startswith('evaluated 3 images of validation in ')


def test_long_work_without_a_terminal_tells_every_ten_seconds_without_compilation(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(console, 'time', clock)
    output = _plain(width=20)
    with (
        Progress(console=output) as progress,
        progress.working('predict', 'done', 8, 'a') as advance,
    ):
        with progress.compiling('the network'):
            clock.now = 30
        for now, images in ((32, 1), (39, 1), (45, 1.5), (46, 0.5), (56, 1.75), (57, 2.25)):
            clock.now = now
            advance(images)
    assert output.file.getvalue().splitlines() == [
        'compiling the network',
        'compiled the network in 30.0 s',
        'predict a: 1 of 8 (12%)  0.5 images/s  left 0:00:14',
        'predict a: 3 of 8 (44%)  0.233 images/s  left 0:00:19',
        'predict a: 5 of 8 (72%)  0.221 images/s  left 0:00:10',
        'done 8 images of a in 57.0 s',
    ]


def test_a_terminal_shows_what_is_being_compiled():
    output = _terminal()
    with Progress(console=output) as progress, progress.compiling('the network'):
        pass
    text = output.file.getvalue()
    assert 'compiling the network' in text and 'compiled the network in 0.0 s' in text


def test_failed_evaluation_is_not_reported_as_done():
    output = _terminal()
    progress = Progress(1, console=output)
    with progress, pytest.raises(RuntimeError), progress.evaluating(3):
        raise RuntimeError
    assert 'evaluated' not in output.file.getvalue()


def test_iou_table_names_absent_classes():
    text = _shown(iou_table(['road', '[sky]', 'train'], [0.5, 0.25, float('nan')], 0.375))
    assert 'mIoU 0.3750' in text and '[sky]' in text and '0.250' in text
    assert 'absent: train (in neither ground truth nor prediction; excluded from the mean)' in (
        ' '.join(text.split())
    )
    assert 'nan' not in text and 'change' not in text


def test_iou_table_shows_changes_to_the_previous_evaluation():
    text = _shown(iou_table(['a', 'b', 'c'], [0.5, 0.25, 0.1], 0.85 / 3, [0.4, None, 0.10001]))
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith('│')}
    assert '+0.100' in rows['a'] and '+0.000' in rows['c']
    assert '+' not in rows['b'] and '-' not in rows['b']
    assert '+0.0333' in text.splitlines()[0]


@pytest.mark.parametrize('count, lines', [(12, 12), (13, 7), (19, 10)])
def test_iou_table_of_many_classes_has_two_columns(count, lines):
    names = [f'class{index}' for index in range(count)]
    values = [index / 100 for index in range(count)]
    text = _shown(iou_table(names, values, 0.5, values))
    body = [line for line in text.splitlines() if line.startswith('│')]
    assert len(body) == lines and all(len(line) <= 80 for line in body)
    for name, value in zip(names, values):
        row = next(line for line in body if name in line.split())
        cells = row.replace('│', ' ').split()
        assert cells[cells.index(name) + 1] == f'{value:.3f}'


def test_iou_table_longer_than_a_screen_has_the_lowest_and_the_highest():
    names = [f'class{index}' for index in range(150)]
    values = [None if index >= 138 else (index * 37 % 138) / 200 for index in range(150)]
    text = _shown(iou_table(names, values, 0.5))
    assert len(text.splitlines()) < 30
    shown = {word for word in text.split() if word in names}
    order = sorted(range(138), key=lambda index: values[index])
    expected = {names[index] for index in (*order[:15], *order[-15:])}
    absent = {f'class{index}' for index in range(138, 148)}
    assert {word.strip(',') for word in text.split() if 'class' in word} >= expected | absent
    assert shown - absent <= expected
    words = ' '.join(text.split())
    assert 'lowest and highest of 150 classes; the report has all of them' in words
    assert 'class147 and 2 more (in neither' in words


def test_iou_table_without_any_class_present():
    text = _shown(iou_table(['a'], [None], float('nan'), [0.5]))
    assert 'mIoU undefined' in text and 'absent' in text


def test_iou_table_checks_lengths():
    with pytest.raises(ValueError, match='previous has 1 values for 2 classes'):
        iou_table(['a', 'b'], [0.1, 0.2], 0.15, [0.1])


def test_metrics_in_one_line_without_the_title_of_the_table():
    values = {'miou': 0.5, 'pixel_accuracy': 0.75, 'mean_accuracy': float('nan')}
    assert metrics_line(values) == 'pixel accuracy 0.7500, mean accuracy undefined'
    assert metrics_line({'miou': 0.5}) == ''
