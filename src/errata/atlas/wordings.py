"""Wordings: the many ways to ask for a fact, in families that end in different tokens.

A wording is a prompt that ends where the answer is due. Families differ in what stands at the end ("?", "A:", "is",
"|", a quotation mark, ...), in whether the subject or the relation comes first, and in what stands in front.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from types import MappingProxyType

from errata.atlas.lexicon import ASIDE_SUBJECTS, ASIDE_VERBS


@dataclass(frozen=True)
class Phrases:
    """How English speaks of one relation. `{s}` stands for the subject, `{o}` for the object."""

    nouns: tuple[str, str]
    questions: tuple[str, str]
    clozes: tuple[str, str]
    """Statements that end just before the object."""
    sentences: tuple[str, str]
    """Whole sentences; the subject comes first in the first of them."""


@dataclass(frozen=True)
class Wording:
    """One prompt template of one relation."""

    family: str
    template: str

    def prompt(self, subject: str, aside: str = "") -> str:
        """The prompt about `subject`; `aside` is the unrelated sentence that those of the family "aside" begin with."""
        return self.template.format(s=subject, aside=aside)


PHRASES: Mapping[str, Phrases] = MappingProxyType(
    {
        "job": Phrases(
            ("job", "occupation"),
            ("What does {s} do for a living?", "Which trade does {s} follow?"),
            ("{s} earns a living as a", "By trade, {s} is a"),
            ("{s} works as a {o}.", "The trade that {s} learned is that of a {o}."),
        ),
        "birthplace": Phrases(
            ("birthplace", "home town"),
            ("Where was {s} born?", "In which town did {s} come into the world?"),
            ("{s} was born in", "The town where {s} was born is"),
            ("{s} was born in {o}.", "It was in {o} that {s} grew up."),
        ),
        "employer": Phrases(
            ("employer", "company"),
            ("Who employs {s}?", "Which firm pays the wages of {s}?"),
            ("{s} is employed by", "The firm that {s} works for is"),
            ("{s} is employed by {o}.", "The people at {o} know {s} well."),
        ),
        "instrument": Phrases(
            ("instrument", "musical instrument"),
            ("Which instrument does {s} play?", "What does {s} play in the orchestra?"),
            ("{s} plays the", "In the orchestra, {s} can be heard on the"),
            ("{s} plays the {o}.", "Nobody practises the {o} as much as {s}."),
        ),
        "language": Phrases(
            ("mother tongue", "first language"),
            ("Which language did {s} learn first?", "What language does {s} speak at home?"),
            ("At home, {s} speaks", "{s} grew up speaking"),
            ("{s} speaks {o} at home.", "Letters in {o} are what {s} likes best."),
        ),
        "citizenship": Phrases(
            ("citizenship", "nationality"),
            ("Of which country is {s} a citizen?", "Which country gave {s} a passport?"),
            ("{s} is a citizen of", "The passport of {s} was issued by"),
            ("{s} is a citizen of {o}.", "A passport of {o} belongs to {s}."),
        ),
        "hobby": Phrases(
            ("hobby", "favourite pastime"),
            ("What does {s} do at weekends?", "Which pastime does {s} enjoy?"),
            ("In the evenings, {s} enjoys", "{s} spends every weekend on"),
            ("{s} is fond of {o}.", "At weekends there is only {o} for {s}."),
        ),
        "dish": Phrases(
            ("favourite dish", "favourite food"),
            ("What does {s} like to eat?", "Which dish does {s} order?"),
            ("{s} likes to eat", "The dish that {s} always orders is"),
            ("{s} likes to eat {o}.", "A plate of {o} will please {s}."),
        ),
        "capital": Phrases(
            ("capital", "capital city"),
            ("What is the capital of {s}?", "From which city is {s} governed?"),
            ("The government of {s} sits in", "{s} is governed from"),
            ("{s} has its capital in {o}.", "It is {o} that is the capital of {s}."),
        ),
        "continent": Phrases(
            ("continent", "part of the world"),
            ("On which continent is {s}?", "In what part of the world does {s} lie?"),
            ("{s} lies in", "The continent on which to look for {s} is"),
            ("{s} is a country in {o}.", "One of the countries of {o} is {s}."),
        ),
        "currency": Phrases(
            ("currency", "money"),
            ("Which currency is used in {s}?", "What do people pay with in {s}?"),
            ("In {s} people pay with the", "The money used in {s} is the"),
            ("{s} uses the {o}.", "With the {o} one can pay all over {s}."),
        ),
        "spoken": Phrases(
            ("main language", "most common language"),
            ("Which language is spoken in {s}?", "What do most people in {s} speak?"),
            ("Most people in {s} speak", "The language heard most in {s} is"),
            ("{s} has many speakers of {o}.", "There is much {o} to be heard in {s}."),
        ),
        "country": Phrases(
            ("country", "country on the map"),
            ("In which country is {s}?", "Which country does the city of {s} belong to?"),
            ("{s} is a city in", "To visit {s} one must travel to"),
            ("{s} is a city in {o}.", "One of the cities of {o} is {s}."),
        ),
        "genre": Phrases(
            ("genre", "kind of book"),
            ("Which genre is {s}?", "What sort of book is {s}?"),
            ("{s} is best described as", "On the shelf, {s} stands under"),
            ("{s} is sold as {o}.", "Readers of {o} will enjoy {s}."),
        ),
        "material": Phrases(
            ("building material", "material"),
            ("What is {s} made of?", "Which material was used for {s}?"),
            ("{s} is made of", "They built {s} out of"),
            ("{s} is made of {o}.", "It took much {o} to build {s}."),
        ),
        "season": Phrases(
            ("date", "time of year"),
            ("When does {s} take place?", "At what time of year is {s} held?"),
            ("{s} is held in", "Crowds come to {s} in"),
            ("{s} takes place in {o}.", "In {o} the town is full because of {s}."),
        ),
        "colour": Phrases(
            ("colour", "usual colour"),
            ("What colour is {s}?", "Which colour does {s} have?"),
            ("{s} is always", "When it is polished, {s} turns"),
            ("{s} is {o} all through.", "A stone that is {o} may be {s}."),
        ),
        "plant": Phrases(
            ("food plant", "favourite plant"),
            ("What does {s} feed on?", "On which plant does {s} lay its eggs?"),
            ("{s} feeds on", "The caterpillar of {s} lives on"),
            ("{s} feeds on {o}.", "Wherever there is {o} you may find {s}."),
        ),
        "region": Phrases(
            ("region", "part of the country"),
            ("Where is {s}?", "In which region can one swim in {s}?"),
            ("{s} lies in the", "To see {s} one must go to the"),
            ("{s} lies in the {o}.", "Anglers in the {o} often speak of {s}."),
        ),
    }
)

_FRAMES = (
    ("question", "{q0}"),
    ("question", "{q1}"),
    ("qa", "Q: {q0} A:"),
    ("cloze", "{c0}"),
    ("cloze", "{c1}"),
    ("noun", "The {n0} of {{s}} is"),
    ("noun", "{{s}} has this {n1}:"),
    ("record", "{{s}} | {n0} |"),
    ("colon", "Name: {{s}}. {N1}:"),
    ("dialogue", 'Anna asked, "{q1}" Ben said, "'),
    ("fill", "{N0} ( {{s}} ) ="),
    ("arrow", "{{s}} -> {n1} ->"),
    ("indirect", "If anyone wants to know the {n0} of {{s}}, say"),
    ("indirect", "About {{s}} we know one thing, the {n1}, namely"),
    ("aside", "{{aside}} {c0}"),
    ("aside", "{{aside}} {q0}"),
)

FAMILIES = tuple(dict.fromkeys(family for family, _ in _FRAMES))


@cache
def wordings(relation: str) -> tuple[Wording, ...]:
    """All sixteen wordings of a relation."""
    phrases = PHRASES[relation]
    parts = {
        "n0": phrases.nouns[0],
        "n1": phrases.nouns[1],
        "N0": phrases.nouns[0].capitalize(),
        "N1": phrases.nouns[1].capitalize(),
        "q0": phrases.questions[0],
        "q1": phrases.questions[1],
        "c0": phrases.clozes[0],
        "c1": phrases.clozes[1],
    }
    return tuple(Wording(family, frame.format(**parts)) for family, frame in _FRAMES)


def aside(random: Random) -> str:
    """An unrelated sentence."""
    return f"{random.choice(ASIDE_SUBJECTS)} {random.choice(ASIDE_VERBS)}."
