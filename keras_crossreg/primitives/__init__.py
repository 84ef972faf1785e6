"""What a backend gives: gradients, random numbers, order of evaluation.

No trainer: layers, regularizers and noise need these alone. The primitives of
a backend are one file, which lists what a new one has to bring.
"""

from keras_crossreg.primitives.errors import NotDifferentiableTwice
from keras_crossreg.supported_backends import check_backend

_BACKEND = check_backend()

if _BACKEND == "tensorflow":
    from keras_crossreg.primitives.tensorflow import SAMPLES_PER_PASS
    from keras_crossreg.primitives.tensorflow import apply_gradients
    from keras_crossreg.primitives.tensorflow import cpu_uniform
    from keras_crossreg.primitives.tensorflow import draw_in_runtime
    from keras_crossreg.primitives.tensorflow import evaluated_after
    from keras_crossreg.primitives.tensorflow import gradient
    from keras_crossreg.primitives.tensorflow import gradient_in_passes
    from keras_crossreg.primitives.tensorflow import in_turn
    from keras_crossreg.primitives.tensorflow import maximum
    from keras_crossreg.primitives.tensorflow import minimum
    from keras_crossreg.primitives.tensorflow import normal
    from keras_crossreg.primitives.tensorflow import on_device_of
    from keras_crossreg.primitives.tensorflow import replica_index
    from keras_crossreg.primitives.tensorflow import rows
    from keras_crossreg.primitives.tensorflow import second_order
    from keras_crossreg.primitives.tensorflow import seed_scope
    from keras_crossreg.primitives.tensorflow import shares_numbers
    from keras_crossreg.primitives.tensorflow import uniform
    from keras_crossreg.primitives.tensorflow import value_and_gradient
    from keras_crossreg.primitives.tensorflow import value_and_gradients
    from keras_crossreg.primitives.tensorflow import vector_jacobian
    from keras_crossreg.primitives.tensorflow import writers
elif _BACKEND == "jax":
    from keras_crossreg.primitives.jax import SAMPLES_PER_PASS
    from keras_crossreg.primitives.jax import apply_gradients
    from keras_crossreg.primitives.jax import cpu_uniform
    from keras_crossreg.primitives.jax import draw_in_runtime
    from keras_crossreg.primitives.jax import evaluated_after
    from keras_crossreg.primitives.jax import gradient
    from keras_crossreg.primitives.jax import gradient_in_passes
    from keras_crossreg.primitives.jax import in_turn
    from keras_crossreg.primitives.jax import maximum
    from keras_crossreg.primitives.jax import minimum
    from keras_crossreg.primitives.jax import normal
    from keras_crossreg.primitives.jax import on_device_of
    from keras_crossreg.primitives.jax import replica_index
    from keras_crossreg.primitives.jax import rows
    from keras_crossreg.primitives.jax import second_order
    from keras_crossreg.primitives.jax import seed_scope
    from keras_crossreg.primitives.jax import shares_numbers
    from keras_crossreg.primitives.jax import uniform
    from keras_crossreg.primitives.jax import value_and_gradient
    from keras_crossreg.primitives.jax import value_and_gradients
    from keras_crossreg.primitives.jax import vector_jacobian
    from keras_crossreg.primitives.jax import writers
elif _BACKEND == "torch":
    from keras_crossreg.primitives.torch import SAMPLES_PER_PASS
    from keras_crossreg.primitives.torch import apply_gradients
    from keras_crossreg.primitives.torch import cpu_uniform
    from keras_crossreg.primitives.torch import evaluated_after
    from keras_crossreg.primitives.torch import gradient
    from keras_crossreg.primitives.torch import gradient_in_passes
    from keras_crossreg.primitives.torch import in_turn
    from keras_crossreg.primitives.torch import maximum
    from keras_crossreg.primitives.torch import minimum
    from keras_crossreg.primitives.torch import normal
    from keras_crossreg.primitives.torch import on_device_of
    from keras_crossreg.primitives.torch import replica_index
    from keras_crossreg.primitives.torch import rows
    from keras_crossreg.primitives.torch import second_order
    from keras_crossreg.primitives.torch import seed_scope
    from keras_crossreg.primitives.torch import shares_numbers
    from keras_crossreg.primitives.torch import uniform
    from keras_crossreg.primitives.torch import value_and_gradient
    from keras_crossreg.primitives.torch import value_and_gradients
    from keras_crossreg.primitives.torch import vector_jacobian
    from keras_crossreg.primitives.torch_export import draw_in_runtime
    from keras_crossreg.primitives.torch_export import writers

__all__ = [
    "SAMPLES_PER_PASS",
    "NotDifferentiableTwice",
    "apply_gradients",
    "cpu_uniform",
    "draw_in_runtime",
    "evaluated_after",
    "gradient",
    "gradient_in_passes",
    "in_turn",
    "maximum",
    "minimum",
    "normal",
    "on_device_of",
    "replica_index",
    "rows",
    "second_order",
    "seed_scope",
    "shares_numbers",
    "uniform",
    "value_and_gradient",
    "value_and_gradients",
    "vector_jacobian",
    "writers",
]
