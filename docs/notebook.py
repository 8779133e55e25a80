# %% [markdown]
# # From painted streets to attention, in ten cells
#
# Open this file in an editor that knows `# %%` cells (VS Code, Spyder, JupyterLab with jupytext),
# or run it in the checkout: `PYTHONPATH=. python docs/notebook.py`. It needs no data and no
# accelerator, but five minutes of two CPU cores, most of them for training. Every picture is also
# written into the folder `notebook/`.

# %% 1. Settings
import pathlib

import matplotlib.pyplot as plt
import numpy as np

import ggcf_jax
from configs import street_scenes
from ggcf_jax import data, train
from ggcf_jax.attention import parse
from ggcf_jax.display.pictures import colorize

FOLDER = pathlib.Path('notebook')
SETTINGS = {'train.steps': 360, 'data.num_images': (400, 50, 50)}

config = street_scenes.get_config()
config.data.data_dir = str(FOLDER / 'data')
config.update_from_flattened_dict(SETTINGS)


def grid(name, pictures, titles, columns):
    """Shows pictures in rows of `columns`, and writes them."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.1 * rows), squeeze=False)
    for place in axes.flat:
        place.axis('off')
    for place, picture, title in zip(axes.flat, pictures, titles):
        place.imshow(picture, vmin=0)
        place.set_title(title, fontsize=9)
    figure.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f'{name}.png', dpi=80)


# %% 2. The data: streets that a program paints, with the classes of Cityscapes
dataset = data.build(config.data)
source = dataset.source('validation')
samples = [dataset.decode(source[i]) for i in range(3)]
images = [sample['image'] for sample in samples]
labels = [sample['label'] for sample in samples]
grid(
    'scenes',
    images + [colorize(x, dataset.colors, 255) for x in labels],
    ['image'] * 3 + ['label'] * 3,
    3,
)

# %% 3. The graphs: which positions of the feature map one query sees
stride = config.model.backbone.stride
height, width = (side // stride for side in config.data.image_size)
heads = parse(config.model.heads)
seen = [np.asarray(head.edges_of(height // 2, width // 2, height, width)) for head in heads]
grid('graphs', seen, [f'{head}: {edges.sum()} neighbours' for head, edges in zip(heads, seen)], 3)

# %% 4. The batches that training sees: rescaled, cropped, mirrored
batches = data.training_batches(config, dataset, 0, data.pipeline.Shard())
batch = next(batches)
batches.close()
grid('crops', list(batch['image'][:3]), ['crop'] * 3, 3)

# %% 5. Training; a second call goes on where the first one stopped
evaluation = train.train_and_evaluate(config, FOLDER / 'run')
print(f'mean IoU {evaluation.miou:.3f}')

# %% 6. What it learned, class by class
order = sorted(evaluation.iou, key=lambda name: -np.nan_to_num(evaluation.iou[name]))
figure, place = plt.subplots(figsize=(6, 4))
place.barh(order[::-1], [evaluation.iou[name] for name in order[::-1]])
place.set_xlabel('IoU on the validation images')
figure.tight_layout()
figure.savefig(FOLDER / 'classes.png', dpi=80)

# %% 7. Predictions
model = ggcf_jax.load(FOLDER / 'run')
found = [colorize(x, model.colors, 255) for x in model.predict(images)]
grid('predictions', images + found, ['image'] * 3 + ['prediction'] * 3, 3)

# %% 8. How sure it is: the probability of the most probable class
sure = [model.probabilities(image).max(-1) for image in images]
titles = [f'probability, {100 * p.mean():.0f} % on average' for p in sure]
grid('confidence', images + sure, ['image'] * 3 + titles, 3)

# %% 9. Where each head looks from one pixel, the cross
y, x = config.data.image_size[0] * 5 // 8, config.data.image_size[1] // 2
weights = model.attention(images[0], (y, x))
marked = images[0].copy()
marked[y - 1 : y + 2, max(x - 9, 0) : x + 10] = marked[max(y - 9, 0) : y + 10, x - 1 : x + 2] = (
    255,
    0,
    255,
)
names = [f'{head}: at most {100 * w.max():.1f} %' for head, w in zip(model.network.heads, weights)]
grid('attention', [marked, *weights], ['from the cross', *names], 4)

# %% 10. Context Pruning: half of the neighbours, those of the largest affinity
config.eval.pruning = 'local:drop=0.5,grid:drop=0.5'
pruned = ggcf_jax.load(FOLDER / 'run', config=config)
same = [(a == b).mean() for a, b in zip(model.predict(images), pruned.predict(images))]
print(f'{100 * np.mean(same):.1f} % of the pixels keep their class with half of each context')
grid(
    'pruned',
    [marked, *pruned.attention(images[0], (y, x))],
    ['from the cross', *map(str, model.network.heads)],
    4,
)
