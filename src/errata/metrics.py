"""Metrics: how well a model was edited, as pure functions of (model, edits). Measuring never writes.

Three properties, each in [0, 1]:

    reliability      the edits' own prompts are answered with their targets
    generalization   so are their rephrasings; mean over those of an edit, then over the edits that have any
    locality         other prompts are answered as the unedited model answers them; mean over the probes of an edit,
                     then over the edits that have any. Whether that answer is true plays no part.

under four scorers:

    generated_exact       greedy decoding of as many tokens as the answer has gives these very tokens; the headline
    generated_natural     greedy decoding that ends by itself (end of text or of line) gives the answer and no more,
                          compared as `normalise` does; an answer that goes on is wrong
    teacher_forced_exact  with the answer given as input, every one of its tokens is the most probable at its place
    teacher_forced_token  ... the fraction of its tokens that are; what the published code reports

Under teacher forcing the prompt mask is passed to the router, so no token of an answer leaks into a routing decision.
Locality looks at the reference answer of a probe where there is one, and at the unedited model's own answer otherwise.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from types import MappingProxyType
from typing import NamedTuple

from errata.answers import BATCH, Question, Said, ask, generate, question, surprisals
from errata.edit import LOCALITY_KINDS, OOD, Edit, Probe
from errata.errors import BadOption
from errata.model import EditedModel
from errata.outcomes import Answer, Outcomes, outcomes

SCORERS = ("generated_exact", "generated_natural", "teacher_forced_exact", "teacher_forced_token")
HEADLINE = "generated_exact"
OWN = 10
"""Most tokens of the unedited model's own answer to a probe without a reference answer."""
CLIP = 100.0
"""Where `Perplexity.clipped_mean` cuts (WISE, as its authors report it)."""
SURE = -math.log(0.8)
"""Temporal: natural text counts as known where -log P a token is below this (WISE, appendix A.1)."""
ARTICLES = re.compile(r"\b(a|an|the)\b")

Hits = Mapping[str, float]
"""Scorer -> the score of one question."""


class Triple(NamedTuple):
    """The three properties under one scorer; None for one that the data cannot show."""

    reliability: float | None
    generalization: float | None
    locality: float | None

    @property
    def average(self) -> float | None:
        """Mean of those there are: of two, for data without rephrasings (or without probes)."""
        return mean(value for value in self if value is not None)


class Perplexity(NamedTuple):
    """exp(-log P(target | prompt) a token) of each edit, averaged in three ways: papers differ in the clipping."""

    mean: float | None
    clipped_mean: float | None
    """Mean after each was cut at 100."""
    median: float | None


class OutOfDistribution(NamedTuple):
    """Share of natural text about what was edited (probes of the kind `ood`) that the model finds probable."""

    per_example: float | None
    """Texts whose mean -log P a token is below `SURE`: the definition in WISE's paper."""
    per_token: float | None
    """Tokens whose -log P is, averaged over texts: as in WISE's code, which also counts the prompt and the padding."""


class Measurement(NamedTuple):
    """All that is measured of one model over one list of edits."""

    scores: dict[str, Triple]
    """By scorer."""
    locality_by_kind: dict[str, float | None]
    """`generated_exact` locality of the probes of each kind; None for a kind that the data does not have."""
    perplexity: Perplexity
    scored: int
    """Edits that were scored: the last for each prompt."""
    superseded: int
    """Edits that were not, because a later one gives the same prompt another target."""
    ood: OutOfDistribution = OutOfDistribution(None, None)
    portability: Mapping[str, float | None] = MappingProxyType({})
    """By scorer: whether prompts whose answers follow from an edit are answered so; mean over those of an edit, then over
    the edits that have any. No part of `Triple.average`."""
    outcomes: Outcomes = MappingProxyType({})
    """How edits failed, under the headline scorer."""


def measure(
    model: EditedModel, edits: Sequence[Edit], reference: "Reference | None" = None, batch_size: int = BATCH
) -> Measurement:
    """Every score of a model over the edits that were asked of it, in their order. The model is unchanged on return.

    For each prompt the last edit counts. An edit that failed is scored like any other: it counts against the method.
    Pass one `Reference` to measurements of the same base model, and the unedited model is asked only once.
    """
    reference = Reference() if reference is None else reference
    scored = latest(edits)
    own = [[question(model.tokens, edit.prompt, edit.target)] for edit in scored]
    other = [[question(model.tokens, wording, edit.target) for wording in edit.rephrases] for edit in scored]
    reference.learn(model, [probe for edit in scored for probe in edit.locality], batch_size)
    probed = [[(probe.kind, *reference.of(probe)) for probe in edit.locality] for edit in scored]
    following = [[question(model.tokens, prompt, answer) for prompt, answer in _following(edit)] for edit in scored]
    asked = [q for group in (*own, *other, *following) for q in group] + [q for group in probed for _, q, _ in group]
    said = ask(model, asked, batch_size)

    direct, reworded, ported = (
        [[hits(q, said[q]) for q in group] for group in groups] for groups in (own, other, following)
    )
    kept = [[(kind, unchanged(before, said[q])) for kind, q, before in group] for group in probed]
    locality = [[hit for _, hit in group] for group in kept]
    by_kind = {kind: _over([[h for k, h in group if k == kind] for group in kept], HEADLINE) for kind in LOCALITY_KINDS}
    return Measurement(
        {name: Triple(_over(direct, name), _over(reworded, name), _over(locality, name)) for name in SCORERS},
        by_kind,
        perplexity([said[q].nll for group in own for q in group]),
        len(scored),
        sum(edit.contradicts(last) for edit, last in _with_latest(edits)),
        _out_of_distribution(model, scored, batch_size),
        {name: _over(ported, name) for name in SCORERS},
        outcomes(
            scored,
            [Answer(edit.prompt, q, said[q]) for edit, (q,) in zip(scored, own, strict=True)],
            [
                [Answer(wording, q, said[q]) for wording, q in zip(edit.rephrases, group, strict=True)]
                for edit, group in zip(scored, other, strict=True)
            ],
        ),
    )


def immediate(model: EditedModel, edits: Sequence[Edit]) -> list[Hits]:
    """`generated_exact` and `teacher_forced_token` of edits on their own prompts, as the model is now."""
    asked = [question(model.tokens, edit.prompt, edit.target) for edit in edits]
    said = ask(model, asked, spare=0)
    found = [hits(q, said[q]) for q in asked]
    return [{name: hit[name] for name in ("generated_exact", "teacher_forced_token")} for hit in found]


def latest(edits: Iterable[Edit]) -> list[Edit]:
    """The last edit for each prompt, in order."""
    last = {edit.prompt: (i, edit) for i, edit in enumerate(edits)}
    return [edit for _, edit in sorted(last.values(), key=lambda pair: pair[0])]


def _with_latest(edits: Sequence[Edit]) -> Iterable[tuple[Edit, Edit]]:
    last = {edit.prompt: edit for edit in edits}
    return ((edit, last[edit.prompt]) for edit in edits)


class Reference:
    """What the unedited model says to locality probes. Filled once, with the edits lifted off; belongs to one base."""

    def __init__(self) -> None:
        self._asked: object = None
        self._known: dict[tuple[str, str | None], tuple[Question, Said]] = {}

    def learn(self, model: EditedModel, probes: Iterable[Probe], batch_size: int = BATCH) -> None:
        """Ask the unedited model the probes that are not yet known. Raises `BadOption` for another base model."""
        asked = model.base, model.chat
        if self._asked not in (None, asked):
            raise BadOption(
                "this reference holds the answers of another base model, or one that was asked otherwise: make a new one"
            )
        self._asked = asked
        new = {(probe.prompt, probe.answer): probe for probe in probes}
        new = {key: probe for key, probe in new.items() if key not in self._known}
        with model.lifted():
            questions = dict(zip(new, _probe_questions(model, list(new.values()), batch_size), strict=True))
            said = ask(model, list(questions.values()), batch_size)
        self._known |= {key: (q, said[q]) for key, q in questions.items()}

    def of(self, probe: Probe) -> tuple[Question, Said]:
        """The question that a probe asks, and what the unedited model says to it."""
        return self._known[probe.prompt, probe.answer]


def _probe_questions(model: EditedModel, probes: Sequence[Probe], batch_size: int) -> list[Question]:
    """Questions whose answer is the reference answer, or else the model's own greedy answer, its end included."""
    open_ = {probe.prompt: tuple(model.tokens.prompt(probe.prompt)) for probe in probes if not _answered(probe)}
    blank = {prompt: Question(ids, (), "") for prompt, ids in open_.items()}
    answers = generate(model, list(blank.values()), OWN, batch_size)
    own = {prompt: q._replace(answer=answers[q], text=model.tokens.decode(answers[q])) for prompt, q in blank.items()}
    return [
        question(model.tokens, probe.prompt, probe.answer or "") if _answered(probe) else own[probe.prompt]
        for probe in probes
    ]


def _answered(probe: Probe) -> bool:
    return bool(probe.answer and probe.answer.strip())


# -- scoring one answer ----------------------------------------------------------------------------------------------


def hits(question: Question, said: Said) -> Hits:
    """How far an answer is the one that was looked for."""
    same = _agreement(said.forced, question.answer)
    return {
        "generated_exact": float(said.greedy == question.answer),
        "generated_natural": float(said.ended and normalise(said.text) == normalise(question.text)),
        "teacher_forced_exact": float(same == 1),
        "teacher_forced_token": same,
    }


def unchanged(before: Said, after: Said) -> Hits:
    """How far two answers to one question are the same: those of the unedited and of the edited model."""
    same = _agreement(after.forced, before.forced)
    return {
        "generated_exact": float(after.greedy == before.greedy),
        "generated_natural": float(normalise(after.text) == normalise(before.text)),
        "teacher_forced_exact": float(same == 1),
        "teacher_forced_token": same,
    }


def normalise(text: str) -> str:
    """Lower case, without punctuation, English articles and extra space; what would be left empty is only lowered."""
    low = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(character for character in low if not unicodedata.category(character).startswith("P"))
    return " ".join(ARTICLES.sub(" ", bare).split()) or low.strip()


def perplexity(nlls: Sequence[float]) -> Perplexity:
    """Perplexities from -log P(target | prompt) a token."""
    each = [math.exp(nll) if nll < 700 else math.inf for nll in nlls]
    return Perplexity(mean(each), mean(min(value, CLIP) for value in each), median(each) if each else None)


def out_of_distribution(texts: Sequence[Sequence[float]]) -> OutOfDistribution:
    """From -log P of each token of each text."""
    return OutOfDistribution(
        mean(float(fmean(text) < SURE) for text in texts), mean(fmean(nll < SURE for nll in text) for text in texts)
    )


def _following(edit: Edit) -> list[tuple[str, str]]:
    """The portability probes of an edit that have a short answer: prompt and answer."""
    return [(p.prompt, p.answer or "") for p in edit.portability if p.kind != OOD and _answered(p)]


def _out_of_distribution(model: EditedModel, edits: Sequence[Edit], batch_size: int) -> OutOfDistribution:
    asked = [
        question(model.tokens, probe.prompt, probe.answer)
        for edit in edits
        for probe in edit.portability
        if probe.kind == OOD and probe.answer
    ]
    found = surprisals(model, asked, batch_size)
    return out_of_distribution([found[q] for q in asked])


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    values = list(values)
    return fmean(values) if values else None


def _agreement(found: Sequence[int], wanted: Sequence[int]) -> float:
    """The fraction of equal tokens of two answers of the same length."""
    return fmean(a == b for a, b in zip(found, wanted, strict=True))


def _over(groups: Sequence[Sequence[Hits]], scorer: str) -> float | None:
    """Mean over groups of the mean within each; empty groups play no part."""
    return mean(fmean(hit[scorer] for hit in group) for group in groups if group)
