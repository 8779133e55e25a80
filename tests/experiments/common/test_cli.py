import pytest

from experiments.common import cli
from ggcf_jax.errors import InputError
from tests.helpers import ROOT


def test_a_mistake_of_the_user_ends_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr('sys.argv', ['script', f'--out={tmp_path}'])
    seen = []
    cli.run(lambda options: seen.append(options.out), cli.make_parser('Help.'))
    assert seen == [tmp_path]

    def fail(options):
        raise InputError('no such run')

    with pytest.raises(SystemExit) as stopped:
        cli.run(fail, cli.make_parser('Help.'))
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda options: 1, cli.make_parser('Help.'))
    assert stopped.value.code == 1
    assert capsys.readouterr().err == 'error: no such run\n'


def test_overrides_are_parsed_as_on_the_command_line_of_main(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    parser = cli.make_parser('Help.', out=False)
    cli.add_config(parser)
    path = '--config=configs/cityscapes.py:r50'
    options = cli.parse(
        parser, [path, '--config.train.remat=none', '--config.data.crop_size=24,32']
    )
    assert options.config_overrides == ['train.remat=none', 'data.crop_size=24,32']
    loaded = cli.load_config(options.config, options.config_overrides)
    assert loaded.path == 'configs/cityscapes.py:r50'
    assert loaded.overrides == {'train.remat': 'none', 'data.crop_size': (24, 32)}
    assert loaded.config.data.crop_size == (24, 32)
    with pytest.raises(SystemExit):
        cli.parse(parser, [path, '--crop=3'])
    assert 'overrides are written --config.field=value' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('path', 'override', 'message'),
    [
        ('configs/none.py', 'seed=1', 'there is no such file'),
        ('configs/camvid.py', 'train.stps=3', 'Did you mean "steps"'),
        ('configs/camvid.py', 'train.steps=many', 'many'),
        ('configs/camvid.py', 'seed', 'field=value'),
    ],
)
def test_bad_configurations_are_refused(path, override, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        cli.load_config(path, [override])
