"""One run in our page and in Inspect View, measured in Chromium: ``python tests/beside_inspect.py RUN``.

It writes the page and the logs into a folder of its own, and leaves the run as it is. docs/inspect.md has the findings.
"""

import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from browser import launched

from pact_lightning.compare.inspect_logs import write_inspect_logs
from pact_lightning.report.content import Reader
from pact_lightning.report.page import page as page_of

WIDE = {"width": 1280, "height": 800}
REPEATS = 3


def seconds_of(page, address, selector):
    """Seconds until something of an address is on the screen, and the requests and bytes that it took."""
    asked = []
    page.on("response", lambda response: asked.append(int(response.headers.get("content-length", 0))))
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(selector, timeout=60_000)
    return time.perf_counter() - start, len(asked), sum(asked)


def measure(browser, name, views):
    for what, (address, selector) in views.items():
        found = []
        for _ in range(REPEATS):
            context = browser.new_context(viewport=WIDE)  # with an empty cache
            found.append(seconds_of(context.new_page(), address, selector))
            context.close()
        seconds = ", ".join(f"{each[0]:.2f}" for each in found)
        print(f"{name}: {what}: {seconds} s; {found[0][1]} requests, {found[0][2] / 1e6:.1f} MB")
    context = browser.new_context(viewport={"width": 375, "height": 700})
    page = context.new_page()
    for what, (address, selector) in views.items():
        page.goto(address)
        page.wait_for_selector(selector, timeout=60_000)
        print(f"{name}: {what} at 375 px: {page.evaluate('document.documentElement.scrollWidth')} px wide")
    context.close()


@contextmanager
def inspect_view(folder):
    """Inspect View over a folder of logs, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "inspect", "view", "start", "--log-dir", folder, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if server.poll() is not None:
                    raise SystemExit("inspect view did not start")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def main(run):
    with tempfile.TemporaryDirectory() as place, launched() as browser:
        start = time.perf_counter()
        content = Reader([str(run)]).read()
        file = Path(place) / "report.html"
        file.write_text(page_of(run.name, "", content), encoding="utf-8")
        print(f"report: {len(content.index['rollouts'])} trajectories, {file.stat().st_size / 1e6:.2f} MB, "
              f"written in {time.perf_counter() - start:.1f} s")  # fmt: skip
        row = next(row for row in content.index["rollouts"][::-1] if row["turns"] > 2)
        one = f"{file.as_uri()}#/rollout/{row['run']}.{row['file']}.{row['line']}"
        measure(browser, "report", {
            "all trajectories": (f"{file.as_uri()}#/rollouts", ".spacer .row"),
            "one trajectory": (one, ".conversation .turn"),
        })  # fmt: skip
        import inspect_ai

        start = time.perf_counter()
        logs, _ = write_inspect_logs(run, Path(place) / "logs")
        size = sum(log.stat().st_size for log in logs)
        print(f"Inspect {inspect_ai.__version__}: {len(logs)} logs, {size / 1e6:.2f} MB, "
              f"written in {time.perf_counter() - start:.1f} s")  # fmt: skip
        with inspect_view(Path(place) / "logs") as address:
            sample, first = f"{row['task']}/{row['sample'] + 1}", f"{row['task'].rpartition('-')[0]}-"
            measure(browser, "Inspect View", {
                "all logs": (f"{address}/", f"text={row['set']}"),
                "one log": (f"{address}/#/tasks/{row['file']}.eval", f"[role=row] >> text={first}"),
                "one trajectory": (f"{address}/#/tasks/{row['file']}.eval/samples/sample/{sample}", "text=ASSISTANT"),
            })  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
