"""The main job on real crops: learn, score, export, and score again through ONNX Runtime."""

import json
import shutil

import pytest

import domains
from deploy import Encoder, Gallery
from deploy.gallery import open_or_create
from deploy.gallery.sources import fill, read_sources
from domains.crops import read_crop
from reid.config import build_config
from reid.export import Serving, export_run
from reid.run import Run
from reid.scores.evaluate import evaluate

TRAIN = {"viper": 632, "3dpes": 499, "caviar4reid": 720, "prid2011": 385, "ilids": 239, "sarc3d": 0, "towncentre": 0}


@pytest.mark.parametrize("name", TRAIN)
def test_a_real_domain_opens_with_its_published_counts(real_data, name):
    opened = domains.open(real_data / name)
    assert len(opened.train) == TRAIN[name]
    assert not set(opened.train.pids.tolist()) & set(opened.query.pids.tolist())


@pytest.mark.slow
def test_learn_two_real_domains_export_and_find_people(real_data, tmp_path):
    weights = real_data.parent / "weights" / "mobilenetv2_100.person.fp16.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there")
    for name in ("ilids", "prid2011"):
        shutil.copytree(real_data / name, tmp_path / "sites" / name)
    settings = {
        "model": {"backbone": "mobilenetv2_100", "weights": str(weights)},
        "crop": {"height": 128, "width": 64},
        "train": {"iterations": 6, "identities": 8, "instances": 2},
    }
    run = Run.create(tmp_path / "run", build_config(settings))
    ilids, prid = (domains.open(tmp_path / "sites" / name) for name in ("ilids", "prid2011"))
    run.learn(ilids)
    run.fill_scores([ilids, prid])
    for file in ilids.files(ilids.train):
        file.unlink()  # step 2 must not need them
    run.learn(prid)
    assert run.fill_scores() == []
    assert run.scores.value(0, "ilids") > 40, "the person-trained start knows people already"
    export_run(run, tmp_path / "bundle")
    export_run(run, tmp_path / "own", serving=Serving(metric="site:ilids"))  # a run scores a site in its own metric
    own = Encoder.load(tmp_path / "own")
    through_onnx = evaluate(ilids, lambda crops: own(crops).view(type(crops)), run.stores).mAP
    assert through_onnx == pytest.approx(run.scores.value(2, "ilids"), abs=0.1)
    encoder = Encoder.load(tmp_path / "bundle")
    with open_or_create(tmp_path / "gallery", tmp_path / "bundle") as gallery:
        filled = fill(gallery, encoder, read_sources(ilids.root, split="gallery", labels=True))
        assert filled.added == len(ilids.gallery)
        row = 0
        found = gallery.search(encoder([read_crop(ilids.files(ilids.query)[row])]), k=20)[0]
    assert [match.rank for match in found] == list(range(1, 21))
    assert found[0].score >= found[-1].score
    assert Gallery.open(tmp_path / "gallery").info()
    assert json.loads((run.folder / "scores.json").read_text())["rows"][2]["scores"]["ilids"]["queries"] == 60
