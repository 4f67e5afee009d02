"""The results as tables of a page, each between marks of its section."""

HEADINGS = ("fault", "times", "held", "what happened")


def cells(result):
    """A result as the cells of its row."""
    return [result.fault, str(result.times), str(result.held), result.happened]


def write_into_page(page, results, how):
    """Replaces the tables of the sections that have results; the others stay.

    Args:
        page: The page. A section's table stands between ``<!-- faults SECTION: begin -->`` and ``... end -->``.
        results: The results.
        how: By which command and when they were made.

    Raises:
        ValueError: The page has no place for a section.
    """
    text = page.read_text(encoding="utf-8")
    for section in dict.fromkeys(result.section for result in results):
        begin, end = f"<!-- faults {section}: begin -->", f"<!-- faults {section}: end -->"
        if begin not in text or end not in text:
            raise ValueError(
                f"{page} has no place for the faults of {section!r}; put the lines {begin} and {end} into it"
            )
        rows = [cells(result) for result in results if result.section == section]
        lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
        table = "\n".join("| " + " | ".join(map(_escaped, row)) + " |" for row in lines)
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{table}\n\nMade by {how}.\n{end}{rest.split(end, 1)[1]}"
    page.write_text(text, encoding="utf-8")


def _escaped(cell):
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
