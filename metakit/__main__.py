"""`python -m metakit`: the command line."""

import sys

from metakit.cli import main

if __name__ == "__main__":
    sys.exit(main())
