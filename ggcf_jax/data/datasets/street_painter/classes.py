"""The 19 Cityscapes classes in train-id order, with the names and colours of cityscapesscripts."""

from cityscapesscripts.helpers.labels import labels as _labels

_EVALUATED = sorted(
    (label for label in _labels if 0 <= label.trainId < 255), key=lambda label: label.trainId
)
CLASSES = tuple(label.name for label in _EVALUATED)
COLORS: tuple[tuple[int, int, int], ...] = tuple(tuple(label.color) for label in _EVALUATED)
CATEGORIES = tuple(label.category for label in _EVALUATED)
IGNORE = 255

(
    ROAD,
    SIDEWALK,
    BUILDING,
    WALL,
    FENCE,
    POLE,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    VEGETATION,
    TERRAIN,
    SKY,
    PERSON,
    RIDER,
    CAR,
    TRUCK,
    BUS,
    TRAIN,
    MOTORCYCLE,
    BICYCLE,
) = (
    CLASSES.index(name)
    for name in (
        'road',
        'sidewalk',
        'building',
        'wall',
        'fence',
        'pole',
        'traffic light',
        'traffic sign',
        'vegetation',
        'terrain',
        'sky',
        'person',
        'rider',
        'car',
        'truck',
        'bus',
        'train',
        'motorcycle',
        'bicycle',
    )
)
