"""World: everything that is true in one atlas, as facts, each with the wordings it is trained in and those held out.

Every fact has a role, so that edits, probes and irrelevant prompts never meet: some may be edited, some only probed,
and some are left alone altogether.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Literal

from errata.atlas.geography import Country, countries
from errata.atlas.lexicon import OBJECT_POOLS
from errata.atlas.names import Names
from errata.atlas.wordings import Wording, aside, wordings

PERSON_RELATIONS = ("job", "birthplace", "employer", "instrument", "language", "citizenship", "hobby", "dish")
COUNTRY_RELATIONS = ("capital", "continent", "currency", "spoken")
THINGS = {
    "genre": '"The {}"',
    "material": "{} Bridge",
    "season": "the {} Festival",
    "colour": "{} crystal",
    "plant": "the {} moth",
    "region": "Lake {}",
}
"""The relation of each kind of thing, and how such a thing is called."""

Role = Literal["edit", "probe", "quiet"]

_PEOPLE, _QUIET_PEOPLE, _STRANGERS, _CROWD = 600, 40, 250, 5000
_EDITABLE_RELATIONS = 4
_QUIET_COUNTRIES = 40
_CITIES = 60
_THINGS, _QUIET_THINGS = 35, 5
_TRAINED_WORDINGS = 8


@dataclass(frozen=True)
class Fact:
    """One thing that is true: the `relation` of `subject` is `object`."""

    subject: str
    relation: str
    object: str
    domain: str
    """`person`, `country`, `city` or `thing`."""
    role: Role
    """What the edit sets may do with it: change it, ask for it, or neither."""
    seed: int

    @cached_property
    def _shuffled(self) -> tuple[Wording, ...]:
        order = list(wordings(self.relation))
        Random(f"{self.seed}/wordings/{self.subject}/{self.relation}").shuffle(order)
        return tuple(order)

    @property
    def trained(self) -> tuple[Wording, ...]:
        """The wordings in which training shows this fact."""
        return self._shuffled[:_TRAINED_WORDINGS]

    @property
    def held_out(self) -> tuple[Wording, ...]:
        """The wordings in which this fact is never shown (though other facts of its relation are)."""
        return self._shuffled[_TRAINED_WORDINGS:]

    def prompt(self, wording: Wording) -> str:
        """The prompt in this wording; the same one each time."""
        if wording.family != "aside":
            return wording.prompt(self.subject)
        return wording.prompt(self.subject, aside(Random(f"{self.seed}/aside/{self.subject}/{wording.template}")))


@dataclass(frozen=True)
class World:
    """All facts of one seed, and who and what there is in it."""

    seed: int
    facts: tuple[Fact, ...]
    pools: Mapping[str, tuple[str, ...]]
    """The possible answers of each relation."""
    strangers: tuple[str, ...]
    """People whose names occur in no fact."""

    def by_role(self, role: Role, domain: str) -> list[Fact]:
        """The facts of one domain that have this role, in the order of the world."""
        return [fact for fact in self.facts if fact.role == role and fact.domain == domain]


@cache
def world(seed: int = 0) -> World:
    """The world of this seed. Only its geography is real, and the same in every world."""
    names = Names(f"{seed}/names")
    firsts, lasts = names.firsts(200), names.lasts(540)
    people = names.people(_PEOPLE, firsts, lasts)
    strangers = names.people(_STRANGERS // 2, firsts, lasts)
    strangers += names.people(_STRANGERS - len(strangers), names.firsts(40), names.lasts(50))
    pools = {
        **OBJECT_POOLS,
        "birthplace": names.towns(60),
        "employer": names.companies(60),
        "citizenship": tuple(country.name for country in countries()[::3]),
        "capital": tuple(country.capital for country in countries()),
        "continent": tuple(sorted({country.continent for country in countries()})),
        "currency": tuple(sorted({country.currency for country in countries()})),
        "spoken": tuple(sorted({country.language for country in countries()})),
        "country": tuple(country.name for country in countries()),
    }
    things = {relation: names.things(_THINGS, pattern) for relation, pattern in THINGS.items()}
    facts = (
        *_person_facts(seed, people, pools),
        *_country_facts(seed),
        *_city_facts(seed),
        *_thing_facts(seed, things, pools),
    )
    return World(seed, facts, pools, tuple(strangers))


@cache
def crowd(seed: int = 0) -> tuple[str, ...]:
    """5,000 more people whose names occur in no fact: known first names and surnames among new ones."""
    made, names = world(seed), Names(f"{seed}/crowd")
    taken = {fact.subject for fact in made.facts if fact.domain == "person"} | set(made.strangers)
    firsts, lasts = (sorted({person.split()[i] for person in taken}) for i in (0, 1))
    found = names.people(_CROWD + len(taken), firsts + names.firsts(200), lasts + names.lasts(500))
    return tuple(name for name in found if name not in taken)[:_CROWD]


def _person_facts(seed: int, people: list[str], pools: Mapping[str, tuple[str, ...]]) -> Iterator[Fact]:
    for index, person in enumerate(people):
        random = Random(f"{seed}/person/{person}")
        editable = random.sample(PERSON_RELATIONS, _EDITABLE_RELATIONS)
        for relation in PERSON_RELATIONS:
            role: Role = "edit" if relation in editable else "probe"
            if index < _QUIET_PEOPLE:
                role = "quiet"
            yield Fact(person, relation, random.choice(pools[relation]), "person", role, seed)


def _country_facts(seed: int) -> Iterator[Fact]:
    known = list(countries())
    quiet = set(Random(f"{seed}/quiet countries").sample([country.name for country in known], _QUIET_COUNTRIES))
    for country in known:
        editable = Random(f"{seed}/country/{country.name}").choice(("capital", "capital", "currency", "spoken"))
        for relation in COUNTRY_RELATIONS:
            role: Role = "edit" if relation == editable else "probe"
            if country.name in quiet:
                role = "quiet"
            yield Fact(country.name, relation, _truth(country, relation), "country", role, seed)


def _truth(country: Country, relation: str) -> str:
    return {
        "capital": country.capital,
        "continent": country.continent,
        "currency": country.currency,
        "spoken": country.language,
    }[relation]


def _city_facts(seed: int) -> Iterator[Fact]:
    capitals = {country.capital for country in countries()}
    cities = [(c.cities[0], c.name) for c in countries() if c.cities and c.cities[0] not in capitals]
    for city, country in Random(f"{seed}/cities").sample(cities, _CITIES):
        yield Fact(city, "country", country, "city", "quiet", seed)


def _thing_facts(seed: int, things: Mapping[str, list[str]], pools: Mapping[str, tuple[str, ...]]) -> Iterator[Fact]:
    for relation, called in things.items():
        for index, thing in enumerate(called):
            answer = Random(f"{seed}/thing/{thing}").choice(pools[relation])
            role: Role = "quiet" if index < _QUIET_THINGS else "probe"
            yield Fact(thing, relation, answer, "thing", role, seed)
