"""The private folder of a running host, for sockets and stacks: removed at its end, or, killed, by the next host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "roomful-"
_LOCK = "lock"


@contextlib.contextmanager
def runtime_dir() -> Iterator[Path]:
    """A new folder of mode 0700 in the system's temporary folder, where none of a killed host's is left after this."""
    parent = Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    # Under another name until it is locked, so that no host that starts now takes it for an abandoned one.
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
    lock = os.open(unlocked / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's folders whose host does not live: the kernel gave up its lock when it died."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # Not ours, not a folder of a host, locked, or gone since: not for us to remove.
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
