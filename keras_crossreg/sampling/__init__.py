"""K sampled predictions of a model, and their average."""
