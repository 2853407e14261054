"""Each scorer, worked out by hand on a model whose next token is a table; and what measuring must leave alone."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch

from errata.answers import ask, question, surprisals
from errata.edit import OOD, Edit, Probe
from errata.errors import BadOption
from errata.memory import Delta, Gated, Memory
from errata.metrics import (
    SCORERS,
    SURE,
    Reference,
    immediate,
    latest,
    measure,
    normalise,
    out_of_distribution,
    perplexity,
)
from errata.model import EditedModel
from errata.routing import Decision
from errata.sites import find_sites
from tiny import EDITS, successor_llama, tiny_llama, tiny_tokenizer, word_tokenizer

WORDS = "ask say red green blue white one two three four \n ? the".split(" ")
NEXT = {
    "red": "one", "one": "two",  # red: "one two", and the text ends
    "green": "green",  # green: "green green green ..." without end
    "blue": "four", "four": "\n", "\n": "four",  # blue: "four", and the line ends
    "three": "two",
}  # fmt: skip


class Shift(Memory):
    """Makes the model speak as if the last token were always one and the same."""

    def __init__(self, site, token):
        super().__init__(site)
        self.register_buffer("direction", torch.nn.functional.one_hot(torch.tensor(token), site.out_features) * 4.0)

    def forward(self, a, y):
        return y + self.direction


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model(tokenizer):
    return EditedModel(successor_llama(tokenizer, NEXT), tokenizer)


def speak_as_after(model, word):
    token = model.tokens.tokenizer.convert_tokens_to_ids(word)
    model.install("shift", Shift(find_sites(model.base)[-1], token))


@pytest.mark.parametrize(
    ("prompt", "target", "exact", "natural", "forced", "token"),
    [
        ("ask red", "one two", 1, 1, 1, 1.0),  # ends by itself
        ("ask red", "one", 1, 0, 1, 1.0),  # goes on: "one two"
        ("ask red", "one three", 0, 0, 0, 0.5),
        ("ask red", "three two", 0, 0, 0, 0.5),  # right once "three" is given
        ("ask red", "two two", 0, 0, 0, 0.0),
        ("ask green", "green", 1, 0, 1, 1.0),  # never ends
        ("ask blue", "four", 1, 1, 1, 1.0),  # ends at the end of the line
        ("ask white", "one", 0, 0, 0, 0.0),  # says nothing at all
    ],
)
def test_every_scorer_of_one_edit(model, prompt, target, exact, natural, forced, token):
    scores = measure(model, [Edit(prompt, target)]).scores
    assert {name: triple.reliability for name, triple in scores.items()} == {
        "generated_exact": exact, "generated_natural": natural, "teacher_forced_exact": forced,
        "teacher_forced_token": token,
    }  # fmt: skip


def test_scores_are_means_over_edits_and_generalization_over_the_wordings_of_each(model):
    edits = [
        Edit("ask red", "one two", rephrases=("say red", "say blue", "say green")),  # 1/3
        Edit("ask blue", "one"),  # none: plays no part
        Edit("ask green", "green", rephrases=("say green",)),  # 1
    ]
    exact = measure(model, edits).scores["generated_exact"]
    assert exact.reliability == pytest.approx(2 / 3)
    assert exact.generalization == pytest.approx((1 / 3 + 1) / 2)
    assert exact.locality is None
    assert exact.average == pytest.approx((2 / 3 + 2 / 3) / 2), "the mean of those there are"


def test_locality_compares_with_the_unedited_model_not_with_the_reference_answer(model):
    speak_as_after(model, "red")  # says "one" after anything
    probes = (
        Probe("ask green", "green green", "far"),  # green green -> one one
        Probe("ask red", "one one", "same_relation"),  # one two -> one one
        Probe("ask red", "one", "same_relation"),  # one -> one, but goes on otherwise
    )
    found = measure(model, [Edit("say red", "one", locality=probes)])
    locality = {name: triple.locality for name, triple in found.scores.items()}
    assert locality["teacher_forced_token"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert locality["teacher_forced_exact"] == pytest.approx(1 / 3)
    assert locality["generated_exact"] == pytest.approx(1 / 3)
    assert locality["generated_natural"] == 0
    assert found.locality_by_kind == {"far": 0, "same_relation": 0.5, "same_subject": None}


def test_locality_is_whole_where_answers_are_wrong_but_unchanged(model):
    found = measure(model, [Edit("ask red", "two", locality=(Probe("ask green", "one two"),))])
    assert {triple.locality for triple in found.scores.values()} == {1.0}


def test_a_probe_without_an_answer_is_held_to_the_unedited_models_own(model):
    reference = Reference()
    probe = Probe("ask red")
    reference.learn(model, [probe])
    assert model.tokens.tokenizer.convert_ids_to_tokens(reference.of(probe)[0].answer) == ["one", "two", "</s>"]
    speak_as_after(model, "red")
    found = measure(model, [Edit("ask red", "one", locality=(probe,))], reference)
    assert found.scores["teacher_forced_token"].locality == pytest.approx(1 / 3), "one two </s> became one one one"


def test_the_unedited_model_is_asked_each_probe_once_also_with_edits_in_force(model):
    speak_as_after(model, "red")
    reference, calls = Reference(), []
    edits = [Edit("ask red", "one", locality=(Probe("ask green", "green"),))]
    hook = model.base.register_forward_pre_hook(lambda *_: calls.append("call"))
    first = measure(model, edits, reference)
    both = len(calls)
    assert first.scores["generated_exact"].locality == 0
    assert measure(model, edits, reference) == first
    assert len(calls) - both < both, "the second time only the edited model is asked"
    hook.remove()


def test_a_reference_belongs_to_one_base(model, tokenizer):
    reference = Reference()
    reference.learn(model, [Probe("ask red", "one")])
    other = EditedModel(successor_llama(tokenizer, NEXT), tokenizer)
    with pytest.raises(BadOption, match="another base model"):
        reference.learn(other, [])
    model.chat = True
    with pytest.raises(BadOption, match="asked otherwise"):
        reference.learn(model, [])


def test_superseded_edits_are_counted_and_not_scored(model):
    edits = [Edit("ask red", "four"), Edit("ask blue", "four"), Edit("ask red", "one two"), Edit("ask blue", "four")]
    found = measure(model, edits)
    assert (found.scored, found.superseded) == (2, 1), "the same edit again supersedes nothing"
    assert found.scores["generated_exact"].reliability == 1
    assert [edit.target for edit in latest(edits)] == ["one two", "four"]


def test_nothing_measured_is_none(model):
    found = measure(model, [])
    assert found.scores["generated_exact"] == (None, None, None)
    assert found.scores["generated_exact"].average is None
    assert found.perplexity == (None, None, None)


def test_perplexity_by_hand(model):
    size = len(model.tokens.tokenizer)
    peak = math.sqrt(size + size % 2)  # the norm makes a one-hot state this long
    right = 1 + (size - 1) * math.exp(-peak)
    found = measure(model, [Edit("ask red", "one two")]).perplexity
    assert found.mean == found.median == pytest.approx(right, rel=1e-3)
    assert perplexity([0.0, math.log(2), math.log(300)]) == pytest.approx((101, (1 + 2 + 100) / 3, 2))
    assert perplexity([1e9]).mean == math.inf


def test_immediate_scores_are_of_each_edit(model):
    assert immediate(model, [Edit("ask red", "one two"), Edit("ask red", "one three")]) == [
        {"generated_exact": 1.0, "teacher_forced_token": 1.0},
        {"generated_exact": 0.0, "teacher_forced_token": 0.5},
    ]


@pytest.mark.parametrize(
    ("text", "plain"),
    [(" The  Beatles. ", "beatles"), ("an “apple”!", "apple"), ("A", "a"), ("U.S.A.", "usa"), ("Straße", "strasse")],
)
def test_normalise(text, plain):
    assert normalise(text) == plain


class Spy(Gated):
    """Answers nothing, and remembers how many prompt tokens each row had."""

    def __init__(self, site):
        super().__init__(site)
        self.seen = []

    def decide(self, a, y):
        self.seen.append(self.routing.prompt.sum(1).tolist())
        return Decision(torch.zeros(len(a), dtype=torch.bool), anywhere=False)

    def correct(self, a, y, decision):
        return y


def test_no_token_of_an_answer_reaches_the_router(model):
    spy = Spy(find_sites(model.base)[0])
    model.install("spy", spy)
    ask(model, [question(model.tokens, "ask red", "one two"), question(model.tokens, "ask the red", "four")])
    lengths = {"<s> ask red": 3, "<s> ask the red": 4}
    assert [sorted(rows) for rows in spy.seen] == [sorted(lengths.values())] * 2, "teacher forced, then generated"


def state_of(model):
    digest = hashlib.sha256()
    for name, tensor in [*model.base.state_dict().items(), *model.base.named_buffers()]:
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest(), [module.training for module in model.base.modules()], list(model.memories)


def test_measuring_never_writes_and_leaves_training_mode_as_it_was():
    model = EditedModel(tiny_llama(), tiny_tokenizer())
    memory = Delta(find_sites(model.base)[1])
    model.install("delta", memory)
    memory.put({"shift": torch.randn(memory.shift.shape, generator=torch.Generator().manual_seed(1)) * 0.1})
    model.base.train()
    before, noise = state_of(model), torch.get_rng_state()
    measure(model, EDITS)
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), noise)


def test_the_batch_size_changes_no_score():
    model = EditedModel(tiny_llama(), tiny_tokenizer())
    wide, narrow = measure(model, EDITS), measure(model, EDITS, batch_size=1)
    assert wide.scores == narrow.scores
    assert wide.perplexity == pytest.approx(narrow.perplexity, rel=1e-4)
    assert {wide.scores[name].locality for name in SCORERS} == {1.0}


def test_natural_text_counts_by_its_mean_and_by_its_tokens():
    known, unknown = SURE / 2, SURE * 2
    found = out_of_distribution([[known, known], [known, known, known, unknown * 4], [unknown, known, known, known]])
    assert found.per_token == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert found.per_example == pytest.approx(2 / 3), "the second text is unlikely on the mean of its tokens"
    assert out_of_distribution([]) == (None, None)


def test_the_surprisal_of_each_token_adds_up_to_what_teacher_forcing_says():
    model = EditedModel(tiny_llama(layers=2), tiny_tokenizer())
    asked = [question(model.tokens, edit.prompt, edit.target) for edit in EDITS]
    each = surprisals(model, asked, batch_size=3)
    said = ask(model, asked)
    for q in asked:
        assert len(each[q]) == len(q.answer)
        assert math.fsum(each[q]) / len(q.answer) == pytest.approx(said[q].nll, rel=1e-5)


def test_portability_is_whether_what_follows_is_answered(model):
    right, wrong, open_ = Probe("ask red", "one"), Probe("ask red", "one three"), Probe("ask red")
    natural = Probe("ask red", "one", OOD)
    edits = [
        Edit("say red", "one two", portability=(right, wrong, open_, natural)),  # 1/2
        Edit("say green", "green", portability=(Probe("ask green", "green"),)),  # 1, but it never ends
        Edit("say blue", "four"),  # none: plays no part
    ]
    found = measure(model, edits)
    assert found.portability == {
        "generated_exact": 0.75, "generated_natural": 0.0, "teacher_forced_exact": 0.75, "teacher_forced_token": 0.875,
    }  # fmt: skip
    assert found.scores == measure(model, [replace(edit, portability=()) for edit in edits]).scores
    assert set(measure(model, edits[2:]).portability.values()) == {None}


def test_only_probes_of_the_kind_ood_are_natural_text():
    model = EditedModel(tiny_llama(layers=2), tiny_tokenizer())
    text = Probe("The capital of Arvadia is", "a town on the lake", OOD)
    plain = Edit("The capital of Arvadia is", "Melpo", portability=(Probe("Snow is", "white", "(a, b, c)"),))
    assert measure(model, [plain]).ood == (None, None)
    found = measure(model, [Edit("The capital of Arvadia is", "Melpo", portability=(text,))]).ood
    (nlls,) = surprisals(model, [question(model.tokens, text.prompt, text.answer)]).values()
    assert found == out_of_distribution([nlls])
