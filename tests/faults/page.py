"""The results as tables of the docs, each between marks of its section."""

HEADINGS = ("fault", "times", "held", "what happened")


def cells(result):
    """A result as the cells of its row."""
    return [result.fault, str(result.times), str(result.held), result.happened]


def write_into_pages(pages, results, how):
    """Replaces the tables of the sections that have results; the others stay.

    Args:
        pages: The pages. A section's table stands on one of them, between ``<!-- faults SECTION: begin -->`` and
            ``... end -->``.
        results: The results.
        how: By which command and when they were made.

    Raises:
        ValueError: No page has a place for a section.
    """
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for section in dict.fromkeys(result.section for result in results):
        begin, end = f"<!-- faults {section}: begin -->", f"<!-- faults {section}: end -->"
        page = next((page for page, text in texts.items() if begin in text and end in text), None)
        if page is None:
            raise ValueError(
                f"{', '.join(map(str, pages))}: no place for the faults of {section!r}; put the lines {begin} and "
                f"{end} into one of them"
            )
        rows = [cells(result) for result in results if result.section == section]
        lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
        table = "\n".join("| " + " | ".join(map(_escaped, row)) + " |" for row in lines)
        before, rest = texts[page].split(begin, 1)
        texts[page] = f"{before}{begin}\n{table}\n\nMade by {how}.\n{end}{rest.split(end, 1)[1]}"
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")


def _escaped(cell):
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
