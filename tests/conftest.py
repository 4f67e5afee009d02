"""Fixtures and marks shared by all tests."""

import importlib
import os
import sys
import tempfile
from contextlib import closing
from importlib.machinery import ModuleSpec
from pathlib import Path

import hypothesis
import pytest
from _pytest.doctest import DoctestModule

# The models here are so small that a second thread mostly waits for the first one, and takes its core from the
# processes that tests start. They inherit it; torch reads it when it is imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks the hub; without a network each question would be repeated for half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Trackio reads its folder once, when the first test imports it, and no test writes to the user's own. The processes
# that run the tests have it from the one that hands them out, which also removes it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _trackio = tempfile.TemporaryDirectory(prefix="trackio-")
    os.environ["TRACKIO_DIR"] = _trackio.name
import rooms  # noqa: F401  # puts the rooms on the path
from warm_python import WarmPython

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes of CPU")


def pytest_configure(config):
    if not config.getoption("--slow"):
        hypothesis.settings.register_profile("ordinary", hypothesis.settings.default, max_examples=40)
        hypothesis.settings.load_profile("ordinary")


# The first files to start, in this order: a worker gets whole files, and a long one at the end would leave the others
# idle. Those that wait for servers and limits stand beside those that keep both cores busy with processes of their own.
FIRST = [
    *("test_processes", "test_mcp_environment", "test_mcp_outage", "test_docs", "test_faults", "test_overlap"),
    *(
        "test_traces_generate",
        "test_check_gpu",
        "test_endpoint",
        "test_vllm_server",
        "test_soak",
        "test_report_browser",
    ),
    *("test_cli_mistakes", "test_run_folders", "test_interruption", "test_pact_module", "test_resampling", "test_cli"),
    *("test_command_plan", "test_failing_environments", "test_flex_attention", "test_real_tokenizers", "test_journeys"),
    *(
        "test_report_browser",
        "test_checkpoint_resume",
        "test_other_device",
        "test_bfcl_check",
        "test_plan_memory",
        "test_whole_loss",
    ),
]


def pytest_collection_modifyitems(config, items):
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))
    import torch  # not in the process that only hands the tests out

    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes of CPU; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "shared" in item.keywords and not SHARED_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/data, which is not part of the project"))


@pytest.fixture(autouse=True)
def _leave_imports_as_they_were():
    """Take back what a test did to the import path.

    A command puts the folder that it is called in on the path, as it should: a later test would find what lies there.
    """
    path = list(sys.path)
    known = set(sys.modules)
    yield
    if sys.path != path:
        added = [f"{place}{os.sep}" for place in sys.path if place not in path]
        sys.path[:] = path
        for name in set(sys.modules) - known:
            spec = getattr(sys.modules[name], "__spec__", None)
            if isinstance(spec, ModuleSpec):  # some libraries put objects there that only look like modules
                places = [spec.origin, *(spec.submodule_search_locations or ())]
                if any(str(place).startswith(tuple(added)) for place in places):
                    del sys.modules[name]
        importlib.invalidate_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lives beside the project, where there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    return SHARED_DATA


WARM = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """No examples are looked for in the tests, which hold none: they would be imported and searched once more."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """The processes that share the tests share a warm Python too."""
    if WARM not in node.config.stash:
        node.config.stash[WARM] = WarmPython()
    node.workerinput["warm_python"] = str(node.config.stash[WARM].folder)


def pytest_unconfigure(config):
    if WARM in config.stash:
        config.stash[WARM].close()


@pytest.fixture(scope="session")
def warm_python(request):
    """A Python that has the large libraries imported, for programs of whose start a test says nothing."""
    with closing(WarmPython(getattr(request.config, "workerinput", {}).get("warm_python"))) as python:
        yield python
