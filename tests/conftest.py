"""Settings of the whole suite."""

import gc
import os

# Before TensorFlow. Workers of pytest are as many as there are cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras_crossreg  # noqa: F401

# What is imported lives to the end: collecting dead TensorFlow graphs need
# not look at it every time.
gc.collect()
gc.freeze()
