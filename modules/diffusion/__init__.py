"""The diffusion: noise schedule, SDE, what the network predicts, samplers, losses."""
