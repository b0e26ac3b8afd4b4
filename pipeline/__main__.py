"""`python -m pipeline STAGE [key=value ...]`: bring one stage of a run up to date.

`run` does so for all stages up to one, `submit` has a cluster do it; `status` tells how they stand.
"""

from __future__ import annotations

import argparse
import logging
import sys

from pipeline.chain import STAGES, run_chain
from pipeline.compose import load_config
from pipeline.config import Config
from pipeline.errors import message
from pipeline.preemption import Stopped, listen, stop_requested, stopped_status
from pipeline.stage import run_stage

OTHERS = ("run", "verify", "dashboard", "submit", "status")
EXPECTED = (ValueError, OSError)
"""What users cause and can mend is of these; `--traceback` shows where it was raised."""


def main() -> int:
    """Run the command line."""
    arguments = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    listen()
    try:
        return _do(arguments, load_config(arguments.overrides))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; run the same command to resume\n")
        return 130
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}; run the same command to resume\n")
        return stopped_status()
    except EXPECTED as error:
        if arguments.traceback:
            raise
        sys.stderr.write(f"error: {message(error)}\n")
        return 1
    except RuntimeError as error:
        if not stop_requested():
            raise
        # The other ranks, or the workers, were asked too, and have left already.
        sys.stderr.write(f"interrupted while stopping ({error}); run the same command to resume\n")
        return stopped_status()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.add_argument("command", choices=[*STAGES, *OTHERS])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see conf/config.yaml")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument("--upto", choices=STAGES, help="last stage of run and submit, or evaluate")
    parser.add_argument("--dry-run", action="store_true", help="show the jobs, submit nothing")
    found = parser.parse_intermixed_args()
    if found.command != "submit" and found.dry_run:
        parser.error("--dry-run is for submit, `make ... CLUSTER=slurm`")
    if found.command not in ("run", "submit") and found.upto:
        parser.error("--upto is for run and submit")
    return found


def _do(arguments: argparse.Namespace, config: Config) -> int:
    upto = arguments.upto or "evaluate"
    if arguments.command == "run":
        return run_chain(config, upto)
    if arguments.command == "dashboard":
        from pipeline.dashboard import run as draw

        draw(config)
    elif arguments.command == "verify":
        from pipeline.stages.shards import verify

        verify(config)
    elif arguments.command == "submit":
        from pipeline.slurm.submit import submit

        submit(config, upto, arguments.dry_run)
    elif arguments.command == "status":
        from pipeline.slurm.status import status

        logging.getLogger(__name__).info("%s", "\n".join(status(config)))
    else:
        run_stage(STAGES[arguments.command], config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
