"""Results appear complete or not at all, and directories are checked before the work."""

import os
import resource
from pathlib import Path

import pytest
import torch

from ropevit_mmdet._output import atomic_file, check_output_directory, output_directory
from ropevit_mmdet.errors import UserError


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A directory that is not writable, not even for root."""
    directory, access = tmp_path / "locked", os.access
    directory.mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != directory and access(path, mode)
    )
    return directory


def test_directories_that_cannot_be_written_to(locked, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"locked is not writable"):
        check_output_directory(locked / "new" / "out")
    with pytest.raises(UserError, match=r"file is a file"):
        check_output_directory(tmp_path / "file" / "run")
    assert not list(locked.iterdir())


def test_files_move_at_the_end(locked, tmp_path):
    """Into an existing directory also where its parent is not writable, as with a mounted disk."""
    (locked / "out").mkdir()
    with output_directory(locked / "out") as directory:
        assert directory.parent == locked / "out"
        (directory / "a").touch()
    assert [path.name for path in (locked / "out").iterdir()] == ["a"]
    (tmp_path / f".new.partial-{os.getpid()}" / "a").mkdir(parents=True)  # of a killed process
    with output_directory(tmp_path / "new") as directory:
        assert not (tmp_path / "new").exists() and not any(directory.iterdir())
        (directory / "sub").mkdir()
        (directory / "sub" / "a").touch()
    with pytest.raises(KeyError), output_directory(tmp_path / "new") as directory:
        (directory / "b").touch()
        raise KeyError
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["sub", "a"]


def test_a_killed_process_leaves_nothing_that_seems_complete(tmp_path, monkeypatch):
    """A new directory appears at once; in one that is there the files at the top are last."""
    moved = []
    monkeypatch.setattr(os, "replace", lambda old, new: moved.append(new.name) or old.rename(new))
    for expected in ([], ["z", "a.json"]):
        with output_directory(tmp_path / "out") as directory:
            (directory / "sub").mkdir()
            for name in ("a.json", "sub/z"):
                (directory / name).touch()
        assert moved == expected and (tmp_path / "out" / "sub" / "z").is_file()


def test_pipes_are_written_to_and_links_kept(tmp_path):
    """As `--json /dev/stdout`, which root could replace by a file."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("pipe", "link"):
        with atomic_file(tmp_path / name) as file:
            file.write(name.encode())
    assert os.read(reader, 9) == b"pipe" and (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"link"
    os.close(reader)


def test_an_exception_leaves_the_previous_file(tmp_path):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"before")
    with pytest.raises(KeyError), atomic_file(target) as file:
        file.write(b"half of")
        raise KeyError
    assert target.read_bytes() == b"before" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_a_full_disk_leaves_the_previous_file(fraction, tmp_path):
    """torch.save then raises an error about a position in the file."""
    target, content = tmp_path / "iter_1.pth", [torch.randn(10**6) for _ in range(3)]
    torch.save(content, target)
    before, limits = target.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(len(before) * fraction), limits[1]))
    try:
        with (
            pytest.raises(
                OSError, match="File too large: .*iter_1.pth was not written; .* MB left"
            ),
            atomic_file(target) as file,
        ):
            torch.save(content, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]
