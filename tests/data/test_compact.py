import numpy as np

from ggcf_jax import data
from ggcf_jax.data import compact, pipeline


def test_labels_are_exact_and_images_close(camvid_folder, tiny_config, tmp_path):
    original = data.build(tiny_config.data)
    made = compact.dataset(original, ['train'], tmp_path / 'compact', 2)
    assert set(made.sources) == {'train'}

    def examples(dataset):
        source = dataset.source('train')
        return {e['name']: e for e in (dataset.decode(source[i]) for i in range(len(source)))}

    pairs = examples(original), examples(made)
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == 6
    for name, example in pairs[0].items():
        np.testing.assert_array_equal(pairs[1][name]['label'], example['label'])
        error = pairs[1][name]['image'].astype(float) - example['image']
        assert np.sqrt((error**2).mean()) < 4  # the fields have sharp edges, the worst for JPEG


def test_it_is_made_once_and_trained_on(tiny_config, tmp_path):
    tiny_config.data.storage = 'compact'
    dataset = data.build(tiny_config.data)

    def batch():
        batches = data.training_batches(tiny_config, dataset, 0, pipeline.Shard())
        first = next(batches)
        batches.close()
        return first

    first = batch()
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'prepared').rglob('*') if p.is_file()}
    assert any('ggcf_jax_compact' in str(p) for p in files)
    second = batch()
    assert {p: p.stat().st_mtime_ns for p in files} == files
    np.testing.assert_array_equal(first['image'], second['image'])
    assert first['image'].shape == (8, 24, 24, 3)
