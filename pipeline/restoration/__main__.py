"""`python -m pipeline.restoration`: the `restore` command."""

import sys

from pipeline.restoration.command import main

if __name__ == "__main__":
    sys.exit(main())
