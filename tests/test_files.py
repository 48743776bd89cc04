"""An output appears whole under its name, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowarchive.errors import InputNotFound, OutputExists
from flowarchive.files import atomic_output, atomic_path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_file(
    path: Path, data: bytes, force: bool = False, then: Callable[[], object] = lambda: None
) -> None:
    with atomic_output(path, force) as file:
        file.write(data)
        then()


def write_folder(
    path: Path, name: str, force: bool = False, then: Callable[[], object] = lambda: None
) -> None:
    with atomic_path(path, force) as temporary:
        temporary.mkdir()
        (temporary / name).write_bytes(b"x")
        then()


def fail(error: type[BaseException]) -> None:
    raise error


def test_output_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.flow"
    with atomic_output(path) as file:
        file.write(b"wrong")
        file.seek(0)
        assert file.read() == b"wrong"
        file.seek(0)
        file.write(b"right")
        assert not path.exists()
    assert path.read_bytes() == b"right"
    assert names(tmp_path) == ["a.flow"]


def test_output_may_be_closed_by_the_block(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "a") as file:
        file.write(b"x")
        file.close()
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("force", [False, True])
def test_error_leaves_nothing(tmp_path: Path, error: type[BaseException], force: bool) -> None:
    path = tmp_path / "a.flow"
    if force:
        path.write_bytes(b"old")
    with pytest.raises(error):
        write_file(path, b"half", force, then=lambda: fail(error))
    assert names(tmp_path) == (["a.flow"] if force else [])
    assert not force or path.read_bytes() == b"old"


def test_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.flow"
    path.write_bytes(b"old")
    with pytest.raises(OutputExists, match=r"a\.flow exists"), atomic_output(path):
        pytest.fail("the block must not run")
    assert path.read_bytes() == b"old"
    write_file(path, b"new", force=True)
    assert path.read_bytes() == b"new"


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.flow"
    with pytest.raises(OutputExists):
        write_file(path, b"ours", then=lambda: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.flow"]


def test_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    write_file(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
    assert names(tmp_path) == ["a"]
    with pytest.raises(OutputExists):
        write_file(tmp_path / "b", b"ours", then=lambda: (tmp_path / "b").write_bytes(b"theirs"))
    assert (tmp_path / "b").read_bytes() == b"theirs"


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").write_bytes(b"old")
    (tmp_path / "a").symlink_to(tmp_path / "far" / "a")
    write_file(tmp_path / "a", b"new", force=True)
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "far" / "a").read_bytes() == b"new"


def test_special_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputExists, match="neither"), atomic_output(tmp_path / "pipe", True):
        pytest.fail("the block must not run")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound), atomic_output(tmp_path / "no" / "a"):
        pytest.fail("the block must not run")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputNotFound), atomic_output(tmp_path / "file" / "a"):
        pytest.fail("the block must not run")


def test_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputExists):
        write_file(tmp_path / "a", b"x", force=True)
    assert (tmp_path / "a").is_dir()
    assert names(tmp_path) == ["a"]


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    missing: list[bool] = []
    write_folder(path, "0.png", then=lambda: missing.append(not path.exists()))
    assert missing == [True]
    assert names(tmp_path) == ["frames"]
    assert names(tmp_path / "frames") == ["0.png"]


def test_folder_is_replaced_with_force(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "old.png").write_bytes(b"x")
    with pytest.raises(OutputExists):
        write_folder(tmp_path / "frames", "new.png")
    write_folder(tmp_path / "frames", "new.png", force=True)
    assert names(tmp_path) == ["frames"]
    assert names(tmp_path / "frames") == ["new.png"]


def test_folder_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "frames", "0.png", then=lambda: fail(KeyboardInterrupt))
    assert names(tmp_path) == []


def test_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "frames").write_bytes(b"x")
    with pytest.raises(OutputExists):
        write_folder(tmp_path / "frames", "0.png", force=True)
    assert (tmp_path / "frames").read_bytes() == b"x"
    assert names(tmp_path) == ["frames"]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"x")
    finally:
        os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
