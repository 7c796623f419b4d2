"""A memory comes back as it was written, says its size, and a damaged one is refused."""

import numpy as np
import pytest

from domains.errors import ArtefactError
from prototypes import Memory


def test_round_trip_and_size(tmp_path):
    memory = Memory("north", "ab12", {"means": np.arange(6, dtype=np.float16).reshape(2, 3), "count": np.array([4], np.int64)})
    memory.write(tmp_path / "m.safetensors")
    back = Memory.read(tmp_path / "m.safetensors")
    assert (back.domain, back.feature_space, back.bytes) == ("north", "ab12", 20)
    assert all(np.array_equal(value, memory.arrays[name]) for name, value in back.arrays.items())


def test_an_empty_memory_is_a_memory(tmp_path):
    Memory("north", "ab12", {}).write(tmp_path / "m.safetensors")
    assert Memory.read(tmp_path / "m.safetensors").bytes == 0


@pytest.mark.parametrize("data", [b"", b"hello", None])
def test_damage_is_one_line(tmp_path, data):
    if data is not None:
        (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match="can't read memory"):
        Memory.read(tmp_path / "m.safetensors")


def test_another_file_is_no_memory(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ArtefactError, match="names neither"):
        Memory.read(tmp_path / "m.safetensors")
