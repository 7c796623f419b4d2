"""Terms: what each asks for, that outputs are computed once, and that a method's entries are checked."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from domains.errors import ConfigError
from reid import losses
from reid.model import Output
from reid.optim import Runtime
from reid.terms import TERMS, Batch, Step, Term, build_terms

OLD, NEW, DIM = 3, 4, 6


class Net(nn.Module):
    """Answers like the re-ID model, from noise, and counts how often it is asked."""

    def __init__(self, classes):
        super().__init__()
        self.asked = 0
        self.embedding = nn.Linear(12, DIM)
        self.classifier = nn.Linear(DIM, classes, bias=False)

    def forward(self, crops):
        self.asked += 1
        embedding = self.embedding(crops.flatten(1).float() / 255).float()
        return Output(crops, embedding, embedding, self.classifier(embedding).float())


@pytest.fixture
def batch():
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    old = Net(OLD).eval()
    step = Step(2, SimpleNamespace(name="site"), None, runtime, Net(OLD + NEW), {"old": old}, OLD)
    views = {name: torch.randint(0, 256, (8, 2, 2, 3), dtype=torch.uint8) for name in ("plain", "aligned")}
    return Batch(views, torch.arange(8) // 2 + OLD, torch.zeros(8, dtype=torch.long), step)


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
    for term in (build_terms(({name: {}},))[name] for name in TERMS):
        assert term.loss(batch).dtype == torch.float32


def test_cross_entropy_compares_the_identities_of_this_step_or_all(batch):
    logits = batch.output().logits
    current, every = (build_terms(({"cross_entropy": {"classes": which, "smoothing": 0.2}},))["cross_entropy"] for which in ("current", "all"))
    assert torch.equal(current.loss(batch), losses.cross_entropy(logits[:, OLD:], batch.labels - OLD, 0.2))
    assert torch.equal(every.loss(batch), losses.cross_entropy(logits, batch.labels, 0.2))
    current.loss(batch).backward()
    gradient = batch.step.model.classifier.weight.grad
    assert not gradient[:OLD].any(), "old rows are left alone"
    assert gradient[OLD:].any()


def test_triplet(batch):
    embedding, labels = batch.output().embedding, batch.labels
    for options in ({}, {"margin": 0.3}, {"unit": True}):
        term = build_terms(({"triplet": options},))["triplet"]
        given = nn.functional.normalize(embedding, dim=1) if options.get("unit") else embedding
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
    assert {name for name, term in TERMS.items() if term.teachers} == {"logit_distillation", "relation_distillation"}
    assert all(set(term.teachers) <= {"old"} for term in TERMS.values())


@pytest.mark.parametrize("name", sorted(TERMS))
def test_a_term_has_a_weight_keeps_nothing_unasked_and_does_nothing_between(name, batch):
    term = build_terms(({name: {"weight": 2.5}},))[name]
    assert isinstance(term, Term)
    assert term.weight == 2.5
    before = {key: value.clone() for key, value in batch.step.model.state_dict().items()}
    for call in (term.begin, term.after_backward, term.after_update):
        assert call(batch.step) is None
    assert term.end(batch.step) == {}
    assert all(torch.equal(value, before[key]) for key, value in batch.step.model.state_dict().items())


def test_terms_keep_their_order_and_a_bare_term_has_no_loss(batch):
    assert list(build_terms(({"triplet": {}}, {"cross_entropy": {}}))) == ["triplet", "cross_entropy"]
    assert build_terms(()) == {}
    with pytest.raises(NotImplementedError):
        Term().loss(batch)


WRONG = [
    (({"triplt": {}},), "unknown term 'triplt'; did you mean 'triplet'"),
    (({"triplet": {}}, {"triplet": {"margin": 0.3}}), "lists the term 'triplet' twice"),
    (({"triplet": {"margins": 0.3}},), "term triplet: .*margins"),
    (({"cross_entropy": {"classes": "old"}},), 'classes must be "current" or "all"'),
]


@pytest.mark.parametrize(("entries", "said"), WRONG)
def test_a_wrong_entry_is_one_line(entries, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build_terms(entries)
    assert "\n" not in str(caught.value)
