"""``python -m corevital``: the command line, where the ``corevital`` script is not on the path."""

from __future__ import annotations

import sys

from corevital.cli import main

if __name__ == "__main__":
    sys.exit(main())
