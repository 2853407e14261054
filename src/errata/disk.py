"""Disk: files that are written whole or not at all."""

import os
from pathlib import Path

MARK, ENDING = ".errata-", ".tmp"
"""Of the temporary name of a file that is being written."""


def replace_all(directory: Path, contents: dict[str, bytes]) -> None:
    """Write every file under a temporary name, and only when all are on the disk give them their own names, in order."""
    waiting = {directory / f"{MARK}{os.getpid()}-{name}{ENDING}": directory / name for name in contents}
    try:
        for temporary, content in zip(waiting, contents.values(), strict=True):
            write(temporary, content)
        for temporary, final in waiting.items():
            temporary.replace(final)
        _sync_directory(directory)
    finally:
        for temporary in waiting:
            temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file is one that a killed process was just writing."""
    return path.name.startswith(MARK) and path.name.endswith(ENDING)


def write(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def link(file: Path, name: Path) -> None:
    """Give a file that is never changed a second name, in place of what has it; a copy, where the disk knows no links."""
    waiting = name.with_suffix(".tmp")
    try:
        waiting.unlink(missing_ok=True)
        waiting.hardlink_to(file)
        waiting.replace(name)
    except OSError:
        replace_all(name.parent, {name.name: file.read_bytes()})
    else:
        _sync_directory(name.parent)


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
