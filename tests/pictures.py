"""Pictures of the docs: the page of a run, photographed in Chromium. ``python tests/pictures.py RUN FOLDER``."""

import sys
import tempfile
from pathlib import Path

from browser import go, launched, opened
from PIL import Image  # with matplotlib, of the extra `pictures`

from pact_lightning.report.content import Reader
from pact_lightning.report.page import page as page_of

SIZE = {"width": 1280, "height": 800}


def chosen(content):
    """A trajectory whose tokens have figures, of a phase in the middle, solved in as few turns as can be."""
    rows = [row for row in content.index["rollouts"] if row["heat"]]
    middle = [row for row in rows if row["phase"] == rows[len(rows) // 2]["phase"] and row["turns"] > 2]
    row = max(middle, key=lambda row: (row["solved"], -row["errors"], -row["turns"]))
    return f"/rollout/{row['run']}.{row['file']}.{row['line']}"


def photograph(run, folder):
    content = Reader([f"quickstart={run}"]).read()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, launched() as browser:
        file = Path(place) / "report.html"
        file.write_text(page_of("quickstart", "", content), encoding="utf-8")
        page = opened(browser.new_context(viewport=SIZE), file.as_uri())

        def shoot(name, route):
            go(page, route)
            page.wait_for_selector(".card, .spacer .row, .turn")
            if "trajectory" in name:
                page.select_option("#heat", "gap")
            page.mouse.move(0, 0)
            page.wait_for_timeout(200)
            page.screenshot(path=folder / f"{name}.png")
            # A page has few colours; 256 of them take a third of the bytes.
            picture = Image.open(folder / f"{name}.png").convert("RGB")
            few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(folder / f"{name}.png", optimize=True)

        trained = [row["set"] for row in content.index["rollouts"] if row["phase"] is not None]
        shoot("report-rollouts", f"/rollouts?set={trained[-1]}")
        shoot("report-trajectory", chosen(content))
        page.set_viewport_size(SIZE | {"height": 1240})
        shoot("report-overview", "/")


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
