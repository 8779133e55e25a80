"""ADE20K scene parsing (Zhou et al., 2017): not readable yet, its name is taken."""

from ggcf_jax.errors import InputError


def build(data):
    """Says what is missing."""
    del data
    raise InputError(
        "config.data.name='ade20k': this version cannot read ADE20K yet; use "
        'configs/camvid.py or configs/street_scenes.py'
    )


DATASETS = {'ade20k': build}
