"""Memory of the training step with the rows of an image over 1, 2, 4 and 8 devices.

    python experiments/space_memory.py --config=configs/cityscapes.py:r101 --size=1024x2048

compiles the step of a configuration for virtual CPU devices, without running it, and prints a
Markdown table: temporary memory of each device, and the largest array of each kind of collective.
Compilers for accelerators lay arrays out differently; the shares, not the sizes, carry over.
"""

import os
import re

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from ggcf_jax import mesh as mesh_lib
from ggcf_jax import models, train_step
from ggcf_jax import state as state_lib

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_SIZE = flags.DEFINE_string('size', '1024x2048', 'Height x width of the image.')
_SPACES = flags.DEFINE_list('spaces', ['1', '2', '4', '8'], 'Numbers of devices.')
_CLASSES = flags.DEFINE_integer('classes', 19, 'Classes of the data set.')

COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')


def compile_step(config, space: int, size: tuple[int, int]):
    """The compiled training step of one image over `space` devices."""
    mesh = mesh_lib.make_mesh(jax.devices()[:space], space)
    graphdef, _, _ = models.abstract(config, _CLASSES.value)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map(
        lambda x: placed(x, mesh_lib.replicated(mesh)),
        jax.eval_shape(state_lib.creator(config, _CLASSES.value, mesh)),
    )
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((1, *size), jnp.uint8)
    dealt = mesh_lib.by_batch(mesh)
    batch = {'image': placed(image, dealt), 'label': placed(label, dealt)}
    with jax.set_mesh(mesh):
        return train_step.build(config.train, (), graphdef, mesh).lower(state, batch).compile()


def largest(text: str) -> dict[str, tuple[int, int]]:
    """Kind of collective -> (how many there are, elements of the largest)."""
    found = {}
    for line in re.finditer(rf'= (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\(', text):
        shapes = re.findall(r'\w+\[([\d,]*)\]', line[1])
        elements = max(int(np.prod([int(n) for n in s.split(',') if n])) for s in shapes)
        count, most = found.get(line[2], (0, 0))
        found[line[2]] = (count + 1, max(most, elements))
    return found


def main(argv: list[str]) -> None:
    del argv
    height, width = map(int, _SIZE.value.split('x'))
    print('| `mesh.space` | temporary memory of a device, GiB | collectives: number, largest |')
    print('|---|---|---|')
    for space in map(int, _SPACES.value):
        compiled = compile_step(_CONFIG.value, space, (height, width))
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
        kinds = [
            f'{kind} {count}, {elements / 2**20:.2f} Mi'
            for kind, (count, elements) in sorted(largest(compiled.as_text()).items())
        ]
        print(f'| {space} | {memory:.2f} | {"; ".join(kinds) or "none"} |', flush=True)


if __name__ == '__main__':
    app.run(main)
