"""The memory of a domain comes back as it was kept, and damage is one line."""

import numpy as np
import pytest

from domains.errors import ArtefactError
from prototypes import Memory

ARRAYS = {
    "style.mean": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "prototypes.codes": np.array([[1, -2], [3, 4]], np.int64),
    "half": np.arange(3, dtype=np.float16),
    "count": np.float64(7.5),
    "none": np.empty((0, 4), np.float32),
}


def test_it_reads_back_what_it_wrote(tmp_path):
    Memory("plaza", "ab" * 32, ARRAYS).write(tmp_path / "memory.safetensors")
    back = Memory.read(tmp_path / "memory.safetensors")
    assert (back.domain, back.feature_space) == ("plaza", "ab" * 32)
    assert set(back.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert back.arrays[name].dtype == array.dtype
        assert back.arrays[name].shape == array.shape
        assert np.array_equal(back.arrays[name], array)
    assert [file.name for file in tmp_path.iterdir()] == ["memory.safetensors"]


def test_its_size_is_the_bytes_of_its_arrays():
    assert Memory("plaza", "x", ARRAYS).bytes == 6 * 4 + 4 * 8 + 3 * 2 + 8
    assert Memory("plaza", "x", {}).bytes == 0


def test_a_method_that_keeps_nothing_still_names_its_domain(tmp_path):
    Memory("plaza", "x", {}).write(tmp_path / "m")
    assert Memory.read(tmp_path / "m").domain == "plaza"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone", "folder"])
def test_damage_is_one_line_that_names_the_file(tmp_path, damage):
    file = tmp_path / "memory.safetensors"
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        Memory("plaza", "x", ARRAYS).write(file)
        file.write_bytes({"cut": file.read_bytes()[:-9], "empty": b"", "text": b"not a memory at all"}[damage])
    with pytest.raises(ArtefactError, match=r"memory\.safetensors") as caught:
        Memory.read(file)
    assert "\n" not in str(caught.value)


def test_other_tensors_are_no_memory(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArtefactError, match="not the memory of a domain"):
        Memory.read(tmp_path / "weights.safetensors")


def test_memories_of_the_first_version_are_read(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3, np.float32)}, tmp_path / "old", metadata={"domain": "plaza", "feature_space": "abc"})
    back = Memory.read(tmp_path / "old")
    assert (back.domain, back.feature_space, back.arrays["x"].tolist()) == ("plaza", "abc", [1, 1, 1])


def test_equal_memories_are_equal_bytes(tmp_path):
    for name in map(str, range(8)):
        Memory("plaza", "x", ARRAYS).write(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in map(str, range(8))}) == 1


def test_a_header_that_is_no_json_is_one_line(tmp_path):
    from safetensors.numpy import save_file

    save_file({}, tmp_path / "m", metadata={"memory": "{"})
    with pytest.raises(ArtefactError, match="can't read memory") as caught:
        Memory.read(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_identities_are_taken_out_and_the_domain_stays():
    arrays = {
        "prototypes.mean": np.arange(8, dtype=np.float16).reshape(4, 2),
        "prototypes.spread": np.ones((4, 2), np.float16),
        "style.x": np.ones(4),
    }
    memory = Memory("plaza", "x", arrays)
    left = memory.without([1, 3], 4)
    assert left.arrays["prototypes.mean"].tolist() == [[0, 1], [4, 5]]
    assert left.arrays["prototypes.spread"].shape == (2, 2)
    assert left.arrays["style.x"].shape == (4,)
    assert (left.domain, left.feature_space) == ("plaza", "x")
    assert memory.arrays["prototypes.mean"].shape == (4, 2)
    assert set(memory.without(range(4), 4).arrays) == {"style.x"}
    assert memory.without([], 4).bytes == memory.bytes
    with pytest.raises(ArtefactError, match="not one row for each of 5 identities"):
        memory.without([1], 5)
    assert (memory.emptied().domain, memory.emptied().feature_space, dict(memory.emptied().arrays)) == ("", "x", {})
