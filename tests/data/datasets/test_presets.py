"""The recipes of published data sets, each on a tiny folder with the true names of its files."""

import csv
import dataclasses
import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ggcf_jax import data, doctor
from ggcf_jax.data import label_survey
from ggcf_jax.data.datasets import cityscapes, class_file
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED
from ggcf_jax.data.scan import scan
from tests.helpers import ROOT, load_config

TABLES = ROOT / 'ggcf_jax' / 'data' / 'datasets' / 'class_files'


@dataclasses.dataclass(frozen=True)
class Folder:
    """A tiny data set.

    Attributes:
        train: image -> label of the training split.
        validation: the same of the validation split.
        classes: number of classes, as the source has it.
        facts: label value or colour -> its class, None if it has none, as the source has it.
        palette: whether labels are palette PNGs.
        others: files that are no part of the splits, with their text.
    """

    train: dict[str, str]
    validation: dict[str, str]
    classes: int
    facts: dict[int | tuple[int, int, int], str | None]
    palette: bool = False
    others: dict[str, str] = dataclasses.field(default_factory=dict)


def _two(image: str, label: str, names: tuple[str, str]) -> dict[str, str]:
    return {image.format(name): label.format(name) for name in names}


def _mapillary(version: str, classes: int, facts: dict) -> Folder:
    return Folder(
        _two('training/images/{}.jpg', f'training/{version}/labels/{{}}.png', ('-a_1', 'b-2')),
        _two('validation/images/{}.jpg', f'validation/{version}/labels/{{}}.png', ('c', '_D')),
        classes,
        facts,
        palette=True,
        others={f'training/{version}/panoptic/-a_1.png': '', 'config_v1.2.json': '{}'},
    )


def _voc(training: dict[str, str], **lists: str) -> Folder:
    return Folder(
        training,
        _two('JPEGImages/{}.jpg', 'SegmentationClass/{}.png', ('2007_000033', '2011_003103')),
        21,
        {0: 'background', 15: 'person', 20: 'tvmonitor', 255: None},
        palette=True,
        others={
            'ImageSets/Segmentation/val.txt': '2007_000033\n2011_003103\n',
            # An image without a label.
            'JPEGImages/2012_004331.jpg': '',
            **{f'ImageSets/Segmentation/{name}.txt': text for name, text in lists.items()},
        },
    )


def _context(classes: int, background: str | None) -> Folder:
    label = 'SegmentationClassContext/{}.png'
    lists = 'ImageSets/SegmentationContext'
    return Folder(
        _two('JPEGImages/{}.jpg', label, ('2008_000002', '2010_006086')),
        _two('JPEGImages/{}.jpg', label, ('2008_000003', '2010_000002')),
        classes,
        {0: background, 1: 'aeroplane', 59: 'wood', 255: None},
        others={
            f'{lists}/train.txt': '2008_000002\n2010_006086\n',
            f'{lists}/val.txt': '2008_000003\n2010_000002\n',
        },
    )


def _loveda(scenes: tuple[str, ...]) -> Folder:
    def files(split: str, number: int) -> dict[str, str]:
        return {
            f'{split}/{scene}/images_png/{number + i}.png': f'{split}/{scene}/masks_png/'
            f'{number + i}.png'
            for scene in scenes
            for i in range(2)
        }

    return Folder(
        files('Train', 0),
        files('Val', 2522),
        7,
        {0: None, 1: 'background', 2: 'building', 7: 'agricultural'},
        others={'Test/Urban/images_png/4191.png': ''},
    )


_ISPRS = {(255, 255, 255): 'impervious_surface', (255, 0, 0): 'clutter', (0, 0, 0): None}
_PIECES = ('img_dir/{}/{{}}.png', 'ann_dir/{}/{{}}.png')
_TRIMAPS = Folder(
    _two('images/{}.jpg', 'annotations/trimaps/{}.png', ('Abyssinian_100', 'yorkshire_terrier_9')),
    _two('images/{}.jpg', 'annotations/trimaps/{}.png', ('Abyssinian_201', 'pug_1')),
    2,
    {1: 'foreground', 2: 'background', 3: None},
    others={
        'annotations/trainval.txt': 'Abyssinian_100 1 1 1\nyorkshire_terrier_9 37 2 25\n',
        'annotations/test.txt': '#Image CLASS-ID SPECIES\nAbyssinian_201 1 1 1\npug_1 26 2 16\n',
        'annotations/trimaps/._Abyssinian_100.png': '',
        'images/Abyssinian_100.mat': '',
    },
)
_A2D2 = '{}/{}/cam_front_center/{}_{}_frontcenter_{}.png'


def _a2d2(recording: str, *frames: str) -> dict[str, str]:
    stamp = recording.replace('_', '')
    return {
        _A2D2.format(recording, 'camera', stamp, 'camera', frame): _A2D2.format(
            recording, 'label', stamp, 'label', frame
        )
        for frame in frames
    }


FOLDERS = {
    'bdd100k': Folder(
        _two('images/10k/train/{}.jpg', 'labels/sem_seg/masks/train/{}.png', ('0a0a-1', 'f9-2')),
        _two('images/10k/val/{}.jpg', 'labels/sem_seg/masks/val/{}.png', ('7d-0', '8e-1')),
        19,
        {0: 'road', 13: 'car', 18: 'bicycle', 255: None},
        others={'images/10k/test/a.jpg': '', 'labels/sem_seg/colormaps/train/0a0a-1.png': ''},
    ),
    'mapillary:v1.2': _mapillary(
        'v1.2', 65, {0: 'Bird', 13: 'Road', 55: 'Car', 64: 'Ego Vehicle', 65: None}
    ),
    'mapillary:v2.0': _mapillary('v2.0', 123, {0: 'Bird', 122: 'Static', 123: None}),
    'voc2012:train': _voc(
        _two('JPEGImages/{}.jpg', 'SegmentationClass/{}.png', ('2007_000032', '2009_1')),
        train='2007_000032\n2009_1\n',
    ),
    'voc2012:trainaug': _voc(
        _two('JPEGImages/{}.jpg', 'SegmentationClass/{}.png', ('2007_000032', '2009_1'))
        | _two('JPEGImages/{}.jpg', 'SegmentationClassAug/{}.png', ('2008_000002', '2011_7')),
        train='2007_000032\n2009_1\n',
        aug='2008_000002\n2011_7\n',
    ),
    'pascal_context:59': _context(59, None),
    'pascal_context:60': _context(60, 'background'),
    'coco_stuff': Folder(
        _two('images/train2017/{}.jpg', 'annotations/train2017/{}.png', ('000000000009', '25')),
        _two('images/val2017/{}.jpg', 'annotations/val2017/{}.png', ('000000000139', '285')),
        171,
        {0: 'person', 10: 'fire hydrant', 12: 'stop sign', 91: 'banner', 181: 'wood', 255: None},
    ),
    'loveda:all': _loveda(('Urban', 'Rural')),
    'loveda:urban': _loveda(('Urban',)),
    'loveda:rural': _loveda(('Rural',)),
    'isprs:potsdam': Folder(
        _two(
            '2_Ortho_RGB/top_potsdam_{}_RGB.tif',
            '5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif',
            ('2_10', '6_7'),
        ),
        _two(
            '2_Ortho_RGB/top_potsdam_{}_RGB.tif',
            '5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif',
            ('5_15', '7_13'),
        ),
        6,
        _ISPRS,
        others={'2_Ortho_RGB/top_potsdam_2_10_RGB.tfw': ''},
    ),
    'isprs:vaihingen': Folder(
        {
            f'top/top_mosaic_09cm_area{area}.tif': f'gts/top_mosaic_09cm_area{area}_noBoundary.tif'
            for area in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)
        },
        {
            f'top/top_mosaic_09cm_area{area}.tif': f'gts/top_mosaic_09cm_area{area}_noBoundary.tif'
            for area in (6, 24, 35, 16, 14, 22, 10, 4, 2, 20, 8, 31, 33, 27, 38, 12, 29)
        },
        6,
        _ISPRS,
    ),
    'isprs:cut': Folder(
        _two(*(text.format('train') for text in _PIECES), ('2_10_0_0_512_512', 'area1_0_0_512')),
        _two(*(text.format('val') for text in _PIECES), ('2_13_0_0_512_512', 'area2_0_0_512')),
        6,
        {0: None, 1: 'impervious_surface', 6: 'clutter'},
    ),
    'isaid:patches': Folder(
        _two(
            'train/images/{}.png',
            'train/images/{}_instance_color_RGB.png',
            ('P0002_0_0_800_800', 'P0002_600_0_1400_800'),
        ),
        _two(
            'val/images/{}.png', 'val/images/{}_instance_color_RGB.png', ('P0003', 'P0004_0_0_8_8')
        ),
        16,
        {(0, 0, 0): 'background', (0, 0, 63): 'ship', (0, 100, 155): 'Harbor'},
        others={
            'train/images/P0002_0_0_800_800_instance_id_RGB.png': '',
            'train/instance_only_filtered_train.json': '',
        },
    ),
    'isaid:cut': Folder(
        _two(
            'img_dir/train/{}.png', 'ann_dir/train/{}_instance_color_RGB.png', ('P2_0_896_0', 'P3')
        ),
        _two('img_dir/val/{}.png', 'ann_dir/val/{}_instance_color_RGB.png', ('P4', 'P5')),
        16,
        {0: 'background', 1: 'ship', 15: 'Harbor', 255: None},
    ),
    'kitti': Folder(
        _two('training/image_2/{}_10.png', 'training/semantic/{}_10.png', ('000001', '000199')),
        _two('training/image_2/{}_10.png', 'training/semantic/{}_10.png', ('000000', '000195')),
        19,
        {7: 'road', 26: 'car', 33: 'bicycle', 0: None, 16: None, 255: None},
        others={'training/instance/000001_10.png': '', 'testing/image_2/000000_10.png': ''},
    ),
    'a2d2': Folder(
        _a2d2('20180807_145028', '000000091', '000000135') | _a2d2('20181107_132300', '000000001'),
        _a2d2('20181204_135952', '000002806', '000002807'),
        38,
        {(255, 0, 0): 'Car', (128, 0, 0): 'Car', (255, 0, 255): 'RD normal street'},
        others={
            '20180807_145028/camera/cam_front_center/20180807145028_camera_frontcenter_91.json': '',
            '20180807_145028/lidar/cam_front_center/20180807145028_lidar_frontcenter_91.npz': '',
        },
    ),
    'human_parts:lip': Folder(
        _two('train_images/{}.jpg', 'train_segmentations/{}.png', ('77_471474', '1000_1234574')),
        _two('val_images/{}.jpg', 'val_segmentations/{}.png', ('100034_483681', '10005_205677')),
        20,
        {0: 'Background', 5: 'UpperClothes', 19: 'Right-shoe', 255: None},
    ),
    'human_parts:pascal': Folder(
        _two('train/images/{}.jpg', 'train/labels/{}.png', ('2008_000008', '2008_000041')),
        _two('validation/images/{}.jpg', 'validation/labels/{}.png', ('2008_000003', '2010_1')),
        7,
        {0: 'Background', 1: 'Head', 6: 'Lower Legs', 255: None},
    ),
    'oxford_pet:trimap': _TRIMAPS,
    'oxford_pet:border': dataclasses.replace(
        _TRIMAPS, classes=3, facts={1: 'foreground', 2: 'background', 3: 'not classified'}
    ),
    'binary_masks': Folder(
        _two('train/images/{}.jpg', 'train/labels/{}_mask.png', ('a', 'b')),
        _two('validation/images/{}.jpg', 'validation/labels/{}.png', ('c', 'd')),
        2,
        {0: 'background', 255: 'object'},
    ),
}


def _write(root: pathlib.Path, folder: Folder, values: list) -> None:
    """Writes images, and labels that hold every value or colour from which there are classes."""
    label = np.resize(np.array(values, np.uint8), (256, np.size(values[0])))
    label = label.reshape(16, 16, -1)
    for image_name, label_name in (folder.train | folder.validation).items():
        for name in (image_name, label_name):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / image_name), np.full((16, 16, 3), 90, np.uint8))
        if folder.palette:
            picture = Image.fromarray(label[..., 0], 'P')
            picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
            picture.save(root / label_name)
        else:
            cv2.imwrite(str(root / label_name), label[..., ::-1])
    for name, text in folder.others.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize('name', FOLDERS)
def test_preset(name, tmp_path, capsys):
    folder = FOLDERS[name]
    recipe, _, variant = name.partition(':')
    config = load_config(recipe, *([variant] if variant else []))
    config.data.manual_dir = str(tmp_path)
    table = class_file.read(class_file.locate(tmp_path, config.data.classes), config.data.ignore)
    in_colors = config.data.label_form == 'colors'
    if in_colors:
        values = sorted(table.label_colors)
    else:
        values = np.flatnonzero(table.label_map != NOT_ALLOWED).tolist()
    _write(tmp_path, folder, values)

    dataset = data.build(config.data)

    assert dataset.num_classes == folder.classes
    for value, class_name in folder.facts.items():
        found = table.label_colors[value] if in_colors else table.label_map[value]
        assert (None if found == IGNORE else dataset.classes[found]) == class_name, value
    expected = [table.label_colors[v] if in_colors else table.label_map[v] for v in values]
    expected = np.resize(np.array(expected), (16, 16))
    found = doctor.Findings(_Silent())
    scans = {}
    for split, pairs in (('train', folder.train), ('validation', folder.validation)):
        source = dataset.source(split)
        files = {source[i]['image_file']: source[i]['label_file'] for i in range(len(source))}
        assert files == {str(tmp_path / i): str(tmp_path / label) for i, label in pairs.items()}
        for i in range(len(source)):
            np.testing.assert_array_equal(dataset.decode(source[i])['label'], expected)
        # What the doctor says: nothing but what kind of files the labels are.
        assert len(list(label_survey.lines(label_survey.survey(dataset, split), dataset))) == 1
        scans[split] = scan(dataset, split, threads=1)
        doctor._tell_split(scans[split], found)
    doctor._judge_classes(dataset, scans, found)
    assert (found.errors, found.warnings) == (0, 0)
    notes = capsys.readouterr().err.splitlines()
    assert all('hidden' in note or 'other than' in note for note in notes), notes


class _Silent:
    """Where findings are printed."""

    def print(self, *args, **style):
        """Prints nothing."""


def test_every_table_has_a_preset():
    used = set()
    for name in FOLDERS:
        recipe, _, variant = name.partition(':')
        config = load_config(recipe, *([variant] if variant else []))
        used.add(config.data.classes.removeprefix('published:'))
    assert used == {path.stem for path in TABLES.glob('*.csv')}


def test_tables_of_cityscapes_classes_are_those_of_cityscapesscripts(tmp_path):
    ids = load_config('kitti').data
    kitti = class_file.read(class_file.locate(tmp_path, ids.classes), ids.ignore)
    bdd = class_file.read(TABLES / 'bdd100k.csv', (255,))
    for table in (kitti, bdd):
        assert (table.names, table.colors) == (cityscapes.CLASSES, cityscapes.COLORS)
    np.testing.assert_array_equal(kitti.label_map[:256], cityscapes.LABEL_MAP)


def test_the_eleven_ids_that_do_not_occur_in_coco_stuff():
    with (TABLES / 'coco_stuff.csv').open() as file:
        ids = {int(row['ids']) for row in csv.DictReader(file)}
    # nightrome/cocostuff: labels.txt, README.md: 182 ids, of which 11 have no segmentation.
    assert sorted(set(range(182)) - ids) == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
