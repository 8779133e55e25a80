"""Cityscapes (Cordts et al., 2016): not readable yet, its name is taken."""

from ggcf_jax.errors import InputError


def build(data):
    """Says what is missing."""
    del data
    raise InputError(
        "config.data.name='cityscapes': this version cannot read Cityscapes yet; use "
        'configs/camvid.py or configs/street_scenes.py'
    )


DATASETS = {'cityscapes': build}
