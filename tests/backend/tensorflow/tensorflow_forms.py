"""The forms of data that are TensorFlow's own."""

import tensorflow as tf
from forms import batches
from forms import of_x
from keras import tree


def dataset(data, size):
    data = tree.lists_to_tuples(data)
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


@tf.autograph.experimental.do_not_convert
def _yes(*batch):
    return True


def dataset_of_unknown_length(data, size):
    # It is not known how many batches a filter leaves.
    return dataset(data, size).filter(_yes)


def dataset_of_unknown_shapes(data, size):
    def flat():
        return (tuple(tree.flatten(batch)) for batch in batches(data, size))

    types = tuple(a.dtype for a in tree.flatten(data))
    flat = tf.data.Dataset.from_generator(flat, output_types=types)
    data = tree.lists_to_tuples(data)
    return flat.map(lambda *leaves: tree.pack_sequence_as(data, leaves))


def sparse_tensors(data, size):
    return of_x(tf.sparse.from_dense, data)


def ragged_tensors(data, size):
    return of_x(tf.RaggedTensor.from_tensor, data)


# As `forms.FORMS`.
TENSORFLOW_FORMS = {
    "sparse tensors": sparse_tensors,
    "ragged tensors": ragged_tensors,
    "dataset": dataset,
    "dataset of unknown length": dataset_of_unknown_length,
    "dataset of unknown shapes": dataset_of_unknown_shapes,
    "endless dataset": lambda data, size: dataset(data, size).repeat(),
    "dataset of sparse tensors": lambda data, size: dataset(
        sparse_tensors(data, size), size
    ),
}
