"""Small closed world of people, places, works and organisations, generated from (split, index).

Names are made of two syllables. Every split has its own words: no held-out name was ever seen in training. Each kind of
name has syllables of its own, as place names and surnames do in many languages. The relations between things, and the
tool that looks each one up, stand at the end.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass, field
from functools import cache

from pact_lightning.utils.seeds import python_random

SPLITS: tuple[str, ...] = ("train", "validation", "test", "longer")
NAME_KINDS: tuple[str, ...] = ("place", "work", "organisation", "first", "last")

_STARTS = {"place": "aor", "work": "eil", "organisation": "oun", "first": "ai", "last": "ues"}
"""Two vowels and a final consonant; first names have none."""
_ENDS = {
    "place": ("a", "um"),
    "work": ("e", "is"),
    "organisation": ("o", "ex"),
    "first": ("i", "an"),
    "last": ("u", "er"),
}
_SPLIT_OF_BUCKET = ("train",) * 5 + ("validation", "test", "longer")


@cache
def syllables(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return first and second syllables of a kind of name; no syllable belongs to two kinds."""
    vowels, coda = _STARTS[kind][:2], _STARTS[kind][2:]
    starts = tuple(consonant + vowel + coda for consonant in "BDFGHKLMNPRSTVZJ" for vowel in vowels)
    ends = tuple(consonant + rest for consonant in "bdfgklmnprstvz" for rest in _ENDS[kind])
    return starts, ends


def _bucket(word: str) -> str:
    digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
    return _SPLIT_OF_BUCKET[digest[0] % len(_SPLIT_OF_BUCKET)]


def check_split(split: str) -> None:
    """Refuse a split that there is not.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the bundled world has no split {split!r}; choose one of {', '.join(SPLITS)}")


@cache
def words(split: str, kind: str) -> tuple[str, ...]:
    """Return all words of a split and kind; disjoint between splits.

    Raises:
        ValueError: There is no such split.
    """
    check_split(split)
    every = (start + end for start, end in itertools.product(*syllables(kind)))
    return tuple(word for word in every if _bucket(word) == split)


def draw_words(split: str, kind: str, count: int, rng: random.Random) -> list[str]:
    """Draw distinct words of a split and kind."""
    return rng.sample(words(split, kind), count)


PROFESSIONS: tuple[str, ...] = ("painter", "doctor", "lawyer", "singer", "baker", "pilot")
CENSUS_YEARS: tuple[int, ...] = (1900, 1950)

_PEOPLE, _PLACES, _WORKS, _ORGANISATIONS = 10, 5, 6, 4


@dataclass(slots=True)
class World:
    """Facts of one world.

    Attributes:
        split: The split whose words its names are made of.
        facts: ``facts[relation][name] = value`` of :data:`RELATIONS`; census figures have one
            relation per year.
        people: Full names; two of them share their last name.
        professions: Profession by full name; people who share a last name have different professions.
        entities: Names by type (``person, place, work, organisation``).
    """

    split: str
    facts: dict[str, dict[str, str | int]] = field(default_factory=dict)
    professions: dict[str, str] = field(default_factory=dict)
    entities: dict[str, list[str]] = field(default_factory=dict)

    @property
    def people(self) -> list[str]:
        """Full names of all people."""
        return self.entities["person"]

    def namesakes(self, last_name: str) -> list[str]:
        """Return the people with this last name."""
        return [name for name in self.people if name.split()[-1] == last_name]


def generate_world(split: str, index: int) -> World:
    """Make the world of one task; the same arguments always give the same world.

    Args:
        split: One of :data:`SPLITS`.
        index: Number of the task within the split.
    """
    rng = python_random("bundled-world", split, index)
    last_names = draw_words(split, "last", _PEOPLE - 1, rng)
    last_names.append(last_names[0])
    first_names = draw_words(split, "first", _PEOPLE, rng)
    people = [f"{first} {last}" for first, last in zip(first_names, last_names, strict=True)]
    places = draw_words(split, "place", _PLACES, rng)
    works = draw_words(split, "work", _WORKS, rng)
    organisations = draw_words(split, "organisation", _ORGANISATIONS, rng)
    world = World(split, entities={"person": people, "place": places, "work": works, "organisation": organisations})
    professions = rng.sample(PROFESSIONS, 2)
    world.professions = {name: rng.choice(PROFESSIONS) for name in people}
    world.professions[people[0]], world.professions[people[-1]] = professions
    _add_facts(world, rng)
    return world


def _add_facts(world: World, rng: random.Random) -> None:
    person, place = world.entities["person"], world.entities["place"]
    work, organisation = world.entities["work"], world.entities["organisation"]

    def links(sources: list[str], targets: list[str]) -> dict[str, str | int]:
        return {name: rng.choice([target for target in targets if target != name]) for name in sources}

    def numbers(sources: list[str], low: int, high: int) -> dict[str, str | int]:
        return dict(zip(sources, rng.sample(range(low, high), len(sources)), strict=True))

    couples = rng.sample(person, len(person))
    spouse: dict[str, str | int] = {}
    for one, other in zip(couples[::2], couples[1::2], strict=True):
        spouse[one], spouse[other] = other, one
    world.facts = {
        "author": links(work, person),
        "publisher": links(work, organisation),
        "publication year": numbers(work, 1700, 2000),
        "birthplace": links(person, place),
        "employer": links(person, organisation),
        "spouse": spouse,
        "birth year": numbers(person, 1700, 2000),
        "mayor": links(place, person),
        "headquarters": links(organisation, place),
        "founder": links(organisation, person),
        "founding year": numbers(organisation, 1700, 2000),
        **{f"{year} population": numbers(place, 1000, 10_000) for year in CENSUS_YEARS},
    }


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation, such as *author*: from a work to a person.

    Attributes:
        phrase: As questions and reasoning say it: ``the <phrase> of "<name>"``.
        tool: Name of the tool that looks it up.
        source: Type of the entity asked about; also the tool's argument name.
        target: Type of the value (``number`` for years and populations).
        field: Key of the value in the tool's response.
        year: Census year, for populations only: the tool then needs a second argument.
    """

    phrase: str
    tool: str
    source: str
    target: str
    field: str
    year: int | None = None


RELATIONS: tuple[Relation, ...] = (
    Relation("author", "author_of", "work", "person", "author"),
    Relation("publisher", "publisher_of", "work", "organisation", "publisher"),
    Relation("publication year", "publication_year_of", "work", "number", "year"),
    Relation("birthplace", "birthplace_of", "person", "place", "birthplace"),
    Relation("employer", "employer_of", "person", "organisation", "employer"),
    Relation("spouse", "spouse_of", "person", "person", "spouse"),
    Relation("birth year", "birth_year_of", "person", "number", "year"),
    Relation("mayor", "mayor_of", "place", "person", "mayor"),
    Relation("headquarters", "headquarters_of", "organisation", "place", "headquarters"),
    Relation("founder", "founder_of", "organisation", "person", "founder"),
    Relation("founding year", "founding_year_of", "organisation", "number", "year"),
    *(
        Relation(f"{year} population", "population_of", "place", "number", "population", year=year)
        for year in CENSUS_YEARS
    ),
)
BY_PHRASE: dict[str, Relation] = {relation.phrase: relation for relation in RELATIONS}
BY_TOOL: dict[str, list[Relation]] = {}
for _relation in RELATIONS:
    BY_TOOL.setdefault(_relation.tool, []).append(_relation)

PROFILE_FIELDS: tuple[str, ...] = ("birthplace", "employer", "spouse")
"""Relations that ``profile_of`` answers together: a second valid path to each of them."""

COMBINATIONS: dict[str, str] = {"sum": "add", "difference": "subtract", "larger": "larger"}
"""Combinations of two numbers: word in the question -> tool."""
