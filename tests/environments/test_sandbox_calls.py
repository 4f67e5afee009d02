"""Calls share nothing, an answer is read like a stranger's file, and what a call leaves costs the next one nothing."""

import json
import logging
import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.environments.sandbox.answers import (
    TRUNCATED,
    is_whole,
    layers_line,
    missing_layers,
    pack,
    unpack,
)
from pact_lightning.environments.sandbox.files import remove_folder
from pact_lightning.environments.sandbox.limits import FILE_RULES, FILTER, LAYERS, OWN_FILES
from pact_lightning.environments.sandbox.sandbox import Limits, SandboxPool

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs a POSIX system")
LIMITS = Limits(timeout_s=30)
CANARY = "CANARY-4711-of-another-rollout"
# The second call may hold the canary in no form that a search for it would find: each letter is one further.
FURTHER = "".join(chr(ord(letter) + 1) for letter in CANARY)
PLANT = """
import builtins, ctypes, fcntl, json, os, sys, tempfile
KEPT = [CANARY * 3, {"key": CANARY}]
def f(canary):
    builtins.kept = json.kept = sys.kept = KEPT
    os.environ["KEPT"] = canary
    os.putenv("KEPT2", canary)
    sys.path.append(canary)
    os.umask(0o77)
    for place in (".", "..", "/dev/shm", "/tmp", "/var/tmp"):
        try:
            with open(os.path.join(place, canary), "w") as file:
                file.write(canary)
        except OSError:
            pass
    for place in (".", "..", os.path.dirname(os.__file__)):
        try:
            os.setxattr(place, "user.kept", canary.encode())
        except OSError:
            pass
    for descriptor in range(3):
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
        except OSError:
            pass
    return canary + " is the answer"
"""
SEARCH = """
import builtins, ctypes, fcntl, gc, json, os, sys
c = ctypes.CDLL(None)
c.sbrk.restype = ctypes.c_void_p
c.sbrk.argtypes = [ctypes.c_ssize_t]
BACK = bytes((n - 1) % 256 for n in range(256))
ON = bytes((n + 1) % 256 for n in range(256))
def in_memory():
    # A write from memory that is not there fails with EFAULT: this reads all of the heap and stack in safety.
    r, w = os.pipe()
    c.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    places = {id(o) >> 20 << 20 for o in gc.get_objects()} | {id(o) >> 20 << 20 for o in sys.modules.values()}
    around = {place + n * (1 << 20) for place in places for n in range(-1, 3)}
    top = c.sbrk(0)
    here = ctypes.addressof(ctypes.c_int(0)) >> 20 << 20
    around |= {(top >> 20 << 20) - n * (1 << 20) for n in range(16)} | {here + n * (1 << 20) for n in range(-2, 3)}
    last = b""
    for start in sorted(around):
        for page in range(start, start + (1 << 20), 4096):
            if c.write(w, page, 4096) != 4096:
                last = b""
                continue
            data = os.read(r, 4096).translate(ON)
            if FURTHER in last[-64:] + data:
                return True
            last = data
    return False
FURTHER = further.encode()
def in_objects():
    seen = [repr(frame) for frame in frames()] + [repr(o)[:20000] for o in gc.get_objects() if o is not globals()]
    seen += [repr(vars(m))[:200000] for m in list(sys.modules.values()) if m is not None]
    return [s[:80] for s in seen if FURTHER in s.encode("utf-8", "replace").translate(ON)]
def frames():
    frame = sys._getframe()
    while frame:
        yield dict(frame.f_locals)
        frame = frame.f_back
def attributes():
    found = []
    for place in (".", "..", os.path.dirname(os.__file__)):
        try:
            found += os.listxattr(place)
        except OSError:
            pass
    return found
def f():
    found = {"memory": in_memory(), "objects": in_objects(), "files": os.listdir("."), "attributes": attributes()}
    c.getenv.restype = ctypes.c_char_p
    found["environment"] = [dict(os.environ), c.getenv(b"KEPT"), c.getenv(b"KEPT2")]
    found["state"] = [hasattr(m, "kept") for m in (builtins, json, sys)] + [os.umask(0)]
    found["flags"] = [fcntl.fcntl(d, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND) for d in range(3)]
    planted = FURTHER.translate(BACK)
    found["the search works"] = in_memory()
    return found
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the search reads Linux's memory")
@pytest.mark.parametrize("left_out", [(), (OWN_FILES,), (FILTER, OWN_FILES, FILE_RULES)], ids=["all", "disk", "bare"])
def test_no_call_finds_anything_of_the_call_before(left_out):
    pool = SandboxPool(1, without=left_out)
    clean = json.loads(pool.run(f"further = {FURTHER!r}\n" + SEARCH, "f", {}, limits=LIMITS).text)
    assert clean.pop("the search works")
    planted = pool.run(f"CANARY = {CANARY!r}\n" + PLANT, "f", {"canary": CANARY}, limits=LIMITS)
    assert planted.text == f"{CANARY} is the answer"
    found = json.loads(pool.run(f"further = {FURTHER!r}\n" + SEARCH, "f", {}, limits=LIMITS).text)
    assert found.pop("the search works")
    if FILTER in left_out:  # an attribute of a file that every call reads, /tmp and the like are open then
        found.pop("attributes"), clean.pop("attributes")
    assert found == clean
    assert (found["memory"], found["objects"], found["files"]) == (False, [], [])
    pool.close()
    for place in ("/dev/shm", "/tmp", "/var/tmp"):
        (Path(place) / CANARY).unlink(missing_ok=True)


FORGE = """
import os, struct
def forge(data):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
    os._exit(0)
def head(error, length):
    return struct.pack(">BI", error, length)
"""
FORGERIES = {
    "too long": "head(0, 120000) + b'A' * 40000",
    "over the limit": "head(0, 300) + b'A' * 300",
    "a lone surrogate": "head(0, 3) + b'\\xed\\xa0\\x80'",
    "no text": "head(0, 2) + b'\\xff\\xfe'",
    "a flag that is none": "head(7, 1) + b'A'",
    "more than it says": "head(0, 1) + b'A' * 50",
    "a second line of layers": "b'[\"\\x1b[2J\\\\nERROR training diverged\"]\\n'",
    "JSON as before": 'b\'{"text": "x", "error": false, "missing": [{}]}\'',
    "nothing": "b''",
    "less than it says": "head(0, 50) + b'A'",
    "half a header": "b'\\0\\0'",
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=list(FORGERIES))
def test_a_forged_answer_is_an_error_and_nothing_of_it_is_logged(forgery, caplog, pool_of_one):
    limits = Limits(timeout_s=30, max_output_chars=100)
    with caplog.at_level(logging.DEBUG):
        result = pool_of_one.run(FORGE + f"def f(): forge({forgery})", "f", {}, limits=limits)
    assert result.error
    assert result.text in (
        "the tool's process gave a malformed answer",
        "the tool's process ended without a result",
    )
    assert "diverged" not in caplog.text
    assert pool_of_one.run("def f(): return 'alive'", "f", {}, limits=limits).text == "alive"


@pytest.fixture(scope="module")
def pool_of_one():
    pool = SandboxPool(1)
    yield pool
    pool.close()


def test_a_dribbled_answer_ends_at_the_time_limit(pool_of_one):
    code = "import os\ndef f():\n  while True:\n    for d in range(3, 20):\n"
    code += "      try: os.write(d, b' ')\n      except OSError: pass"
    result = pool_of_one.run(code, "f", {}, limits=Limits(timeout_s=0.3, max_output_chars=10**9))
    assert result.text in ("time limit of 0.3 s exceeded", "the tool's process gave a malformed answer")
    assert pool_of_one.run("def f(): return 'alive'", "f", {}, limits=LIMITS).text == "alive"


def test_a_large_call_and_a_large_answer_pass_whole(pool_of_one):
    text = "é\u2028" * 400_000
    limits = Limits(timeout_s=30, max_output_chars=1_000_000)
    assert pool_of_one.run("def f(t): return t", "f", {"t": text}, limits=limits).text == text
    unread = pool_of_one.run("import os\nos.close(3)\ndef f(t): os._exit(0)", "f", {"t": text}, limits=limits)
    assert unread.error


@given(st.text(), st.booleans(), st.integers(1, 40))
def test_an_honest_answer_is_read_as_it_was_written(text, error, limit):
    received = layers_line(["RLIMIT_AS"]) + pack(text, error=error, max_chars=limit)
    assert not any(is_whole(received[:end], limit) for end in range(len(received)))
    assert is_whole(received, limit)
    assert missing_layers(received, LAYERS) == ["RLIMIT_AS"]
    got, failed = unpack(received, limit)
    assert failed == error
    if all(not 0xD800 <= ord(letter) < 0xE000 for letter in text):
        assert got == (text if len(text) <= limit else text[:limit] + TRUNCATED)
    assert len(got.encode()) >= 0
    assert len(got) <= limit + len(TRUNCATED)


@given(st.binary(max_size=200), st.integers(1, 20), st.booleans())
def test_any_other_bytes_are_refused_or_cut_off(data, limit, with_line):
    received = layers_line([]) + data if with_line else data
    try:
        answer = unpack(received, limit)
    except ValueError:
        return
    assert answer is None or len(answer[0]) <= limit + len(TRUNCATED)


@pytest.mark.parametrize("line", [b'["x"]\n', b"{}\n", b"[[]]\n", b"3\n", b"", b"[", b"\xff\n", b"[" * 5000 + b"\n"])
def test_only_layers_that_exist_are_reported(line):
    with pytest.raises((ValueError, RecursionError)):
        missing_layers(line, LAYERS)


MESS = """
import os
def f():
    for _ in range(200):
        os.mkdir("d")
        os.chdir("d")
    for n in range(50):
        os.mkdir(str(n), 0)
    return len(os.listdir("."))
"""


@pytest.mark.parametrize("left_out", [(), (OWN_FILES,)], ids=["a file system of its own", "the disk"])
def test_what_a_call_leaves_is_gone_for_the_next_one(left_out, caplog):
    pool = SandboxPool(1, without=left_out)
    where = "import os\ndef f(): return [os.getppid(), os.getcwd(), os.listdir('.')]"
    worker, folder, _ = json.loads(pool.run(where, "f", {}, limits=LIMITS).text)
    root = Path(folder).parents[1]
    for _ in range(2):
        assert pool.run(MESS, "f", {}, limits=LIMITS).text == "50"
        after = json.loads(pool.run(where, "f", {}, limits=LIMITS).text)
        assert (after[0], after[2]) == (worker, [])
    if OWN_FILES not in caplog.text:
        assert sorted(entry.name for entry in root.iterdir()) == ["1", "packages"]
        assert list(Path(folder).iterdir()) == []
    pool.close()
    for _ in range(1200):
        if not root.exists():
            return
        threading.Event().wait(0.05)
    pytest.fail("the leftovers stay")


def test_a_folder_of_its_own_is_limited(caplog):
    pool = SandboxPool(1)
    assert pool.run("def f(): return 1", "f", {}, limits=LIMITS).text == "1"
    if OWN_FILES in caplog.text:
        pytest.skip("this system has no file system for each call")
    many = "def f():\n    for n in range(100_000): open(str(n), 'w').close()"
    assert "No space left" in pool.run(many, "f", {}, limits=LIMITS).text
    large = "def f():\n    for n in range(1000): open(str(n), 'w').write('x' * (1 << 20))"
    assert "No space left" in pool.run(large, "f", {}, limits=LIMITS).text
    pool.close()


def test_the_removal_of_a_folder_ends_at_its_limit(tmp_path):
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    with pytest.raises(TimeoutError, match="too much"):
        remove_folder(str(folder), within_s=-1)
    remove_folder(str(folder))
    assert not folder.exists()
