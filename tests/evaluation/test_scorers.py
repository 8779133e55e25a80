"""Our numbers are those of the benchmarks' own scorers."""

import copy
import math

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import labels as all_labels

from ggcf_jax.data.datasets import ade20k, cityscapes
from ggcf_jax.data.records.codec import map_labels
from ggcf_jax.evaluation import metrics
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.prediction import outputs


def _evaluation(labels, predictions, classes, categories=()):
    """What our evaluation makes of train ids [n, h, w]."""
    matrices = metrics.confusion_matrices(labels, predictions, len(classes), 255)
    return Evaluation('validation', classes, categories, np.asarray(matrices).sum(0), (), ())


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    """Label and prediction files of three images, and their train ids; train never occurs."""
    folder, rng = tmp_path_factory.mktemp('city'), np.random.default_rng(0)
    ids = np.array(cityscapes.SERVER_IDS, np.uint8)
    results = outputs.Results(
        folder,
        cityscapes.COLORS,
        ids,
        palette=False,
        suffix='_labelIds',
        overlays=False,
        probabilities=False,
    )
    raw_ids = [label.id for label in all_labels if label.id >= 0 and label.name != 'train']
    never = cityscapes.CLASSES.index('train')
    files, truths, guesses = [], [], []
    for i in range(3):
        name = f'munster_{i:06d}_000019'
        raw = rng.choice(raw_ids, (64, 128)).astype(np.uint8)  # ignored classes among them
        truth = map_labels(raw, cityscapes.LABEL_MAP, name)
        wrong = rng.choice(np.delete(np.arange(19), never), truth.shape)
        guess = np.where((truth < 255) & (rng.random(truth.shape) < 0.6), truth, wrong)
        guess = guess.astype(np.uint8)
        results.write(name, np.zeros((64, 128, 3), np.uint8), guess)
        path = folder / f'{name}_gtFine_labelIds.png'
        cv2.imwrite(str(path), raw)
        files.append((str(results.label_path(name)), str(path)))
        truths.append(truth)
        guesses.append(guess)
    return files, np.stack(truths), np.stack(guesses)


def test_cityscapes_scores_are_those_of_the_official_scorer(city):
    files, truths, guesses = city
    args = copy.copy(official.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    theirs = official.evaluateImgLists(*map(list, zip(*files)), args)
    ours = _evaluation(truths, guesses, cityscapes.CLASSES, cityscapes.CATEGORIES)

    ids = list(cityscapes.SERVER_IDS)
    matrix = np.array(theirs['confMatrix'])
    np.testing.assert_array_equal(ours.matrix, matrix[np.ix_(ids, ids)])
    assert matrix[:, ids].sum() == matrix.sum()  # nothing but the 19 classes is predicted
    for name, iou in ours.iou.items():
        score = theirs['classScores'][name]
        assert (iou is None and math.isnan(score)) or iou == score, name
    assert ours.iou['train'] is None
    assert ours.miou == pytest.approx(theirs['averageScoreClasses'], rel=1e-12)
    assert set(ours.category_iou) == {'flat', 'construction', 'object', 'nature', 'sky', 'human',
                                      'vehicle'}  # fmt: skip
    for name, iou in ours.category_iou.items():
        assert iou == theirs['categoryScores'][name], name
    assert ours.category_miou == pytest.approx(theirs['averageScoreCategories'], rel=1e-12)


def test_the_official_scorer_finds_our_files(city):
    files, _, _ = city
    args = copy.copy(official.args)
    args.predictionPath = str(files[0][0].rsplit('/', 1)[0])
    for prediction, truth in files:
        assert official.getPrediction(args, truth) == prediction


def _scene_parsing(pairs, classes):
    """Pixel accuracy and mean IoU as the ADE20K benchmark defines them.

    An independent twin of `accuracy` and `intersectionAndUnion` of the CSAIL group's published
    evaluation, on raw labels: 0 is unlabelled, 1..classes the classes.
    """
    right = labelled = 0
    intersection, area_sum = np.zeros(classes), np.zeros(classes)

    def areas(values):
        return np.histogram(values, bins=classes, range=(0.5, classes + 0.5))[0]

    for label, prediction in pairs:
        valid = label > 0
        right += int((valid & (prediction == label)).sum())
        labelled += int(valid.sum())
        prediction = prediction * valid
        intersection += areas(prediction * (prediction == label))
        area_sum += areas(prediction) + areas(label)
    return right / labelled, float((intersection / (area_sum - intersection)).mean())


def test_ade20k_scores_are_those_of_the_benchmark(rng):
    labels = rng.integers(0, 151, (3, 90, 100)).astype(np.uint8)
    noise = rng.integers(1, 151, labels.shape)
    predictions = np.where((rng.random(labels.shape) < 0.4) & (labels > 0), labels, noise)
    accuracy, miou = _scene_parsing(zip(labels, predictions), 150)
    truths = np.stack([map_labels(each, ade20k.LABEL_MAP, 'x') for each in labels])
    ours = _evaluation(truths, (predictions - 1).astype(np.uint8), ade20k.CLASSES)
    assert ours.pixel_accuracy == pytest.approx(accuracy, rel=1e-12)
    assert len(ours.iou) == 150 and None not in ours.iou.values()
    assert ours.miou == pytest.approx(miou, rel=1e-12)
