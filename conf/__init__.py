"""Hydra configuration: `config.yaml` names every setting, `experiment/` holds whole runs."""
