"""What people expect beside a package: its addresses, how to cite it, what an sdist holds."""

import re
import tomllib
from pathlib import Path

import yaml

import pact_lightning

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_names_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= citation.keys()
    assert citation["version"] == PROJECT["version"] == pact_lightning.__version__
    assert citation["license"] == PROJECT["license"]
    paper = citation["references"][0]["identifiers"][0]["value"].removeprefix("arXiv:")
    assert PROJECT["urls"]["Paper"].endswith(paper)


def test_issue_forms_have_what_a_form_needs():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert all({"type", "attributes"} <= field.keys() for field in form["body"])


def test_what_the_manifest_and_the_dockerfile_name_is_there():
    """An sdist silently leaves out what is not there; a build of the image ends."""
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    named = re.findall(r"^graft (\S+)$", manifest, re.MULTILINE)
    named += [word for line in re.findall(r"^include (.+)$", manifest, re.MULTILINE) for word in line.split()]
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    copied = {word for line in copied for word in line.split()}
    named += copied
    assert [name for name in named if not (ROOT / name).exists()] == []
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert copied == kept
    extras = re.search(r"^ARG EXTRAS=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
