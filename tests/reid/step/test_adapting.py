"""Adapters beside the finished weights: they change nothing that sites share, are a site's own, and can be picked up
where they were.
"""

import numpy as np
import pytest
import torch

from domains.errors import ConfigError, ExportError, UsageError
from reid.config import Method, build_config
from reid.run import Run

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 16},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 10, "identities": 4, "instances": 2, "lr": 0.01, "precision": "fp32"},
    "storage": {"snapshot_seconds": 0},
}
PLAIN = {
    "name": "plain",
    "about": "For a test.",
    "terms": ["cross_entropy", "triplet"],
    "fusion": [{"average": {"weight": 0.5}}],
}
HYPER = {"hypernetwork": {"use": "beside", "chunk": 256, "hidden": 8, "beta": 100.0}}


def method(*adapter, **changed):
    return Method.model_validate({**PLAIN, "adapter": list(adapter), **changed})


BESIDE = method("cross_entropy", "triplet", HYPER)


def learned(folder, sites, how, settings=SETTINGS):
    config = build_config(settings)
    run = Run.create(folder, config)
    for site in sites:
        run.learn(site, method=how, config=config)
    return run


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / f"site{number}", seed=number) for number in range(3)]


def flat(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def crops_of(run, site):
    return run.stores.get(site, site.query).crops


def test_what_sites_share_is_the_same_bit_for_bit_with_adapters_and_without(sites, tmp_path):
    one, two = (
        learned(tmp_path / "one", sites[:2], Method.model_validate(PLAIN)),
        learned(tmp_path / "two", sites[:2], BESIDE),
    )
    for step in (1, 2):
        assert torch.equal(flat(one.model(step)[0]), flat(two.model(step)[0]))
        assert one.steps[step].feature_space == two.steps[step].feature_space


def test_every_learned_site_has_an_adapter_the_first_too_and_another_is_served_by_what_is_shared(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], BESIDE)
    shared = run.model()[0]
    for site in sites[:2]:
        assert not torch.equal(flat(run.route(site)), flat(shared))
        own = run.served(-1)(site)(crops_of(run, site))
        assert not np.allclose(own, run.embedder(-1)(crops_of(run, site)), atol=1e-4)
    assert run.route(sites[2]) is None
    np.testing.assert_array_equal(
        run.served(-1)(sites[2])(crops_of(run, sites[2])), run.embedder(-1)(crops_of(run, sites[2]))
    )
    with pytest.raises(UsageError, match="no route for elsewhere"):
        run.route("elsewhere")


def test_an_adapter_changes_only_what_it_may(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:1], BESIDE)
    shared, own = run.model()[0].state_dict(), run.route(sites[0]).state_dict()
    moved = {name for name in shared if not torch.equal(shared[name], own[name])}
    assert moved
    assert all(name.startswith("backbone.") for name in moved)
    assert not any("running" in name for name in moved)


def test_a_share_of_the_adapter_lies_that_far_on_the_way_to_it(sites, tmp_path):
    half = method("cross_entropy", "triplet", {"hypernetwork": {**HYPER["hypernetwork"], "share": 0.5}})
    whole, part = learned(tmp_path / "whole", sites[:1], BESIDE), learned(tmp_path / "part", sites[:1], half)
    torch.testing.assert_close(flat(part.route(sites[0])), (flat(whole.route(sites[0])) + flat(whole.model()[0])) / 2)


def test_an_adapter_lowers_the_losses_that_it_is_taught(sites, tmp_path):
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "adapter": 6.0}}
    run = learned(tmp_path / "run", sites[:1], BESIDE, settings)

    def spread(model):
        """Cosine within people less that between them, on the train crops that the adapter saw."""
        store = run.stores.get(sites[0], sites[0].train)
        with torch.no_grad():
            vectors = model.eval().embed(torch.from_numpy(store.crops))
        same = torch.from_numpy(store.split.pids[:, None] == store.split.pids[None])
        cosine = vectors @ vectors.T
        return float(cosine[same].mean() - cosine[~same].mean())

    assert spread(run.route(sites[0])) > spread(run.model()[0])


def test_an_older_adapter_is_held(sites, tmp_path):
    @torch.no_grad()
    def change(run, site):
        shared, own = run.model()[0].backbone, run.route(site).backbone
        return torch.cat([(a - b).flatten() for a, b in zip(own.parameters(), shared.parameters(), strict=True)])

    moved = []
    for beta in (0.0, 1000.0):
        how = method("cross_entropy", "triplet", {"hypernetwork": {**HYPER["hypernetwork"], "beta": beta}})
        run = learned(tmp_path / f"run{beta}", sites[:1], how)
        before = change(run, sites[0])
        run.learn(sites[1], method=how, config=build_config(SETTINGS))
        moved.append(float((change(run, sites[0]) - before).norm() / before.norm()))
    assert moved[1] < 0.5 * moved[0]


def test_a_domain_leaves_128_bytes(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], BESIDE)
    assert [sum(array.nbytes for array in memory.arrays.values()) for memory in run.memories()] == [128, 128]
    assert set(run.steps[-1].kept()) == {"hypernetwork"}


def test_a_vit_from_random_weights_has_adapters_in_its_attention(sites, tmp_path):
    vit = {
        **SETTINGS,
        "model": {"backbone": "test_vit", "weights": "none", "dim": 16},
        "crop": {"height": 160, "width": 160},
    }
    run = learned(tmp_path / "run", sites[:1], BESIDE, {**vit, "train": {**SETTINGS["train"], "iterations": 4}})
    shared, own = run.model()[0].state_dict(), run.route(sites[0]).state_dict()
    moved = {name for name in shared if not torch.equal(shared[name], own[name])}
    assert moved
    assert all(".attn." in name for name in moved)


def test_a_guide_moves_the_third_sites_embedding(sites, tmp_path):
    found = {}
    for guide in ("none", "h", "random"):
        run = learned(
            tmp_path / guide,
            sites,
            method("cross_entropy", {"hypernetwork": {**HYPER["hypernetwork"], "guide": guide}}),
        )
        found[guide] = [memory.arrays["hypernetwork.embedding"] for memory in run.memories()]
    for guide in ("h", "random"):
        np.testing.assert_array_equal(found[guide][:2], found["none"][:2])
        assert not np.array_equal(found[guide][2], found["none"][2])
    assert not np.array_equal(found["h"][2], found["random"][2])


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 5])
def test_stopped_while_the_adapter_is_taught_it_ends_with_the_same_bits(sites, tmp_path, monkeypatch, at):
    whole = learned(tmp_path / "whole", sites[:1], BESIDE)
    from reid.step import learner

    update, done = learner.Learner._update, []

    def stop(self, batch, iteration):
        done.append(self.step.finished)
        if sum(done) > at:
            raise Stopped
        return update(self, batch, iteration)

    monkeypatch.setattr(learner.Learner, "_update", stop)
    with pytest.raises(Stopped):
        learned(tmp_path / "cut", sites[:1], BESIDE)
    monkeypatch.setattr(learner.Learner, "_update", update)
    run = Run.open(tmp_path / "cut")
    assert run.learned == []
    run.learn(sites[0], method=BESIDE, config=build_config(SETTINGS))
    assert torch.equal(flat(run.route(sites[0])), flat(whole.route(sites[0])))
    assert not list((tmp_path / "cut").rglob("adapter"))


def test_the_step_says_what_the_adapter_took(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:1], BESIDE)
    train = run.steps[-1].card["train"]
    assert 0 < train["seconds_adapter"] < train["seconds_ending"]


def test_erased_a_site_is_served_by_what_is_shared(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], BESIDE)
    run.forget(domain=sites[0].name)
    assert run.route(sites[0]) is None
    assert run.route(sites[1]) is not None


def test_a_method_without_adapters_between_ends_them(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:1], BESIDE)
    config = build_config(SETTINGS)
    run.learn(sites[1], method=Method.model_validate(PLAIN), config=config)
    with pytest.raises(ConfigError, match="kept no hypernetwork"):
        run.learn(sites[2], method=BESIDE, config=config)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (method("cross_entropy"), "needs a hypernetwork"),
        (method("relation_distillation", HYPER), "can't have relation_distillation"),
        (method("cross_entropy", {"hypernetwork": {"use": "merged"}}), "not in its adapter list"),
        (method(terms=["cross_entropy", HYPER]), "in a method's adapter list"),
        (method(HYPER, "style_statistics", terms=["cross_entropy", "style_statistics"]), "both keep style"),
        (method("cross_entropies", HYPER), "did you mean 'cross_entropy'"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_sealed(sites, tmp_path, how, said):
    with pytest.raises(ConfigError, match=said):
        learned(tmp_path / "run", sites[:1], how)
    assert Run.open(tmp_path / "run").learned == []


@pytest.mark.slow
def test_a_site_is_exported_with_its_adapter_and_another_is_not(sites, tmp_path):
    from deploy.encoder import Encoder
    from reid.export import Serving, export_run

    run = learned(tmp_path / "run", sites[:2], BESIDE)
    run.fill_scores([sites[2]])
    export_run(run, tmp_path / "own", serving=Serving(site=sites[0].name))
    export_run(run, tmp_path / "shared")
    for bundle, scored in (("own", sites[0].name), ("shared", sites[2].name)):
        section = (tmp_path / bundle / "CARD.md").read_text().partition("## Scores")[2].partition("## ")[0]
        rows = {site.name: f"| {site.name} |" in section for site in sites}
        assert rows == {site.name: site.name == scored for site in sites}, "the card tells scores of this network alone"
    np.testing.assert_allclose(
        np.asarray(Encoder.load(tmp_path / "own")(list(crops_of(run, sites[0])))),
        run.served(-1)(sites[0])(crops_of(run, sites[0])),
        atol=1e-4,
    )
    with pytest.raises(ExportError, match="leave the site out"):
        export_run(run, tmp_path / "none", serving=Serving(site=sites[2]))


def test_a_site_that_is_none_is_named_with_those_that_are(sites, tmp_path, monkeypatch, capsys):
    from reid import cli

    learned(tmp_path / "run", sites[:1], BESIDE)
    monkeypatch.setattr(
        "sys.argv", ["reid", "export", str(tmp_path / "run"), str(tmp_path / "bundle"), "--site", "nowhere"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert f"neither a domain that {tmp_path / 'run'} has learned (site0) nor a folder" in said
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_sites_gallery_is_carried_between_its_own_networks(sites, tmp_path):
    from deploy.bundle import Bundle
    from reid.export import Serving, export_run

    how = method("cross_entropy", HYPER, transport=["ridge"])
    run = learned(tmp_path / "run", sites[:2], how)
    first, later = (
        export_run(run, tmp_path / "first", step=1, serving=Serving(site=sites[0].name)),
        export_run(run, tmp_path / "later", serving=Serving(site=sites[0].name)),
    )
    assert first.transport() is None
    found = Bundle.load(tmp_path / "later").transport()
    assert (found.source, found.target) == (first.feature_space, later.feature_space)
    assert found.source not in {step.feature_space for step in run.steps}
    held, asked = (np.asarray(run.served(step)(sites[0])(crops_of(run, sites[0]))) for step in (1, 2))
    assert (found(held) * asked).sum(1).mean() > (held * asked).sum(1).mean()
    new = export_run(run, tmp_path / "new", serving=Serving(site=sites[1].name))
    assert new.transport() is None, "it had no adapter before"
    with pytest.raises(ExportError, match="had no adapter of its own at step 1"):
        export_run(run, tmp_path / "none", serving=Serving(site=sites[1].name, since=1))
