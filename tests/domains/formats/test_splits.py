"""The shipped splits, and the real files in the layouts that they are of."""

import json
import os
import random
from pathlib import Path

import pytest
from layouts import draw, rows, viper

from domains.artefact import content_id
from domains.errors import DataError
from domains.formats import drawn, open_domain
from domains.formats.drawn import drawn_split

DATA = os.environ.get("LIFELONG_REID_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LIFELONG_REID_DATA is not set: it names the folder of real domains")


DRAWN = sorted(path.stem for path in drawn.FOLDER.glob("*.json"))


DRAWS = {"viper": 316, "prid2011": 100, "ilids": 59, "caviar4reid": 25, "3dpes": 82, "grid": 125, "cuhk01": 485}


def test_the_shipped_splits_are_what_the_rule_draws():
    assert set(DRAWN) == set(DRAWS)
    rng = random.Random(20261121)
    for name, count in DRAWS.items():
        values = json.loads((drawn.FOLDER / f"{name}.json").read_text())
        drawn_half = values["test" if name == "3dpes" else "train"]
        assert drawn_half == sorted(rng.sample(sorted(values["train"] + values["test"]), count)), name
        assert drawn_split(name).train == set(values["train"]) | set(values["also_train"])


@pytest.mark.parametrize("name", DRAWN)
def test_shipped_splits_are_disjoint_and_sealed(name):
    split = drawn_split(name)
    assert split.train
    assert split.test
    assert not split.train & split.test
    assert split.seed == 20261121


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("viper", 316, 316),
        ("prid2011", 100, 100),
        ("ilids", 60, 60),
        ("caviar4reid", 47, 25),
        ("3dpes", 111, 82),
        ("grid", 125, 125),
        ("cuhk01", 485, 486),
    ],
)
def test_sizes_of_the_shipped_splits(name, train, test):
    split = drawn_split(name)
    assert (len(split.train), len(split.test)) == (train, test)


def test_a_tampered_split_is_refused(tmp_path):
    values = json.loads((drawn.FOLDER / "viper.json").read_text())
    file = tmp_path / "viper.json"
    moved = values | {"train": values["train"][1:], "test": [*values["test"], values["train"][0]]}
    for bad in (moved, values | {"seed": 1}, values | {"sha256": "0" * 64}, {**values, "sha256": None}):
        file.write_text(json.dumps(bad))
        with pytest.raises(DataError, match="was changed after it was drawn"):
            drawn_split("viper", tmp_path)
    other = {key: value for key, value in values.items() if key != "sha256"} | {"domain": "grid"}
    file.write_text(json.dumps(other | {"sha256": content_id(other)}))
    with pytest.raises(DataError, match="was changed"):
        drawn_split("viper", tmp_path)
    for text in ("[]", "{}", '{"train": 3}', "nothing"):
        file.write_text(text)
        with pytest.raises(DataError, match="reinstall"):
            drawn_split("viper", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="reinstall"):
        drawn_split("viper", tmp_path)


def test_identities_beside_the_shipped_list_are_noted_and_left_out(tmp_path):
    expected = viper(tmp_path)
    draw(tmp_path, "cam_a/999_0.bmp", "cam_b/999_90.bmp")
    domain = open_domain(tmp_path)
    assert rows(domain) == expected
    assert any("630 of the 632 published identities are not here" in note for note in domain.notes)
    assert any("1 identities are not in the shipped split and are left out: 999" in note for note in domain.notes)


@needs_data
@pytest.mark.parametrize("name", ["viper", "prid2011", "ilids", "caviar4reid", "3dpes"])
def test_real_names_in_the_named_layout_give_the_published_split(tmp_path, name):
    """The names of the real files, on drawn images and without the table, open as the layout and give the same rows as
    the table.
    """
    real = Path(DATA) / name
    if not real.is_dir():
        pytest.skip(f"{real} is not there")
    table_domain = open_domain(real)
    root = tmp_path / name
    for _, split in table_domain.splits():
        for path in split.paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    domain = open_domain(root)
    assert domain.format == name
    assert rows(domain) == rows(table_domain)
    assert not any("left out" in note or "not here" in note for note in domain.notes)


@needs_data
def test_all_real_domains_open():
    for folder in sorted(path for path in Path(DATA).iterdir() if (path / "domain.csv").is_file()):
        domain = open_domain(folder)
        assert domain.format == "csv"
        assert len(domain.query)
        assert all((folder / path).is_file() for path in domain.query.paths)
