"""What native code and replaced functions of Python cannot do in the sandbox; every attack is run for real."""

import logging
import os
import platform
import sys
from pathlib import Path

import pytest
from test_code_tools import call, environment

from pact_lightning.environments.sandbox.files import remove_folder
from pact_lightning.environments.sandbox.sandbox import Limits, SandboxPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")
X86 = platform.machine() == "x86_64"
NATIVE = "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
REPLACED = "import os, posixpath\nposixpath.realpath = os.path.realpath = lambda path, **_: os.getcwd()\n"


@pytest.fixture(scope="module")
def missing():
    """The layers that this system lacks, as the pool's warning names them."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("pact_lightning.environments.sandbox.sandbox")
    logger.addHandler(handler)
    pool = SandboxPool(1)
    assert pool.run("def f(): return 1", "f", {}, limits=Limits()).text == "1"
    pool.close()
    logger.removeHandler(handler)
    return " ".join(record.getMessage() for record in records)


@pytest.fixture
def landlock(missing):
    if "Landlock" in missing:
        pytest.skip("this kernel has no Landlock")


@pytest.fixture
def seccomp(missing):
    if "system-call filter" in missing:
        pytest.skip("this system offers no system-call filter")


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize(
    "attack",
    [
        NATIVE + "return c.open(path.encode(), os.O_RDONLY)",
        NATIVE + "return c.open(path.encode(), os.O_RDWR)",
        NATIVE + "return c.open(path.encode(), os.O_WRONLY | os.O_TRUNC)",
        NATIVE + "return c.unlink(path.encode())",
        NATIVE + "return c.truncate(path.encode(), 0)",
        NATIVE + "return c.rename(path.encode(), b'mine')",
        NATIVE + "return c.link(path.encode(), b'mine')",
        NATIVE + "c.symlink(path.encode(), b'mine')\nreturn c.open(b'mine', 0)",
        NATIVE + "return c.mkdir(path.encode() + b'2', 0o700)",
        NATIVE + "return c.open(b'/proc/self/environ', 0)",
        NATIVE + "return c.open(b'/proc/%d/environ' % os.getppid(), 0)",
        NATIVE + "return c.open(b'/etc/passwd', 0)",
        NATIVE + "return c.open(b'/', 0)",
        REPLACED + "return open(path).read()",
        REPLACED + "return open(path, 'w').write('x')",
        REPLACED + "return os.remove(path)",
        "import os\nos.makedirs('a/b')\nd = os.open(os.path.dirname(os.__file__), os.O_RDONLY)\nos.chdir('a/b')\n"
        "up = '../' * 20\nreturn os.open(up[:6] + '../..' + path, os.O_RDONLY, dir_fd=d)",
    ],
)
def test_the_kernel_keeps_files_outside_the_folder_closed(attack, tmp_path):
    target = tmp_path / "precious"
    target.write_text("hunter2")
    result = call(attack, {"path": str(target)}, parameters="path")
    assert result.error or result.text == "-1"
    assert "hunter2" not in result.text
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert target.read_text() == "hunter2"


@pytest.mark.usefixtures("landlock")
def test_native_code_may_still_work_in_its_own_folder_and_load_libraries():
    body = NATIVE + "import ssl, sqlite3, zoneinfo, decimal\nzoneinfo.ZoneInfo('Europe/Paris')\n"
    body += "d = c.open(b'mine', os.O_RDWR | os.O_CREAT, 0o600)\nreturn [c.write(d, b'abc', 3), open('mine').read()]"
    assert call(body).text == '[3, "abc"]'


@pytest.mark.usefixtures("seccomp")
@pytest.mark.skipif(not X86, reason="the numbers are x86-64's")
@pytest.mark.parametrize(
    "native",
    [
        "c.syscall(129, os.getppid(), 0, bytes(128))",  # rt_sigqueueinfo
        "c.syscall(297, os.getppid(), os.getppid(), 0, bytes(128))",  # rt_tgsigqueueinfo
        "c.fcntl(0, 8, os.getppid())",  # F_SETOWN
        "c.fcntl(0, 10, 9)",  # F_SETSIG
        "c.fcntl(0, 15, bytes(8))",  # F_SETOWN_EX
        "c.prctl(1, 0, 0, 0, 0)",  # PR_SET_PDEATHSIG
        "c.shmget(0, 4096, 0o1600)",
        "c.msgget(0, 0o1600)",
        "c.setpriority(0, os.getppid(), 19)",
        "c.sched_setaffinity(os.getppid(), 8, (ctypes.c_ulong * 1)(1))",
        "c.syscall(425, 1, bytes(120))",  # io_uring_setup
        "c.semget(0, 1, 0o1600)",
        "c.syscall(240, b'q', 0o102, 0o600, None)",  # mq_open
        "c.inotify_init1(0)",
        "c.fanotify_init(0, 0)",
        "c.syscall(206, 1, bytes(8))",  # io_setup
        "c.syscall(250, 0, -3, 0, 0, 0)",  # keyctl
        "c.syscall(248, b'user', b'k', b'v', 1, -3)",  # add_key
        "c.syscall(298, bytes(128), 0, -1, -1, 0)",  # perf_event_open
        "c.syscall(321, 0, bytes(128), 128)",  # bpf
        "c.syscall(323, 0)",  # userfaultfd
        "c.memfd_create(b'm', 0)",
        "c.syscall(322, -100, b'/bin/true', 0, 0, 0)",  # execveat
        "c.flock(os.open(os.__file__, 0), 2)",
        "c.ioctl(os.pipe()[0], 0x8901, bytes(4))",  # FIOSETOWN
        "c.ioctl(0, 0x5412, b'x')",  # TIOCSTI
        "c.mknod(b'm', 0o10600, 0)",
        "c.setuid(0)",
        "c.personality(0)",
        "c.setsid()",
        "c.syscall(0x40000000 + 41, 2, 1, 0)",  # x32
        "c.syscall(446, 0, 0)",  # landlock_restrict_self
        "c.socket(2, 1, 0)",
        "c.socket(1, 1, 0)",
        "c.socket(16, 3, 0)",
        "c.socket(17, 3, 0)",
        "c.socket(38, 5, 0)",
        "c.socket(40, 1, 0)",
        "c.socketpair(1, 1, 0, bytes(8))",
    ],
)
def test_the_kernel_refuses_what_reaches_other_processes_or_outlives_the_call(native):
    assert call(NATIVE + f"return [{native}, ctypes.get_errno()]").text == "[-1, 1]"


@pytest.mark.usefixtures("seccomp")
def test_other_uses_of_fcntl_are_allowed():
    assert call("import fcntl, os\nr, w = os.pipe()\nreturn fcntl.fcntl(r, fcntl.F_GETFD)").text == "1"


def test_no_privilege_is_left():
    body = NATIVE + "caps = ctypes.create_string_buffer(24)\n"
    body += "c.capget(ctypes.create_string_buffer((0x20080522).to_bytes(4, 'little') + bytes(4)), caps)\n"
    body += "return caps.raw.strip(b'\\x00').decode()"
    assert call(body).text == ""


def test_python_refuses_to_list_other_folders():
    for body in ("import os; return os.listdir('/proc')", "import os; return list(os.scandir('/'))"):
        assert "a tool may not list /" in call(body).text


def test_folders_of_any_depth_do_not_cost_the_worker():
    pool = SandboxPool(1)
    limits = Limits(timeout_s=30)
    worker = "import os\ndef f(): return [os.getppid(), os.listdir('.')]"
    before = pool.run(worker, "f", {}, limits=limits).text
    deep = "import ctypes\ndef f():\n    c = ctypes.CDLL(None)\n"
    deep += "    return [sum(c.mkdir(b'd', 448) | c.chdir(b'd') for _ in range(1500)), c.open(b'f', 65, 384) >= 0]"
    assert pool.run(deep, "f", {}, limits=limits).text == "[0, true]"
    assert pool.run(worker, "f", {}, limits=limits).text == before
    pool.close()


def test_a_folder_is_removed_whatever_is_in_it(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    folder = tmp_path / "folder"
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "a" / "dead").symlink_to("nowhere")
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)
    folder.chmod(0o500)
    remove_folder(str(folder))
    assert not folder.exists()
    assert (tmp_path / "outside" / "kept").read_text() == "x"


def test_a_place_of_the_pool_survives_a_folder_that_cannot_be_removed(monkeypatch, caplog):
    """Whatever happens while a worker is put away, the next call gets a worker."""
    from pact_lightning.environments.sandbox import worker_process

    def refuse(folder, within_s):
        raise PermissionError(f"{folder} is stuck")

    pool = SandboxPool(1)
    pool.run("def f(): return 1", "f", {}, limits=Limits())
    folder = Path(pool.run("import os\ndef f(): return os.getcwd()", "f", {}, limits=Limits()).text)
    os.kill(pool._places.queue[-1].process.pid, 9)
    monkeypatch.setattr(worker_process, "remove_folder", refuse)
    assert pool.run("def f(): return 2", "f", {}, limits=Limits()).error
    monkeypatch.undo()
    assert "is stuck" in caplog.text
    assert pool.run("def f(): return 3", "f", {}, limits=Limits()).text == "3"
    pool.close()
    remove_folder(str(folder.parents[1]))


def test_a_huge_recursion_and_huge_integers_end_in_an_error():
    for body in (
        "import sys\nsys.setrecursionlimit(10**9)\nreturn f()",
        "return 10 ** 5000",
        "return [10 ** 5000]",
        "a = []\nfor _ in range(10**5): a = [a]\nreturn a",
        "a = []\na.append(a)\nreturn a",
        "return {'b': b'x'}",
    ):
        result = call(body, memory_mb=128)
        assert result.error, body
        assert len(result.text) < 500
    assert environment("def f(): return 1").call("f", {}).text == "1"
