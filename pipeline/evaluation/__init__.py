"""What `make evaluate` is made of: methods, samples, scores, figures and the report."""
