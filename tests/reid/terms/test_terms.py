"""Terms: what each asks for, that outputs are computed once, and that a method's entries are checked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from domains.errors import ConfigError, TrainingError
from prototypes.memory import Memory
from prototypes.prototype import DistributionPrototypes
from reid.network.distribution import draw as draw_prototypes
from reid.network.model import Output
from reid.network.runtime import Runtime
from reid.terms import TERMS, Batch, Step, Term, build_terms, head_of, idle_terms, losses
from reid.terms.losses import prototype_transfer

OLD, NEW, DIM = 3, 4, 6
ADAPTS = "hypernetwork"
"""Changes the network itself: tested in test_hypernetwork_term."""


class Net(nn.Module):
    """Answers like the re-ID model, from noise, and counts how often it is asked."""

    def __init__(self, classes):
        super().__init__()
        self.asked, self.classes, self.dim = 0, classes, DIM
        self.embedding = nn.Linear(12, DIM)
        self.classifier = nn.Linear(DIM, classes, bias=False)

    def spread(self, features):
        return features.flatten(1)[:, :DIM].float() / 255 + 0.1

    def classify(self, vectors):
        return self.classifier(vectors).float()

    def forward(self, crops):
        self.asked += 1
        embedding = self.embedding(crops.flatten(1).float() / 255).float()
        return Output(crops, embedding, embedding, self.classifier(embedding).float())


@pytest.fixture
def batch():
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    old = Net(OLD).eval()
    teachers = {"old": old, "short": Net(OLD).eval(), "long": Net(OLD).eval()}
    step = Step(
        2, SimpleNamespace(name="site"), SimpleNamespace(seed=3), runtime, Net(OLD + NEW), teachers, OLD, memories()
    )
    step.views["aligned"] = lambda crops, generator: (
        crops.float() + 40 * torch.rand(crops.shape, generator=generator)
    ).clamp(0, 255)
    crops = torch.randint(0, 256, (8, 2, 2, 3), dtype=torch.uint8)
    return Batch(crops, torch.arange(8) // 2 + OLD, torch.zeros(8, dtype=torch.long), step)


def memories():
    draw = np.random.default_rng(0)
    made = []
    for name, count in (("first", 2), ("second", 1)):
        mean = draw.standard_normal((count, DIM)).astype(np.float32)
        kept = DistributionPrototypes(
            mean / np.linalg.norm(mean, axis=1, keepdims=True), np.full((count, DIM), 0.1, np.float32)
        )
        statistics = np.stack([np.full(3, value, np.float32) for value in (120, 10, 50, 5)])
        made.append(Memory(name, "space", {**kept.to_arrays(), "style.statistics": statistics}))
    return made


def test_outputs_are_computed_once_per_view_and_only_when_asked(batch):
    model, teacher = batch.step.model, batch.step.teachers["old"]
    assert model.asked == teacher.asked == 0
    assert batch.output() is batch.output("plain")
    assert batch.teacher("old") is batch.teacher("old")
    assert (model.asked, teacher.asked) == (1, 1)
    assert batch.output("aligned") is not batch.output()
    assert (model.asked, teacher.asked) == (2, 1)
    with pytest.raises(KeyError):
        batch.teacher("nobody")


def test_teachers_give_no_gradient_and_the_model_does(batch):
    assert not batch.teacher("old").embedding.requires_grad
    assert batch.output().embedding.requires_grad


def test_half_precision_reaches_models_and_not_losses(batch):
    batch.step.runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    assert torch.equal(batch.output().embedding.bfloat16().float(), batch.output().embedding), "computed in bf16"
    assert torch.equal(batch.teacher("old").embedding.bfloat16().float(), batch.teacher("old").embedding)
    for term in (next(iter(build_terms(({name: {}},)).values())) for name in TERMS if name != ADAPTS):
        term.begin(batch.step)
        value = term.loss(batch)
        assert value is None or value.dtype == torch.float32


def test_cross_entropy_compares_the_identities_of_this_step_or_all(batch):
    logits = batch.output().logits
    current, every = (
        build_terms(({"cross_entropy": {"classes": which, "smoothing": 0.2}},))["cross_entropy"]
        for which in ("current", "all")
    )
    assert torch.equal(current.loss(batch), losses.cross_entropy(logits[:, OLD:], batch.labels - OLD, 0.2))
    assert torch.equal(every.loss(batch), losses.cross_entropy(logits, batch.labels, 0.2))
    current.loss(batch).backward()
    gradient = batch.step.model.classifier.weight.grad
    assert not gradient[:OLD].any(), "old rows are left alone"
    assert gradient[OLD:].any()


@pytest.mark.parametrize("name", ["cross_entropy", "distribution_cross_entropy"])
def test_new_rows_begin_at_their_centres_and_old_rows_stay(name, batch):
    model, step = batch.step.model, batch.step
    vectors = nn.functional.normalize(torch.randn(10, DIM), dim=1)
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 0])
    step.survey = SimpleNamespace(labels=labels, embeddings=lambda asked: vectors.numpy() if asked is model else None)
    before = model.classifier.weight.detach().clone()
    build_terms(({name: {"start": "random"}},))[name].begin(step)
    assert torch.equal(model.classifier.weight, before)
    build_terms(({name: {"start": "centre"}},))[name].begin(step)
    assert torch.equal(model.classifier.weight[:OLD], before[:OLD])
    for row in range(NEW):
        mean = vectors[torch.from_numpy(labels == row)].mean(0)
        assert torch.allclose(model.classifier.weight[OLD + row], mean / mean.norm(), atol=1e-6)
    with pytest.raises(ConfigError, match="start must be"):
        build_terms(({name: {"start": "middle"}},))


@pytest.mark.parametrize("name", ["cross_entropy", "distribution_cross_entropy"])
def test_a_start_that_says_nothing_finite_has_no_centres(name, batch):
    before = batch.step.model.classifier.weight.detach().clone()
    vectors = np.full((NEW, DIM), np.nan, np.float32)
    batch.step.survey = SimpleNamespace(labels=np.arange(NEW), embeddings=lambda asked: vectors)
    with pytest.raises(TrainingError, match=r"not finite before any training.*start from trained weights"):
        build_terms(({name: {"start": "centre"}},))[name].begin(batch.step)
    assert torch.equal(batch.step.model.classifier.weight, before)


def test_fixed_statistics_hold_the_backbone_from_the_second_domain_on(batch):
    term = build_terms(({"fixed_statistics": {}},))["fixed_statistics"]
    assert term.loss(batch) is None
    for index, held in ((1, False), (2, True), (5, True)):
        batch.step.index = index
        term.begin(batch.step)
        assert batch.step.model.still is held
        term.after_training(batch.step)
        assert batch.step.model.still is False


def test_triplet(batch):
    embedding, labels = batch.output().embedding, batch.labels
    for options in ({}, {"margin": 0.3}, {"unit": False}):
        term = build_terms(({"triplet": options},))["triplet"]
        given = nn.functional.normalize(embedding, dim=1) if options.get("unit", True) else embedding
        assert torch.equal(term.loss(batch), losses.batch_hard_triplet(given, labels, options.get("margin")))


def test_distillation_reads_the_old_rows_and_the_old_relations(batch):
    student, teacher = batch.output(), batch.teacher("old")
    terms = build_terms(({"logit_distillation": {"temperature": 3.0}}, {"relation_distillation": {"temperature": 0.2}}))
    logit, relation = terms["logit_distillation"].loss(batch), terms["relation_distillation"].loss(batch)
    assert torch.equal(logit, losses.logit_distillation(student.logits[:, :OLD], teacher.logits, 3.0))
    assert torch.equal(relation, losses.relation_distillation(student.embedding, teacher.embedding, 0.2))


def test_distilling_from_oneself_costs_nothing(batch):
    old = batch.step.teachers["old"].state_dict()
    grown = torch.cat([old["classifier.weight"], torch.zeros(NEW, DIM)])
    batch.step.model.load_state_dict(old | {"classifier.weight": grown})
    for name in ("logit_distillation", "relation_distillation"):
        assert build_terms(({name: {}},))[name].loss(batch).item() == pytest.approx(0, abs=1e-6)


def test_only_distillation_asks_for_a_teacher():
    assert {name for name, term in TERMS.items() if term.teachers} == {
        name for name in TERMS if name.endswith("distillation") or name == "elastic"
    }
    assert {teacher for term in TERMS.values() for teacher in term.teachers} == {"old", "short", "long"}


KEEPERS = {"null_space", "prototypes", "style_network", "style_statistics"}


@pytest.mark.parametrize("name", sorted(set(TERMS) - KEEPERS - {"moving_average", ADAPTS}))
def test_a_term_has_a_weight_keeps_nothing_and_does_nothing_between(name, batch):
    term = next(iter(build_terms(({name: {"weight": 2.5}},)).values()))
    assert isinstance(term, Term)
    assert term.weight == 2.5
    assert term.keeps is None
    before = {key: value.clone() for key, value in batch.step.model.state_dict().items()}
    for call in (term.begin, term.after_backward, term.after_update):
        assert call(batch.step) is None
    assert term.end(batch.step) == {}
    assert all(torch.equal(value, before[key]) for key, value in batch.step.model.state_dict().items())


def test_keepers_say_what_they_keep_and_have_no_objective(batch):
    assert {name for name, term in TERMS.items() if term.keeps} == KEEPERS | {ADAPTS}
    assert {TERMS[name].keeps for name in KEEPERS} == {"null_space", "prototypes", "style"}
    for name in KEEPERS:
        assert TERMS[name]().loss(batch) is None


def test_terms_keep_their_order_and_a_bare_term_has_no_objective(batch):
    assert list(build_terms(({"triplet": {}}, {"cross_entropy": {}}))) == ["triplet", "cross_entropy"]
    assert build_terms(()) == {}
    assert Term().loss(batch) is None


# ---------------------------------------------------------------------------------------------- views and distributions


def test_a_view_is_made_once_from_numbers_of_its_own(batch):
    aligned = batch.view("aligned")
    assert batch.view("aligned") is aligned
    assert batch.view() is batch.crops
    again = Batch(batch.crops, batch.labels, batch.cameras, batch.step)
    again.gaussians("plain")
    assert torch.equal(again.view("aligned"), aligned), "what was asked for before changes nothing"
    later = Batch(batch.crops, batch.labels, batch.cameras, batch.step, iteration=1)
    assert not torch.equal(later.view("aligned"), aligned)
    state = torch.get_rng_state()
    again.gaussians("aligned")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_terms_on_two_views_have_two_names(batch):
    terms = build_terms(({"cross_entropy": {}}, {"cross_entropy": {"view": "aligned"}}))
    assert list(terms) == ["cross_entropy", "cross_entropy (aligned)"]
    plain, aligned = (term.loss(batch) for term in terms.values())
    assert plain != aligned


def test_every_term_of_a_view_looks_at_it(batch):
    for name in (
        "cross_entropy",
        "triplet",
        "distribution_cross_entropy",
        "distribution_triplet",
        "relation_distillation",
        "rectified_distillation",
        "embedding_distillation",
        "prototype_transfer",
        "two_teacher_distillation",
    ):
        plain, aligned = (next(iter(build_terms(({name: {"view": view}},)).values())) for view in ("plain", "aligned"))
        for term in (plain, aligned):
            term.begin(batch.step)
        assert not torch.equal(plain.loss(batch), aligned.loss(batch)), name


def test_gaussians_are_computed_once_and_draws_differ_by_view_and_iteration(batch):
    found = batch.gaussians("plain", 3)
    assert batch.gaussians("plain", 3) is found
    assert found.samples.shape == (3, 8, DIM)
    assert found.logits.shape == (32, OLD + NEW)
    assert torch.allclose(found.logits[:8], batch.step.model.classify(found.centre))
    assert torch.allclose(found.samples.norm(dim=2), torch.ones(3, 8), atol=1e-3)
    later = Batch(batch.crops, batch.labels, batch.cameras, batch.step, iteration=1)
    assert not torch.equal(later.gaussians("plain", 3).samples, found.samples)


def test_prototypes_of_the_last_domain_or_of_all(batch):
    for domains, which in (("last", slice(2, 3)), ("all", slice(0, 3))):
        term = build_terms(({"prototype_transfer": {"domains": domains, "assign": 0.2}},))["prototype_transfer"]
        term.begin(batch.step)
        kept = [DistributionPrototypes.from_arrays(memory.arrays) for memory in batch.step.memories]
        mean, spread = (
            torch.from_numpy(np.concatenate([getattr(found, name) for found in kept])[which])
            for name in ("mean", "spread")
        )
        drawn = draw_prototypes(mean, spread, batch.generator("prototypes"))
        centre = batch.output().embedding / (batch.output().embedding.norm(dim=1, keepdim=True) + 1e-4)
        assert torch.equal(term.loss(batch), prototype_transfer(centre, drawn, assign=0.2))


def test_statistics_of_the_last_domain_or_of_all_make_the_view(batch):
    for name in ("last", "all"):
        term = build_terms(({"style_statistics": {"domains": name}},))["style_statistics"]
        term.begin(batch.step)
        view = Batch(batch.crops, batch.labels, batch.cameras, batch.step).view("aligned")
        assert view.shape == batch.crops.shape
        assert 0 <= view.min() <= view.max() <= 255
        assert 60 < view.mean() < 180


def test_a_term_is_idle_where_nothing_that_it_needs_is_kept(batch):
    terms = build_terms(
        (
            {"prototype_transfer": {}},
            {"triplet": {"view": "aligned"}},
            {"relation_distillation": {}},
            {"triplet": {}},
            {"style_statistics": {}},
        )
    )
    assert idle_terms(terms, 1, []) == dict.fromkeys(list(terms)[:3], "it needs an earlier domain")
    assert idle_terms(terms, 2, batch.step.memories) == {}
    bare = [Memory("first", "space", {})]
    lacks = "no term of the method makes its aligned view from the memories of earlier domains"
    assert idle_terms(terms, 2, bare) == {
        "prototype_transfer": "the memories of earlier domains hold no prototypes",
        "triplet (aligned)": lacks,
    }
    without = {name: term for name, term in terms.items() if name != "style_statistics"}
    assert idle_terms(without, 2, batch.step.memories) == {"triplet (aligned)": lacks}


def test_a_method_has_one_distribution_head():
    assert head_of(build_terms(({"triplet": {}},)).values()) is None
    assert (
        head_of(build_terms(({"distribution_triplet": {"head": "convolution"}}, {"triplet": {}})).values())
        == "convolution"
    )


WRONG = [
    (({"triplt": {}},), "unknown term 'triplt'; did you mean 'triplet'"),
    (({"triplet": {}}, {"triplet": {"margin": 0.3}}), "lists the term 'triplet' twice"),
    (({"triplet": {"margins": 0.3}},), "term triplet: .*margins"),
    (({"cross_entropy": {"classes": "old"}},), 'classes must be "current" or "all"'),
    (({"triplet": {"view": "side"}},), 'view must be "plain" or "aligned"'),
    (({"triplet": {"weight": "much"}},), "weight must be a number, got 'much'"),
    (({"distribution_triplet": {"head": "conv"}},), 'head must be "pooled" or "convolution"'),
    (({"distribution_triplet": {"samples": 0}},), "samples must be a whole number"),
    (({"distribution_cross_entropy": {"start": "zero"}},), 'start must be "centre" or "random"'),
    (({"relation_distillation": {"direction": "back"}},), 'direction must be "forward" or "reverse"'),
    (({"prototype_transfer": {"domains": "some"}},), 'domains must be "last" or "all"'),
    (({"style_network": {"domains": "some"}},), 'domains must be "last" or "all"'),
    (
        ({"distribution_triplet": {}}, {"prototypes": {"head": "convolution"}}),
        "different distribution heads: convolution, pooled",
    ),
    (({"style_network": {}}, {"style_statistics": {}}), "two terms of the method keep style"),
]


@pytest.mark.parametrize(("entries", "said"), WRONG)
def test_a_wrong_entry_is_one_line(entries, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build_terms(entries)
    assert "\n" not in str(caught.value)


def test_the_moving_average_is_taken_after_the_last_iteration(batch):
    step, (term,) = batch.step, build_terms(({"moving_average": {"decay": 0.6}},)).values()
    step.config.train = SimpleNamespace(iterations=12)
    weight = step.model.embedding.weight
    classifier = step.model.classifier.weight.clone()
    wanted = weight.detach().clone().double()
    term.begin(step)
    assert term.loss(batch) is None
    for update in range(1, 13):
        with torch.no_grad():
            weight += torch.randn_like(weight)
        decay = min(0.6, update / (update + 10))
        wanted = decay * wanted + (1 - decay) * weight.detach().double()
        before = weight.detach().clone()
        term.after_update(step)
        assert torch.equal(weight, before) == (update < 12)
    assert torch.allclose(weight.double(), wanted, atol=1e-6)
    assert torch.equal(step.model.classifier.weight, classifier), "only what embeds is averaged"


def test_a_moving_average_goes_on_where_its_state_was(batch):
    step = batch.step
    step.config.train = SimpleNamespace(iterations=100)
    whole, first, second = (build_terms(({"moving_average": {}},))["moving_average"] for _ in range(3))
    for term in (whole, first, second):
        term.begin(step)
    for update in range(6):
        with torch.no_grad():
            step.model.embedding.weight += 1
        whole.after_update(step)
        (first if update < 3 else second).after_update(step)
        if update == 2:
            second.load_state_dict(first.state_dict())
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, True, "slow"])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ConfigError, match="decay must lie in"):
        build_terms(({"moving_average": {"decay": decay}},))
