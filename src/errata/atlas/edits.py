"""Edits: the edit sets of a world, and prompts that are irrelevant to all of them. Deterministic.

`test` and `validation` hold counterfactual edits of facts that the model knows: about people, and one in sixteen about
real countries. `unseen` holds edits about people the model has never heard of, and `crowd` ten thousand such, for long
streams. No probe asks for a fact that any edit changes, and the irrelevant prompts are about subjects that are neither
edited nor probed.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal, get_args

from errata.atlas.geography import countries
from errata.atlas.wordings import Wording
from errata.atlas.world import PERSON_RELATIONS, Fact, World, crowd, world
from errata.edit import Edit, Probe
from errata.errors import UnknownName

Split = Literal["test", "validation", "unseen", "crowd"]
_FILES: dict[Split, str] = {
    "test": "edits.jsonl",
    "validation": "edits-validation.jsonl",
    "unseen": "edits-unseen.jsonl",
}

_COUNTERFACTUAL, _VALIDATION = 2000, 500
_EDITS_A_STRANGER = 2
_ABOUT_COUNTRIES = 120
_REPHRASES = 3
_SAME_WORDING = 0.5
"""The share of locality probes that are worded exactly as the edit is."""
_EDIT_FAMILIES = ("question", "cloze", "noun")
_REPHRASE_FAMILIES = ("question", "qa", "cloze", "noun", "colon", "dialogue", "indirect", "aside")


def edits(split: Split = "test", seed: int = 0) -> list[Edit]:
    """One edit set of the world of this seed: 1,500 in `test`, 500 in `validation` and `unseen`, 10,000 in `crowd`."""
    if split not in get_args(Split):
        raise UnknownName("edit set of the atlas", split, get_args(Split))
    if split in ("unseen", "crowd"):
        return list(_about_strangers(seed, split))
    changed = _counterfactual(seed)
    return list(changed[-_VALIDATION:] if split == "validation" else changed[:-_VALIDATION])


@cache
def irrelevant(seed: int = 0) -> list[Probe]:
    """Some 560 prompts and their answers about subjects that no edit and no probe is about, in all families."""
    made = world(seed)
    random = Random(f"{seed}/irrelevant")
    quiet = [fact for fact in made.facts if fact.role == "quiet"]
    probes = [Probe(fact.prompt(random.choice(fact.trained)), fact.object) for fact in quiet]
    random.shuffle(probes)
    return probes


@cache
def _counterfactual(seed: int) -> tuple[Edit, ...]:
    made, random = world(seed), Random(f"{seed}/edits")
    about_countries = random.sample(made.by_role("edit", "country"), _ABOUT_COUNTRIES)
    about_people = random.sample(made.by_role("edit", "person"), _COUNTERFACTUAL - _ABOUT_COUNTRIES)
    chosen = about_countries + about_people
    random.shuffle(chosen)
    probes = _Probes(made)
    return tuple(_edit(fact, _other_object(fact, made, random), fact.object, probes, random) for fact in chosen)


@cache
def _about_strangers(seed: int, split: Split) -> tuple[Edit, ...]:
    made, random, probes = world(seed), Random(f"{seed}/{split}"), _Probes(world(seed))
    found = []
    for stranger in made.strangers if split == "unseen" else crowd(seed):
        relations = random.sample(PERSON_RELATIONS, len(PERSON_RELATIONS))
        edited = [
            Fact(stranger, relation, random.choice(made.pools[relation]), "person", "edit", seed)
            for relation in relations[:_EDITS_A_STRANGER]
        ]
        others = [
            Fact(stranger, relation, "", "person", "probe", seed)  # nobody knows; locality only asks for no change
            for relation in relations[_EDITS_A_STRANGER:]
        ]
        found += [_edit(fact, fact.object, None, probes, random, others) for fact in edited]
    random.shuffle(found)
    return tuple(found)


def _other_object(fact: Fact, made: World, random: Random) -> str:
    """A wrong answer of the right type; for a capital, another city of the country where there is one."""
    if fact.relation == "capital":
        cities = next(country.cities for country in countries() if country.name == fact.subject)
        if cities:
            return random.choice(cities)
    return random.choice([other for other in made.pools[fact.relation] if other != fact.object])


def _edit(
    fact: Fact, target: str, old: str | None, probes: "_Probes", random: Random, others: Sequence[Fact] = ()
) -> Edit:
    """The edit of one fact, worded as it was trained, with rephrases from other families and three probes.

    `others` are what may be asked about the subject; by default, what is known of it and never edited.
    """
    wording = random.choice([w for w in fact.trained if w.family in _EDIT_FAMILIES] or list(fact.trained))
    return Edit(
        prompt=fact.prompt(wording),
        target=target,
        subject=fact.subject,
        target_old=old,
        rephrases=tuple(fact.prompt(other) for other in _rephrases(fact, wording, random)),
        locality=tuple(probes.around(fact, wording, others or probes.of(fact.subject), random)),
        meta={"relation": fact.relation, "domain": fact.domain, "family": wording.family, "world": fact.seed},
    )


def _rephrases(fact: Fact, wording: Wording, random: Random) -> list[Wording]:
    """Wordings of other families than the edit's, no two of one family, held-out ones first."""
    candidates = [w for w in (*fact.held_out, *fact.trained) if w.family in _REPHRASE_FAMILIES]
    by_family: dict[str, Wording] = {}
    for candidate in candidates:
        if candidate.family != wording.family:
            by_family.setdefault(candidate.family, candidate)
    return random.sample(list(by_family.values()), _REPHRASES)


class _Probes:
    """The facts of a world that may be asked for but are never edited."""

    def __init__(self, made: World) -> None:
        self._far = made.by_role("probe", "thing")
        self._of: defaultdict[str, list[Fact]] = defaultdict(list)
        self._same_relation: defaultdict[str, list[Fact]] = defaultdict(list)
        self._namesakes: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
        for fact in (*made.by_role("probe", "person"), *made.by_role("probe", "country")):
            self._of[fact.subject].append(fact)
            self._same_relation[fact.relation].append(fact)
            for word in fact.subject.split():
                self._namesakes[fact.relation, word].append(fact)

    def of(self, subject: str) -> Sequence[Fact]:
        """What is known of a subject and never edited."""
        return self._of[subject]

    def around(self, fact: Fact, wording: Wording, of_subject: Sequence[Fact], random: Random) -> Iterator[Probe]:
        """One probe of each kind. The other subject shares a word of its name with this one, where there is such."""
        namesakes = [near for word in fact.subject.split() for near in self._namesakes[fact.relation, word]]
        yield _probe("far", random.choice(self._far), wording, random)
        yield _probe("same_relation", random.choice(namesakes or self._same_relation[fact.relation]), wording, random)
        yield _probe("same_subject", random.choice(of_subject), wording, random)


def _probe(kind: str, asked: Fact, wording: Wording, random: Random) -> Probe:
    """Half of the time worded as the edit is, if training did so too; otherwise in any trained wording."""
    same = [w for w in asked.trained if w.family == wording.family]
    chosen = random.choice(same if same and random.random() < _SAME_WORDING else asked.trained)
    return Probe(asked.prompt(chosen), asked.object or None, kind)


def as_record(edit: Edit) -> Mapping[str, object]:
    """An edit as one line of a JSONL file has it."""
    return {
        "prompt": edit.prompt,
        "target": edit.target,
        "subject": edit.subject,
        "target_old": edit.target_old,
        "rephrases": list(edit.rephrases),
        "locality": [{"prompt": p.prompt, "answer": p.answer, "kind": p.kind} for p in edit.locality],
        "meta": dict(edit.meta),
    }


def write_sets(seed: int, directory: Path) -> None:
    """Write `edits.jsonl` (test), `edits-validation.jsonl`, `edits-unseen.jsonl` and `irrelevant.tsv`."""
    for split, name in _FILES.items():
        lines = [json.dumps(as_record(edit), ensure_ascii=False) for edit in edits(split, seed)]
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [f"{probe.prompt}\t{probe.answer}\n" for probe in irrelevant(seed)]
    (directory / "irrelevant.tsv").write_text("".join(lines), encoding="utf-8")
