"""Batches of the regularization set on PyTorch, and two loaders as one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import torch
from keras import ops
from keras import tree
from torch.utils import data as torch_data

from keras_crossreg._keras import take_rows
from keras_crossreg._keras import torch_device
from keras_crossreg.trainers.array_stream import Arrays
from keras_crossreg.trainers.array_stream import ArrayStream
from keras_crossreg.trainers.reg_stream import RegularizationArrays


class TorchStream(ArrayStream):
    """Regularization batches, taken on the device that the arrays are on."""

    def _make_arrays(self, structure: Any) -> RegularizationArrays:
        return _TorchArrays(structure)

    def _on_device(self, batch: Any) -> Any:
        device = torch.device(torch_device())
        if device.type == "cpu":
            return batch
        return tree.map_structure(
            lambda x: None if x is None else _sent(x, device), batch
        )


def _sent(array: Any, device: torch.device) -> torch.Tensor:
    """On its way to a device, without a wait for what is running there."""
    if not torch.is_tensor(array):
        with keras.device("cpu"):
            array = ops.convert_to_tensor(array)
    if array.device.type == "cpu" and device.type == "cuda":
        # A copy from other memory than this kind would wait.
        array = array.pin_memory()
    return array.to(device, non_blocking=True)


class _TorchArrays(Arrays):
    def __init__(self, structure: Any) -> None:
        super().__init__(structure)
        self._devices = [
            getattr(array, "device", None) if torch.is_tensor(array) else None
            for array in tree.flatten(self._structure)
        ]

    def _take_one(self, place: int, rows: np.ndarray) -> Any:
        device = self._devices[place]
        if device is None or device.type == "cpu":
            return super()._take_one(place, rows)
        # Other memory than this kind would be waited for.
        index = torch.from_numpy(rows).pin_memory()
        return take_rows(
            self._columns[place], index.to(device, non_blocking=True)
        )


def merge_loaders(x: Any, reg_x: Any) -> Any:
    """The examples of two loaders of known size, in batches as those of x.

    `None` for other data, and for loaders with a sampler of their own.
    """
    loaders = [x, reg_x]
    if not all(map(_can_be_merged, loaders)):
        return None
    return torch_data.DataLoader(
        torch_data.ConcatDataset([loader.dataset for loader in loaders]),
        batch_size=x.batch_size,
        shuffle=isinstance(x.sampler, torch_data.RandomSampler),
        num_workers=x.num_workers,
        collate_fn=x.collate_fn,
        pin_memory=x.pin_memory,
        drop_last=x.drop_last,
        timeout=x.timeout,
        worker_init_fn=x.worker_init_fn,
        multiprocessing_context=x.multiprocessing_context,
        generator=x.generator,
        prefetch_factor=x.prefetch_factor,
        persistent_workers=x.persistent_workers,
    )


def _can_be_merged(loader: Any) -> bool:
    """Whether a loader has a dataset with a length, in a plain order."""
    return (
        isinstance(loader, torch_data.DataLoader)
        and hasattr(loader.dataset, "__len__")
        and not isinstance(loader.dataset, torch_data.IterableDataset)
        and loader.batch_size is not None
        and type(loader.sampler)
        in (torch_data.RandomSampler, torch_data.SequentialSampler)
    )
