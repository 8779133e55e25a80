import cv2
import numpy as np
import pytest

from ggcf_jax import data, doctor


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(doctor, 'SECONDS', 0.1)


@pytest.mark.slow
def test_a_good_setup_is_ready(tiny_config, tmp_path, capsys, quick):
    assert doctor.examine(tiny_config, tmp_path / 'run')
    text = capsys.readouterr().out
    assert 'train: 6 images: 6 of 40 x 56; 5.0% of the pixels have no class' in text
    assert 'validation: 3 images' in text
    assert "class 'bicyclist' is in no training image" in text
    assert 'GiB on each device, as compiled' in text
    assert 'ready to train' in text
    assert (tmp_path / 'run' / 'doctor' / 'report.txt').read_text().rstrip().endswith('warnings')
    samples = cv2.imread(str(tmp_path / 'run' / 'doctor' / 'samples.png'))
    assert samples.shape == (2 * 2 * 24, 4 * 24, 3)
    assert not (tmp_path / 'run' / 'config.json').exists()


def test_unusable_records_are_listed(tiny_config, camvid_folder, tmp_path, capsys):
    data.build(tiny_config.data)  # prepared; what follows is found in the folder data set only
    tiny_config.data.update(_folder(camvid_folder))
    (camvid_folder / 'train' / 'train_0.png').write_bytes(b'')
    cv2.imwrite(str(camvid_folder / 'trainannot' / 'train_2.png'), np.full((40, 56), 77, np.uint8))
    assert not doctor.examine(tiny_config, tmp_path / 'run')
    text = capsys.readouterr().out
    assert '2 of train cannot be used' in text
    assert 'train_0: the image cannot be decoded' in text
    assert 'train_2: label values [77] are outside' in text
    assert 'not ready: 1 error,' in text


def _folder(root):
    (root / 'classes.txt').write_text('\n'.join('abcdefghijk'))
    return {
        'name': 'folder',
        'classes': 'classes.txt',
        'ignore': (11,),
        'splits': {'train': 'train,trainannot', 'validation': 'val,valannot', 'test': ''},
    }


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('data.manual_dir', None, 'manual_dir is not set'),
        ('model.context', 'gcgf', "config.model.context='gcgf' is not one of"),
        ('train.batch_size', 9, 'batch_size=9 is not divisible'),
        ('data.train_split', 'trian', "no split 'trian'"),
        ('train.class_weights', '1.0', "class_weights='1.0' has 1 value, but"),
    ],
)
def test_mistakes_are_errors(tiny_config, tmp_path, capsys, quick, field, value, message):
    tiny_config.update_from_flattened_dict({field: value})
    assert not doctor.examine(tiny_config, tmp_path / 'run')
    text = capsys.readouterr().out.replace('\n', ' ')
    assert message in text and 'not ready' in text
