from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any


def test_everything_that_is_written_is_for_the_owner_alone(site: Any, eventually: Callable[..., None]) -> None:
    """Folders 0700, files and the socket 0600, even where the controller was started with an open umask."""
    before = os.umask(0)
    try:
        site.start_controller()
    finally:
        os.umask(before)
    site.start_engine("--rate", "4", "--speed", "4")
    eventually(lambda: bool(list(site.store.rglob("*.parquet"))))
    kinds = set()
    for top in (site.store, site.store.parent / "run"):
        for path in (top, *top.rglob("*")):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # The writer replaces and removes files while we look.
            kinds.add(stat.S_IFMT(mode))
            assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    assert kinds == {stat.S_IFDIR, stat.S_IFREG, stat.S_IFSOCK}
