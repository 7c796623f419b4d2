"""``reid evaluate --open-set`` with a run: the closed-set scores are the run's own, the open-set ones those of its
embeddings.
"""

import json
import sys

import pytest

from domains.openset import open_set
from domains.scoring import Labels
from reid.cli import main
from reid.config import build_config
from reid.run import Run

SETTINGS = {"model": {"backbone": "test_resnet", "weights": "none", "dim": 16}, "crop": {"height": 64, "width": 32}}


@pytest.fixture
def site(tiny_domain, tmp_path):
    return tiny_domain(tmp_path / "site", people=20)


def test_of_a_run(site, tmp_path, monkeypatch, capsys):
    run = Run.create(tmp_path / "run", build_config(SETTINGS))

    def evaluated(*words):
        monkeypatch.setattr(sys, "argv", ["reid", "evaluate", str(run.folder), str(site.root), "--json", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)["site"]

    embed = run.embedder(0)
    query, gallery = (run.stores.get(site, split) for split in (site.query, site.gallery))
    wanted = open_set(
        embed(query.crops), embed(gallery.crops), Labels.from_split(query.split), Labels.from_split(gallery.split)
    )
    for words in ((), ("--rerank",)):
        found = evaluated("--open-set", *words)
        assert found.pop("open_set") == wanted.to_dict()
        assert found == evaluated(*words)
