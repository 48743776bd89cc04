"""Outputs that appear under their name complete, or not at all.

    out/.clip.flow.3f9c2a71.part   written and fsynced under a name of its own
    out/clip.flow                  the link that is made last

Everything that writes a file or a folder of files goes through here. This module knows nothing
of frames, archives or models.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flowarchive.errors import InputError, InputNotFound, OutputExists

__all__ = ["atomic_output", "atomic_path"]


@contextmanager
def atomic_output(path: str | os.PathLike[str], force: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the name `path` when the block ends without an error.

    Args:
        path: The output. A symbolic link is followed, never replaced.
        force: Replace a regular file that is there already.

    Yields:
        A file open for reading and writing, positioned at its start. It is flushed, fsynced and
        closed here; closing it inside the block is allowed.

    Raises:
        OutputExists: The output exists and `force` is not given, or it is no regular file.
        InputNotFound: Its folder does not exist or may not be written.
        InputError: The file cannot be created or renamed for another reason.
    """
    with atomic_path(path, force) as temporary:
        with open(temporary, "x+b") as file:
            yield file
        # The caller may have closed the file, so it is synchronized by name.
        _sync(temporary)


@contextmanager
def atomic_path(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Yield an unused name in the folder of `path` that is renamed to `path` at the end.

    The block creates a file or a folder under the yielded name and fsyncs what it writes. A
    folder takes the place of an existing folder only with `force`, and the old one is removed
    with all that is in it: the caller must have made sure that this is wanted.

    Args:
        path: The output. A symbolic link is followed, never replaced.
        force: Replace what is there already, if it is of the same kind.

    Yields:
        The temporary path; nothing exists there yet.

    Raises:
        OutputExists: The output exists and `force` is not given, or it is of another kind.
        InputNotFound: Its folder does not exist or may not be written.
        InputError: The output cannot be renamed for another reason.
    """
    target = Path(os.path.realpath(path))
    _check_target(target, force)
    # The end of a long name is cut, so that the temporary name fits where the name itself does.
    temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(4)}.part"
    try:
        yield temporary
        with _naming(target):
            if temporary.is_dir():
                _place_folder(temporary, target, force)
            else:
                _place_file(temporary, target, force)
            _sync(target.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                temporary.unlink()


def _check_target(target: Path, force: bool) -> None:
    """Refuse early what can only fail after hours of work."""
    with _naming(target):
        parent = os.stat(target.parent)
        if not stat.S_ISDIR(parent.st_mode):
            raise InputNotFound(f"{target.parent} is not a folder")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise InputNotFound(f"no permission to write in {target.parent}")
        try:
            mode = os.lstat(target).st_mode
        except FileNotFoundError:
            return
    if not force:
        raise OutputExists(f"{target} exists already")
    # Renaming over a device or a pipe would destroy it (`/dev/null`, when run by root).
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputExists(f"{target} is neither a file nor a folder and cannot be replaced")


def _place_file(temporary: Path, target: Path, force: bool) -> None:
    """Give the finished file its name; without `force` this fails if the name is taken by now."""
    if target.is_dir():
        raise OutputExists(f"{target} is a folder and cannot be replaced by a file")
    if force:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise OutputExists(f"{target} exists already") from error
    except OSError:
        # A file system without hard links: look, then rename.
        if target.exists():
            raise OutputExists(f"{target} exists already") from None
        os.rename(temporary, target)


def _place_folder(temporary: Path, target: Path, force: bool) -> None:
    """Give the finished folder its name, moving an old one out of the way first."""
    _sync(temporary)
    if not os.path.lexists(target):
        os.rename(temporary, target)
        return
    if not force:
        raise OutputExists(f"{target} exists already")
    if not target.is_dir():
        raise OutputExists(f"{target} is a file and cannot be replaced by a folder")
    old = temporary.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Force the contents of a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes only what was opened for writing, POSIX opens folders only for reading.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot synchronize a folder; a file must be safe.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Turn the system's errors about the output into ours, in one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise InputNotFound(f"cannot write {target}: {error.strerror}") from error
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
