"""Settings of the whole suite."""

import gc

import keras_crossreg  # noqa: F401

# What is imported lives to the end: collecting dead TensorFlow graphs need
# not look at it every time.
gc.collect()
gc.freeze()
