"""Networks, the SDE and its samplers, losses, metrics, and the LightningModules."""
