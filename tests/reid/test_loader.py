"""Crops are decoded once, broken ones left out and named, and large stores lie in a file without a name."""

import numpy as np
import pytest

import domains
from domains.crops import CropSpec
from domains.errors import DataError
from reid.loader import CropStore, StoreCache

SPEC = CropSpec(32, 16)


def test_the_store_holds_what_decoding_gives_in_order(tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    store = CropStore.decode(site, site.train, SPEC)
    assert store.crops.shape == (len(site.train), 32, 16, 3)
    for row, file in enumerate(site.files(site.train)):
        assert np.array_equal(store.crops[row], SPEC.read(file))


def test_above_the_limit_it_is_memory_mapped_and_equal(tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    small, mapped = (CropStore.decode(site, site.train, SPEC, limit_mb=limit) for limit in (100, 0))
    assert isinstance(mapped.crops, np.memmap)
    assert not isinstance(small.crops, np.memmap)
    assert np.array_equal(small.crops, mapped.crops)


@pytest.mark.parametrize("limit", [0, 100])
def test_broken_images_are_left_out_and_named(tiny_domain, tmp_path, limit):
    site = tiny_domain(tmp_path / "site")
    (site.root / site.train.paths[0]).write_bytes(b"")
    (site.root / site.train.paths[5]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    store = CropStore.decode(site, site.train, SPEC, limit_mb=limit)
    assert [item.path for item in store.left_out] == [site.train.paths[0], site.train.paths[5]]
    assert "empty" in store.left_out[0].reason
    kept = [path for path in site.train.paths if path not in {item.path for item in store.left_out}]
    assert list(store.split.paths) == kept
    for row, path in enumerate(kept):
        assert np.array_equal(store.crops[row], SPEC.read(site.root / path))


def test_nothing_readable_is_an_error(tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    for path in site.train.paths:
        (site.root / path).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of its \d+ images can be read"):
        CropStore.decode(site, site.train, SPEC)


def test_the_cache_decodes_once_and_lets_go_of_the_oldest(tiny_domain, tmp_path):
    sites = [tiny_domain(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    cache = StoreCache(SPEC, 100)
    first = cache.get(sites[0], sites[0].query)
    assert cache.get(sites[0], sites[0].query) is first
    assert cache.get(domains.open(sites[0].root), sites[0].query) is first
    tight = StoreCache(SPEC, 0)
    one = tight.get(sites[0], sites[0].query)
    tight.get(sites[1], sites[1].query)
    assert tight.get(sites[0], sites[0].query) is not one
