"""A folder takes the place of another one, and of the two one remains, whatever fails."""

import os

import pytest

from han_tf.runs.replacing import put_back, replace_folder


@pytest.fixture
def folders(tmp_path):
    """The folder to replace, the new one and the name in between; the first two hold a file each."""
    target, new, old = (tmp_path / name for name in ("target", "new", "old"))
    for folder in (target, new):
        folder.mkdir()
        (folder / folder.name).touch()
    return target, new, old


def test_the_new_one_takes_the_place(folders, tmp_path):
    replace_folder(*folders)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["target", "target/new"]
    os.rename(folders[0] / "new", tmp_path / "again")
    replace_folder(tmp_path / "other", folders[0], folders[2])  # nothing was there
    assert sorted(os.listdir(tmp_path)) == ["again", "other"]


def test_after_a_failure_the_earlier_one_is_back(folders, tmp_path):
    target, new, old = folders
    with pytest.raises(FileNotFoundError):
        replace_folder(target, tmp_path / "missing", old)
    assert os.listdir(target) == ["target"]
    assert not old.exists()
    old.touch()  # so that the earlier one cannot be renamed
    with pytest.raises(NotADirectoryError):
        replace_folder(target, new, old)
    assert (os.listdir(target), os.listdir(new)) == (["target"], ["new"])


def test_what_a_killed_process_left_comes_back(folders):
    target, new, old = folders
    os.rename(target, old)
    put_back(target, old)
    assert os.listdir(target) == ["target"]
    put_back(target, new)  # something is there
    put_back(new, old)  # nothing was left
    assert (os.listdir(target), os.listdir(new)) == (["target"], ["new"])
