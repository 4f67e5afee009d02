"""Attacks on files outside, on older kernels' file rules, and on what a snippet may read; every attack is run for real.

Kernels that lack a layer are simulated by leaving it out: then another one must hold, or the warning must say so.
"""

import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from pact_lightning.environments.sandbox import libraries
from pact_lightning.environments.sandbox.files import landlock_version
from pact_lightning.environments.sandbox.libraries import readable_files
from pact_lightning.environments.sandbox.limits import FILE_RULES, FILTER, NETWORK, OWN_FILES, PRIVILEGES
from pact_lightning.environments.sandbox.sandbox import Limits, SandboxPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")
LIMITS = Limits(timeout_s=30)
NATIVE = """
import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
def native(name, *arguments):
    return [getattr(c, name)(*arguments), ctypes.get_errno()]
"""
REFUSED = ("[-1, 1]", "[-1, 30]")  # EPERM by the filter, EROFS by the file system
METADATA = [
    "native('chmod', path, 0o4777)",
    "native('chmod', path, 0)",
    "native('lchmod', path, 0o777)",
    "native('fchmodat', -100, path, 0o4777, 0)",
    "native('fchmod', c.open(readable, 0), 0o4777)",
    "native('chown', path, 65534, 65534)",
    "native('lchown', path, 65534, 65534)",
    "native('fchown', c.open(readable, 0), 65534, 65534)",
    "native('utimensat', -100, path, bytes(32), 0)",
    "native('utimes', path, bytes(32))",
    "native('futimens', c.open(readable, 0), bytes(32))",
    "native('setxattr', path, b'user.x', b'kept', 4, 0)",
    "native('lsetxattr', path, b'user.x', b'kept', 4, 0)",
    "native('fsetxattr', c.open(readable, 0), b'user.x', b'kept', 4, 0)",
    "native('removexattr', path, b'user.mark')",
]
TRUNCATIONS = [
    "native('truncate', path, 0)",
    "native('open', path, os.O_RDONLY | os.O_TRUNC)",
    "native('open', path, 3 | os.O_TRUNC)",
    "native('open', path, os.O_WRONLY | os.O_TRUNC)",
    "native('syscall', 437, -100, path, (1 << 9).to_bytes(8, 'little') + bytes(16), 24)",  # openat2
]


@pytest.fixture(autouse=True)
def _installed_packages_are_looked_up_anew():
    readable_files.cache_clear()
    yield
    readable_files.cache_clear()


@contextmanager
def pool_of(**how):
    pool = SandboxPool(1, **how)
    try:
        yield pool
    finally:
        pool.close()


def missing_layers(pool, caplog):
    """What the pool's warning names."""
    with caplog.at_level(logging.WARNING):
        assert pool.run("def f(): return 1", "f", {}, limits=LIMITS).text == "1"
    return caplog.text


def skip_without(pool, caplog, layer):
    if layer in missing_layers(pool, caplog):
        pytest.skip(f"this system lacks the {layer}")


def package(tmp_path, monkeypatch):
    """An installed distribution, whose file snippets may read."""
    site = tmp_path / "site"
    (site / "named").mkdir(parents=True)
    (site / "named" / "__init__.py").write_text("CONTENT = 'precious'")
    (site / "named-1.dist-info").mkdir()
    (site / "named-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: named\nVersion: 1\n")
    (site / "named-1.dist-info" / "RECORD").write_text("named/__init__.py,,\nnamed-1.dist-info/METADATA,,\n")
    (site / "other.py").write_text("SECRET = 'hunter2'")
    monkeypatch.syspath_prepend(str(site))
    return site / "named" / "__init__.py"


def state(path):
    found = path.stat()
    marks = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}
    return oct(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, path.read_text(), marks


@pytest.mark.parametrize("left_out", [(), (OWN_FILES,), (FILTER,)], ids=["all", "filter alone", "file system alone"])
def test_no_mode_owner_time_or_attribute_of_a_file_changes(left_out, tmp_path, monkeypatch, caplog):
    target = package(tmp_path, monkeypatch)
    private = tmp_path / "private"
    private.write_text("x")
    for path in (target, private):
        try:
            os.setxattr(path, "user.mark", b"mine")
        except OSError:  # this file system has none
            continue
    before = state(target), state(private)
    with pool_of(packages=("named",), without=left_out) as pool:
        for layer in {FILTER, OWN_FILES} - set(left_out):
            skip_without(pool, caplog, layer)
        for attack in METADATA:
            code = NATIVE + f"def f(path, readable): path, readable = path.encode(), readable.encode(); return {attack}"
            for path in (private, target):
                result = pool.run(code, "f", {"path": str(path), "readable": str(target)}, limits=LIMITS)
                assert result.text in REFUSED, (attack, result)
        plain = "import os\nos.path.realpath = lambda path, **_: os.getcwd()\ndef f(path): os.chmod(path, 0o4777)"
        assert pool.run(plain, "f", {"path": str(private)}, limits=LIMITS).error
    assert (state(target), state(private)) == before


@pytest.mark.parametrize("version", [1, 2, 99])
def test_no_file_is_emptied_whatever_the_file_rules_version(version, tmp_path, monkeypatch, caplog):
    """Before Landlock 3 (Linux 6.2) truncation needs no right; here the filter alone stands against it."""
    target = package(tmp_path, monkeypatch)
    with pool_of(packages=("named",), without=(OWN_FILES, PRIVILEGES), landlock=version) as pool:
        skip_without(pool, caplog, FILTER)
        for attack in TRUNCATIONS:
            code = NATIVE + f"def f(path): path = path.encode(); return {attack}"
            result = pool.run(code, "f", {"path": str(target)}, limits=LIMITS)
            assert result.text.startswith("[-1, "), (attack, result)
            assert target.read_text() == "CONTENT = 'precious'", attack
        own = "def f():\n  open('a', 'w').write('xyz')\n  h = open('a', 'r+'); h.truncate(1)\n  return open('a').read()"
        assert pool.run(own, "f", {}, limits=LIMITS).text == "x"


def test_the_warning_names_what_an_older_kernels_file_rules_lack(caplog):
    if landlock_version() < 6:
        pytest.skip("this kernel's file rules lack some of it themselves")
    expected = {
        2: ("Landlock 3", "Landlock 4", "Landlock 5", "Landlock 6"),
        4: ("Landlock 5", "Landlock 6"),
        6: (),
    }
    for version, named in expected.items():
        caplog.clear()
        with pool_of(without=(FILTER,), landlock=version) as pool:
            text = missing_layers(pool, caplog)
        assert [f"Landlock {n}" for n in (3, 4, 5, 6) if f"Landlock {n}" in text] == list(named)
        assert len(caplog.records) == 1
    caplog.clear()
    with pool_of(landlock=2) as pool:  # the filter refuses all of it
        assert "Landlock" not in missing_layers(pool, caplog)


@pytest.mark.parametrize("layer", [NETWORK, OWN_FILES, FILE_RULES, PRIVILEGES, FILTER])
def test_a_layer_that_is_missing_is_warned_of_once_and_calls_still_work(layer, caplog):
    with pool_of(without=(layer,)) as pool:
        assert layer in missing_layers(pool, caplog)
        code = "import os\nopen('file', 'w').write('x')\nos.mkdir('folder', 0)\n"
        code += "def f(): return sorted(os.listdir('.'))"
        for _ in range(3):
            assert pool.run(code, "f", {}, limits=LIMITS).text == '["file", "folder"]'
    assert len(caplog.records) == 1


def test_a_project_on_a_pth_line_is_neither_read_nor_run(tmp_path, monkeypatch):
    project, home = tmp_path / "project", tmp_path / "venv"
    (project / "data").mkdir(parents=True)
    (project / "data" / "train.jsonl").write_text("EXPERT-TRACE-CANARY")
    (project / ".env").write_text("OPENAI_API_KEY=sk-CANARY")
    (project / "mine.py").write_text("SECRET = 'CANARY'")
    (project / "libmine.so").write_text("LIBRARY")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python*/site-packages"))
    ran = tmp_path / "ran"
    (site / "project.pth").write_text(f"{project}\nimport pathlib; pathlib.Path({str(ran)!r}).write_text('x')\n")
    monkeypatch.setattr(sys, "executable", str(home / "bin" / "python"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(project))
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.chdir(project)
    opened = NATIVE + "def f(path): return c.open(path.encode(), 0)"
    library = "def f(path): return open(path).read()"
    with pool_of() as pool:
        for name in ("data/train.jsonl", ".env", "mine.py"):
            result = pool.run(library, "f", {"path": str(project / name)}, limits=LIMITS)
            assert result.text == f"a tool may not read {project / name}"
            if landlock_version():
                assert pool.run(opened, "f", {"path": str(project / name)}, limits=LIMITS).text == "-1"
        assert "No module named 'mine'" in pool.run("import mine\ndef f(): pass", "f", {}, limits=LIMITS).text
        assert pool.run(library, "f", {"path": str(project / "libmine.so")}, limits=LIMITS).text == "LIBRARY"
        assert pool.run(library, "f", {"path": str(site / "project.pth")}, limits=LIMITS).error
    assert not ran.exists()


def test_only_named_packages_are_installed_for_a_snippet(tmp_path, monkeypatch, caplog):
    target = package(tmp_path, monkeypatch)
    other = target.parents[1] / "other.py"
    opened = NATIVE + "def f(path): return c.open(path.encode(), 0) >= 0"
    with pool_of(packages=("named", "not-installed")) as pool:
        skip_without(pool, caplog, FILE_RULES)
        assert pool.run("import named\ndef f(): return named.CONTENT", "f", {}, limits=LIMITS).text == "precious"
        assert pool.run("import other\ndef f(): return 1", "f", {}, limits=LIMITS).text == "No module named 'other'"
        assert pool.run("import torch\ndef f(): return 1", "f", {}, limits=LIMITS).text == "No module named 'torch'"
        for path, may in ((target, True), (other, False), (Path(pytest.__file__), False), (Path(__file__), False)):
            result = pool.run(opened, "f", {"path": str(path)}, limits=LIMITS)
            assert result.text == str(may), path


def test_a_library_folder_is_readable_but_for_installed_packages_and_links(tmp_path, monkeypatch):
    """As in /usr/local/lib of a container, where all that is installed lies below the standard library."""
    home = tmp_path / "lib"
    for name in ("libc.so", "python3.11/os.py", "python3.11/site-packages/mine/data", "python3/dist-packages/mine"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    (home / "linked").symlink_to(tmp_path)
    monkeypatch.setattr(libraries, "_LIBRARY_FOLDERS", (str(home),))
    readable = [path for path in readable_files(()).readable if path.startswith(str(tmp_path))]
    assert readable == [str(home / "libc.so"), str(home / "python3.11" / "os.py")]


def test_a_projects_list_of_sources_makes_nothing_of_it_readable(tmp_path, monkeypatch):
    """An older kind of editable install: its metadata lies in the project and lists sources."""
    (tmp_path / "mine.egg-info").mkdir()
    (tmp_path / "mine.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (tmp_path / "mine.egg-info" / "SOURCES.txt").write_text("train.jsonl\nmine.egg-info/PKG-INFO\n")
    (tmp_path / "train.jsonl").write_text("EXPERT-TRACE-CANARY")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert readable_files(("mine",)).packages == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy", "pandas", "scipy.stats", "sympy", "networkx", "yaml", "dateutil", "pytz"])
def test_the_packages_named_by_default_can_be_imported(name):
    pytest.importorskip(name)
    with pool_of() as pool:
        result = pool.run(f"import {name}\ndef f(): return 'imported'", "f", {}, limits=LIMITS)
        assert result.text == "imported"


def test_numpys_libraries_do_without_threads():
    code = "import numpy as np, os\ndef f(): return [float(np.linalg.det(np.eye(300) * 1.0)), dict(os.environ)]"
    with pool_of() as pool:
        assert pool.run(code, "f", {}, limits=LIMITS).text == "[1.0, {}]"


def test_what_the_standard_library_does_in_a_folder_of_its_own():
    code = """
import ctypes, dbm, mmap, os, resource, selectors, shutil, signal, sqlite3, tempfile, time, zipfile, asyncio, site
def f():
    assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)(1) == 2
    for mode in ("delete", "wal"):
        base = sqlite3.connect(mode + ".db")
        base.execute("pragma journal_mode=" + mode)
        base.execute("create table t(x)")
        base.commit()
        base.close()
    open("a", "w").write("text")
    shutil.copyfile("a", "b")
    os.rename("b", "c")
    os.makedirs("x/y")
    shutil.rmtree("x")
    with zipfile.ZipFile("z.zip", "w") as archive:
        archive.write("a")
    with open("a", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"T"
        mapped.flush()
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(b"x")
    caught = []
    signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.05)
    r, w = os.pipe()
    with selectors.DefaultSelector() as selector:
        selector.register(r, selectors.EVENT_READ)
        os.write(w, b"x")
        ready = len(selector.select(1))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [open("a").read(), caught, ready, limit, len(os.urandom(4)), callable(exit)]
"""
    with pool_of() as pool:
        assert pool.run(code, "f", {}, limits=LIMITS).text == '["Text", [1], 1, 64, 4, true]'
