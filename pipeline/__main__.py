"""`python -m pipeline STAGE [key=value ...]`: bring one stage of a run up to date."""

from __future__ import annotations

import argparse
import logging
import sys

from pipeline.config import ConfigError, load_config
from pipeline.stage import run_stage
from pipeline.stages import STAGES

EXPECTED = (ConfigError, ValueError, FileNotFoundError, OSError)
"""What users cause and can mend; anything else is a fault of ours and keeps its traceback."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.add_argument("command", choices=[*STAGES, "verify", "restore"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see conf/config.yaml")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = load_config(arguments.overrides)
        if arguments.command == "restore":
            from pipeline.restore import run

            run(config)
        elif arguments.command == "verify":
            from pipeline.shards import verify

            verify(config)
        else:
            run_stage(STAGES[arguments.command], config)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on from here\n")
        return 130
    except EXPECTED as error:
        if arguments.traceback:
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
