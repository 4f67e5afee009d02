"""The relations of the bundled world and the tool that looks each one up."""

from dataclasses import dataclass

from pact_lightning.environments.bundled.world import CENSUS_YEARS


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
"""How two numbers are combined: word in the question -> tool."""
