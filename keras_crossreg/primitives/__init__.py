"""What a backend gives: gradients, random numbers, order of evaluation.

No trainer: layers, regularizers and noise need these alone. The primitives of
a backend are one file, which lists what a new one has to bring.
"""

from keras_crossreg.primitives.errors import NotDifferentiableTwice
from keras_crossreg.supported_backends import check_backend

if check_backend() == "tensorflow":
    from keras_crossreg.primitives.tensorflow import draw_in_runtime
    from keras_crossreg.primitives.tensorflow import evaluated_after
    from keras_crossreg.primitives.tensorflow import gradient
    from keras_crossreg.primitives.tensorflow import gradient_in_passes
    from keras_crossreg.primitives.tensorflow import replica_index
    from keras_crossreg.primitives.tensorflow import rows
    from keras_crossreg.primitives.tensorflow import second_order
    from keras_crossreg.primitives.tensorflow import uniform
    from keras_crossreg.primitives.tensorflow import value_and_gradient
    from keras_crossreg.primitives.tensorflow import value_and_gradients
    from keras_crossreg.primitives.tensorflow import vector_jacobian

__all__ = [
    "NotDifferentiableTwice",
    "draw_in_runtime",
    "evaluated_after",
    "gradient",
    "gradient_in_passes",
    "replica_index",
    "rows",
    "second_order",
    "uniform",
    "value_and_gradient",
    "value_and_gradients",
    "vector_jacobian",
]
