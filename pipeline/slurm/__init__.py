"""The chain as jobs of a SLURM cluster: submitted in order, requeued at their limit, looked at."""
