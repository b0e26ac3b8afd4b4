"""`python -m pipeline.restore`: the `restore` command."""

import sys

from pipeline.restore.cli import main

if __name__ == "__main__":
    sys.exit(main())
