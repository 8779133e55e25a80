import os

import pytest

from ggcf_jax import atomic


@pytest.mark.parametrize('name', ['a' * 251 + '.png', 'ä' * 125 + '.png', os.fsdecode(b'b\xe4r')])
def test_the_longest_names_can_be_written(tmp_path, name):
    """The temporary name is not longer than the name itself may be, 255 bytes."""
    atomic.write(tmp_path / name, b'content')
    assert (tmp_path / name).read_bytes() == b'content'
    assert len(list(tmp_path.iterdir())) == 1
