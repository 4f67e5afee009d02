"""Speed of a page in Chromium: ``python tests/page_speed.py PAGE``, where PAGE is what ``report`` has written."""

import sys
import time
from pathlib import Path

from browser import launched

SCROLL = """() => new Promise((done) => {
  const list = document.querySelector(".scroller"), times = [];
  let last = performance.now();
  const step = () => {
    const now = performance.now();
    times.push(now - last);
    last = now;
    list.scrollTop += 230;
    if (times.length < 300) requestAnimationFrame(step);
    else done(times.slice(1).sort((a, b) => a - b));
  };
  requestAnimationFrame(step);
})"""
FOUND = "() => / of /.test(document.querySelector('.status').textContent)"


def measure(address):
    with launched() as browser:
        for _ in range(3):
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            start = time.perf_counter()
            page.goto(f"{address}#/rollouts")
            page.wait_for_selector(".spacer .row")
            opened = time.perf_counter() - start
            frames = page.evaluate(SCROLL)
            start = time.perf_counter()
            page.fill("#search", "population")
            page.wait_for_function("() => location.hash.includes('population')")
            page.wait_for_function(FOUND)
            found = time.perf_counter() - start
            middle, late = frames[len(frames) // 2], frames[len(frames) * 95 // 100]
            print(f"open {opened:.2f} s, frame {middle:.1f} ms (95 %: {late:.1f} ms), search {found:.2f} s")


if __name__ == "__main__":
    measure(Path(sys.argv[1]).resolve().as_uri())
