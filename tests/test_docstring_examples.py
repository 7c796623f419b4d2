"""The examples in the docstrings of public names, run where their files are."""

import doctest

import pytest

import domains
from deploy import Encoder, Gallery
from domains.synthetic import make_domain
from reid import Config, Run, Term
from reid.export import export_run

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 4, "identities": 4, "instances": 2},
}
DOCUMENTED = [domains.open, Encoder, Gallery.add, Gallery.search, Run.learn, Term]
"""In an order in which each finds what it needs: a search comes after what was added."""


@pytest.mark.slow
def test_examples_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, style, seed in (("north", "plaza", 0), ("south", "corridor", 1)):
        make_domain(tmp_path / "sites" / name, style, identities=10, cameras=2, seed=seed)
    run = Run.create(tmp_path / "runs" / "site", Config.model_validate(SETTINGS))
    run.learn(domains.open("sites/north"), method="fine_tune")
    export_run(run, tmp_path / "bundle")
    for documented in DOCUMENTED:
        text = documented.__doc__
        assert "Example:\n" in text, documented
        test = doctest.DocTestParser().get_doctest(text, {}, documented.__qualname__, None, None)
        assert test.examples
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0, documented
