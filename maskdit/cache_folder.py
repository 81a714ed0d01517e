"""Where the library keeps what it can make or fetch again."""

import os
import pathlib


def cache_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/maskdit`, which is `~/.cache/maskdit` by default; it need not exist.

    Raises:
      RuntimeError: where there is no home folder.
    """
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maskdit"
