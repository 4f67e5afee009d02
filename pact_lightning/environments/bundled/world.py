"""A small closed world of people, places, works and organisations, generated from (split, index)."""

import random
from dataclasses import dataclass, field

from pact_lightning.environments.bundled.names import draw_words
from pact_lightning.seeds import python_random

PROFESSIONS: tuple[str, ...] = ("painter", "doctor", "lawyer", "singer", "baker", "pilot")
CENSUS_YEARS: tuple[int, ...] = (1900, 1950)

_PEOPLE, _PLACES, _WORKS, _ORGANISATIONS = 10, 5, 6, 4


@dataclass(slots=True)
class World:
    """Facts of one world.

    Attributes:
        split: The split whose words its names are made of.
        facts: ``facts[relation][name] = value`` for every relation of :mod:`.relations`; census figures have one
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
        """People with this last name."""
        return [name for name in self.people if name.split()[-1] == last_name]


def generate_world(split: str, index: int) -> World:
    """Makes the world of one task; the same arguments always give the same world.

    Args:
        split: One of :data:`.names.SPLITS`.
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
