"""Crops are decoded once, in order; a broken image is left out and named."""

import errno
import os
import shutil

import numpy as np
import pytest

import domains
from domains.crops import CropSpec
from domains.domain import Domain, Split
from domains.errors import DataError
from reid.batches.loader import CropStore, StoreCache

SPEC = CropSpec(32, 16)
CROP_BYTES = 32 * 16 * 3


@pytest.fixture
def site(tiny_domain, tmp_path):
    return tiny_domain(tmp_path / "site")


def broken(site, *positions):
    names = [site.train.paths[at] for at in positions]
    for kind, name in enumerate(names):
        file = site.root / name
        if kind % 3 == 0:
            file.write_bytes(file.read_bytes()[:100])
        elif kind % 3 == 1:
            file.unlink()
        else:
            file.write_text("not an image")
    return names


def test_every_crop_in_order(site):
    told = []
    store = CropStore.decode(site, site.train, SPEC, progress=told.append)
    assert store.crops.shape == (len(site.train), 32, 16, 3)
    assert store.crops.dtype == np.uint8
    assert len(store) == len(site.train) == sum(told)
    for crop, file in zip(store.crops, site.files(site.train), strict=True):
        assert np.array_equal(crop, SPEC.read(file))
    assert store.left_out == ()


@pytest.mark.parametrize("limit", [4096, 0])
def test_broken_images_are_left_out_and_named(site, limit):
    names = broken(site, 0, 3, 4, len(site.train) - 1)
    store = CropStore.decode(site, site.train, SPEC, limit_mb=limit)
    kept = [row for row, path in enumerate(site.train.paths) if path not in names]
    assert list(store.split.paths) == [site.train.paths[row] for row in kept]
    assert store.split.pids.tolist() == site.train.pids[kept].tolist()
    assert store.split.camids.tolist() == site.train.camids[kept].tolist()
    assert len(store.crops) == len(kept)
    for crop, file in zip(store.crops, site.files(store.split), strict=True):
        assert np.array_equal(crop, SPEC.read(file))
    assert [row.path for row in store.left_out] == names
    assert all(row.path in row.reason for row in store.left_out)


def test_a_scratch_file_holds_the_same_crops_and_has_no_name(site, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    held = CropStore.decode(site, site.train, SPEC)
    mapped = CropStore.decode(site, site.train, SPEC, limit_mb=0)
    assert isinstance(mapped.crops, np.memmap)
    assert not isinstance(held.crops, np.memmap)
    assert np.array_equal(held.crops, mapped.crops)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_before_anything_is_decoded(site, monkeypatch, code):
    def full(descriptor, offset, size):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    monkeypatch.setattr(CropSpec, "read", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(DataError, match=r"can't reserve 1 MiB .*TMPDIR.*storage\.crop_memory_mb") as caught:
        CropStore.decode(site, site.train, SPEC, limit_mb=0)
    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scratch_file_has_its_room_on_the_disk_from_the_start(site, monkeypatch):
    asked, reserve = [], os.posix_fallocate
    monkeypatch.setattr(
        "os.posix_fallocate", lambda descriptor, offset, size: (asked.append(size), reserve(descriptor, offset, size))
    )
    CropStore.decode(site, site.train, SPEC, limit_mb=0)
    assert asked == [len(site.train) * CROP_BYTES]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None])
def test_where_no_room_can_be_reserved_the_file_is_used_as_it_is(site, monkeypatch, code):
    def unknown(descriptor, offset, size):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    else:
        monkeypatch.setattr("os.posix_fallocate", unknown)
    assert np.array_equal(
        CropStore.decode(site, site.train, SPEC, limit_mb=0).crops, CropStore.decode(site, site.train, SPEC).crops
    )


def test_no_readable_image_is_an_error_that_names_the_first(site):
    broken(site, *range(len(site.train)))
    with pytest.raises(
        DataError, match=rf"none of its {len(site.train)} images can be read; the first: .*{site.train.paths[0]}"
    ):
        CropStore.decode(site, site.train, SPEC)


def test_an_empty_split_is_an_empty_store(tmp_path):
    store = CropStore.decode(Domain("none", tmp_path, "table", (), ()), Split(), SPEC)
    assert store.crops.shape == (0, 32, 16, 3)


def test_chunks_change_nothing(site, monkeypatch):
    whole = CropStore.decode(site, site.train, SPEC).crops
    monkeypatch.setattr("reid.batches.loader.CHUNK", 5)
    told = []
    assert np.array_equal(CropStore.decode(site, site.train, SPEC, progress=told.append).crops, whole)
    assert told == [5] * (len(site.train) // 5) + [len(site.train) % 5] * (len(site.train) % 5 > 0)


# ---------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def decoded(monkeypatch):
    """Names of the domains decoded so far."""
    names, decode = [], CropStore.decode.__func__

    def counted(cls, domain, *rest, **options):
        names.append(domain.name)
        return decode(cls, domain, *rest, **options)

    monkeypatch.setattr(CropStore, "decode", classmethod(counted))
    return names


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / name, seed=seed, people=14) for seed, name in enumerate("abc")]


def test_a_split_is_decoded_once(sites, decoded):
    cache = StoreCache(SPEC, 64)
    first = cache.get(sites[0], sites[0].query)
    again = domains.open(sites[0].root)
    assert cache.get(again, again.query) is first
    assert cache.get(sites[0], sites[0].gallery) is not first
    assert decoded == ["a", "a"]


def test_the_least_recently_used_goes_first(sites, decoded):
    room = 2 * len(sites[0].gallery) * CROP_BYTES / 2**20
    cache = StoreCache(SPEC, room)
    for at in (0, 1, 0, 2, 0, 1):
        cache.get(sites[at], sites[at].gallery)
    assert decoded == ["a", "b", "c", "b"], "c pushed b out, and a, used since, stayed"


def test_a_split_too_large_for_the_cache_is_still_given(sites, decoded):
    cache = StoreCache(SPEC, 0)
    for _ in range(2):
        assert len(cache.get(sites[0], sites[0].gallery)) == len(sites[0].gallery)
    cache.get(sites[1], sites[1].gallery)
    cache.get(sites[0], sites[0].gallery)
    assert decoded == ["a", "b", "a"]


def test_changed_data_is_decoded_again(sites, decoded, tiny_domain, tmp_path):
    cache = StoreCache(SPEC, 64)
    old = cache.get(sites[0], sites[0].query)
    shutil.rmtree(sites[0].root)
    tiny_domain(sites[0].root, seed=9, people=14)
    new = domains.open(sites[0].root)
    assert not np.array_equal(cache.get(new, new.query).crops, old.crops)


def test_a_runs_scratch_file_is_in_its_folder(site, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    (tmp_path / "run").mkdir()
    store = StoreCache(SPEC, 0, tmp_path / "run").get(site, site.train)
    assert isinstance(store.crops, np.memmap)
    assert not list((tmp_path / "run").iterdir())
    with pytest.raises(DataError, match=r"can't reserve 1 MiB .*missing: .*a run on a larger disk.*crop_memory_mb"):
        CropStore.decode(site, site.train, SPEC, limit_mb=0, scratch=tmp_path / "missing")
