"""Checkpoints on disk: written whole or not at all, and never trusted before they are read."""

import os
import resource
import shutil
import signal
from datetime import datetime

import pytest
import torch

from pact_lightning.resume.checkpoint_files import WholeFileIO, newest_whole, read_checkpoint

CONTENT = {"loops": {}, "state_dict": {"w": torch.arange(4000.0)}}


def saved(path, **parts):
    WholeFileIO().save_checkpoint(CONTENT | parts, path)
    return path


def without_date(content):
    return {name: part for name, part in content.items() if name != "saved_at_ns"}


def test_a_checkpoint_comes_back(tmp_path):
    path = saved(tmp_path / "folder" / "last.ckpt")
    torch.testing.assert_close(without_date(read_checkpoint(path)), CONTENT)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = saved(tmp_path / "last.ckpt")
    before = path.read_bytes()
    child = os.fork()
    if not child:
        save = torch.save

        def half(content, file):
            save(content, file)
            file.truncate(5000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        WholeFileIO().save_checkpoint(CONTENT | {"epoch": 1}, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2, "what was half written stands beside it"
    saved(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def cut(content):
    return content[: len(content) // 2]


def flipped(content):
    place = content.index(torch.arange(4000.0).numpy().tobytes()) + 800
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda content: b"", lambda content: b"no checkpoint"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path, damage):
    _, before, newest = (saved(tmp_path / f"{name}.ckpt") for name in ("epoch=0", "epoch=1", "last"))
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is (damaged|truncated).*; the previous one is used"):
        path, content = newest_whole(tmp_path.iterdir())
    assert path == before
    torch.testing.assert_close(without_date(content), CONTENT)


def test_the_newest_checkpoint_of_a_copied_folder_is_the_one_that_was_saved_last(tmp_path):
    """A run went on from an earlier checkpoint: of the steps 10, 20, 15 the last is the run's. A copy changes dates."""
    copies = tmp_path / "copy"
    copies.mkdir()
    files = [saved(tmp_path / f"step={step}.ckpt", global_step=step) for step in (10, 20, 15)]
    for date, file in enumerate(reversed(files)):
        shutil.copyfile(file, copies / file.name)
        os.utime(copies / file.name, (2_000_000_000 + date,) * 2)
    assert newest_whole(copies.iterdir())[0] == copies / "step=15.ckpt"


def test_a_checkpoint_that_does_not_say_when_it_was_saved_has_the_date_of_its_file(tmp_path):
    for name, date in (("a", 1000), ("b", 2000), ("c", 1500)):
        torch.save(CONTENT, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (date, date))
    assert newest_whole(tmp_path.iterdir())[0] == tmp_path / "b.ckpt"


def test_without_any_whole_checkpoint_there_is_none(tmp_path):
    assert newest_whole([]) is None
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="truncated"):
        assert newest_whole(tmp_path.iterdir()) is None


def test_another_file_of_torch_is_no_checkpoint(tmp_path):
    torch.save({"weights": 1}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of a run"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_whole_checkpoint_with_an_object_in_it_is_no_damaged_one(tmp_path):
    saved(tmp_path / "epoch=0.ckpt")
    newest = saved(tmp_path / "last.ckpt", callbacks={"mine": {"since": datetime(2026, 1, 1)}})
    told = r"last\.ckpt holds an object \(datetime\.datetime\) .*--weights_only false"
    with pytest.raises(TypeError, match=told):
        newest_whole(tmp_path.iterdir())
    with pytest.raises(TypeError, match=told):
        WholeFileIO().load_checkpoint(newest)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "epoch=0.ckpt"}, "none is put aside"
    path, content = newest_whole(tmp_path.iterdir(), weights_only=False)
    assert path == newest
    assert content["callbacks"] == {"mine": {"since": datetime(2026, 1, 1)}}


def test_a_damaged_checkpoint_keeps_its_name_where_nothing_will_be_written_beside_it(tmp_path):
    before, newest = saved(tmp_path / "epoch=1.ckpt"), saved(tmp_path / "last.ckpt")
    newest.write_bytes(cut(newest.read_bytes()))
    with pytest.warns(UserWarning, match="the previous one is used$"):
        assert newest_whole(tmp_path.iterdir(), put_aside=False)[0] == before
    assert newest.exists()


def test_a_disk_without_room_leaves_the_checkpoint_before_and_nothing_else(tmp_path):
    path = saved(tmp_path / "last.ckpt")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as a full disk: a write ends early
    try:
        with pytest.raises(OSError, match=rf"{path} could not be written \(.*File too large\).* is unchanged"):
            WholeFileIO().save_checkpoint(CONTENT | {"epoch": 1}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
