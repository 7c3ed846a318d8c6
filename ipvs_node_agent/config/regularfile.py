"""Files that are read whole: regular ones, of bounded size, and never waited for."""

from __future__ import annotations

import os
import stat

# Far above what a configuration, a kubeconfig or a bundle of all CAs has.
MOST_BYTES = 1 << 20


class Unfit(Exception):
    """A file cannot be used, or is `missing`; `why` ends a sentence, and `hint` mends it."""

    def __init__(self, why: str, hint: str = "", missing: bool = False) -> None:
        super().__init__(why)
        self.why, self.hint, self.missing = why, hint, missing


def read(path: str | os.PathLike[str], private: bool = False) -> bytes:
    """What is in the file at `path`; see `check`. Raises OSError and Unfit."""
    # Non-blocking, since opening a FIFO would wait for its writer for ever; and a terminal must
    # not become that of a process that has none.
    flags = os.O_NONBLOCK | os.O_NOCTTY
    try:
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
            check(path, os.fstat(file.fileno()), private)
            # Nothing, where some file of /proc would have it waited for.
            data = file.read(MOST_BYTES + 1) or b""
    except ValueError:  # A zero byte, or half a character.
        raise Unfit("has a name that no file can have") from None
    if len(data) > MOST_BYTES:
        raise Unfit(f"is larger than {MOST_BYTES} bytes")
    return data


def check(path: str | os.PathLike[str], status: os.stat_result, private: bool) -> None:
    """Raises Unfit for what is not a regular file or, where it is `private`, others can change."""
    if not stat.S_ISREG(status.st_mode):
        raise Unfit("is not a regular file")
    if not private:
        return
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = f"chmod go-w {os.fspath(path)}, and read it again"
        raise Unfit("users other than its owner may write to it", hint)
    if status.st_uid not in (0, os.geteuid()):
        why = f"belongs to user {status.st_uid}, who could change it"
        raise Unfit(why, f"chown root {os.fspath(path)}")
