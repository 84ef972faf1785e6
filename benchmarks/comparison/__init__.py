"""What `benchmarks/tasks.py` is made of."""
