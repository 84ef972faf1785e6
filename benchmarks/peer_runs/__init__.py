"""One process a run: each module trains with one framework."""
