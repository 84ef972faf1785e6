"""The forms of data that `fit` takes, but for those of one backend alone.

Those of TensorFlow are in `tests/backend/tensorflow/tensorflow_forms.py`.
"""

import keras
import pytest
from keras import tree


def batches(data, size):
    """A list of batches, the last of which may be smaller."""
    rows = len(tree.flatten(data)[0])
    return [
        tree.map_structure(lambda a, i=i: a[i : i + size], data)
        for i in range(0, rows, size)
    ]


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, **kwargs):
        super().__init__(**kwargs)
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class EndlessBatches(Batches):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


def generator(batches):
    while True:
        yield from batches


def tensors(data, size):
    return tree.map_structure(keras.ops.convert_to_tensor, data)


# PyTorch is too large to install for a few tests: they run where it is.


def data_loader(data, size):
    torch = pytest.importorskip("torch")
    rows = batches(data, 1)
    rows = [tree.map_structure(lambda a: a[0], row) for row in rows]
    return torch.utils.data.DataLoader(rows, batch_size=size)


def data_loader_of_unknown_length(data, size):
    torch = pytest.importorskip("torch")

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data_loader(data, 1).dataset)

    return torch.utils.data.DataLoader(Rows(), batch_size=size)


def torch_tensors(data, size):
    torch = pytest.importorskip("torch")
    return tree.map_structure(torch.as_tensor, data)


def frames_of(package):
    """The form of vectors in a `Series`, and of others in a `DataFrame`."""

    def form(data, size):
        library = pytest.importorskip(package)

        def convert(array):
            cls = library.Series if array.ndim == 1 else library.DataFrame
            return cls(array)

        return tree.map_structure(convert, data)

    return form


def of_x(convert, data):
    """What is sparse is x; targets and weights stay arrays."""
    return (tree.map_structure(convert, data[0]), *data[1:])


def scipy_matrices(data, size):
    sparse = pytest.importorskip("scipy.sparse")
    return of_x(sparse.csr_matrix, data)


def scipy_arrays(data, size):
    sparse = pytest.importorskip("scipy.sparse")
    return of_x(sparse.coo_array, data)


def float64(data, size):
    return tree.map_structure(
        lambda a: a.astype("float64") if a.dtype.kind == "f" else a, data
    )


# `form(data, size)`: `data` are arrays, `(x, y)` or `(x, y, sample_weight)`,
# each an array, a dict, a tuple or a list of arrays; `size` is of a batch.
FORMS = {
    "arrays": lambda data, size: data,
    "float64 arrays": float64,
    "tensors": tensors,
    "torch tensors": torch_tensors,
    "pandas": frames_of("pandas"),
    "polars": frames_of("polars"),
    "SciPy matrices": scipy_matrices,
    "SciPy arrays": scipy_arrays,
    "PyDataset": lambda data, size: Batches(batches(data, size)),
    "PyDataset with workers": lambda data, size: Batches(
        batches(data, size), workers=2
    ),
    "endless PyDataset": lambda data, size: EndlessBatches(batches(data, size)),
    "generator": lambda data, size: generator(batches(data, size)),
    "torch DataLoader": data_loader,
    "torch DataLoader of unknown length": data_loader_of_unknown_length,
}

# Those that come in batches, one of each kind.
BATCH_FORMS = ["PyDataset", "generator", "torch DataLoader"]


def is_array_form(data):
    """Whether `fit` takes it as x, y and sample_weight."""
    return isinstance(data, tuple)


def training_arguments(data):
    """Data of any form as the first arguments of `fit`."""
    if not is_array_form(data):
        return dict(x=data)
    return dict(zip(("x", "y", "sample_weight"), data, strict=False))


def against_arrays(forms):
    """Pairs `(form, form of reg_data)`: each of the forms meets arrays."""
    pairs = [("arrays", form) for form in forms]
    return pairs + [(form, "arrays") for form in forms if form != "arrays"]


def pair(x, reg_data, *marks):
    """A case of the table of forms."""
    return pytest.param(x, reg_data, id=f"{x} | {reg_data}", marks=marks)
