"""Bytes of tensors in use at once, counted as they are made and let go.

On torch's fake tensors this predicts the memory of a model that is nowhere: the same code runs, on shapes alone. What
libraries allocate for themselves, and what an allocator keeps, is not in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """``peak``: the most bytes that were in use at once of what was made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and (storage := _storage(leaf))._cdata not in given:
                size = storage.nbytes()
                if isinstance(size, int):  # of a fake tensor it may be unknown: as many rows as have a label
                    self._made[storage._cdata] = (StorageWeakRef(storage), size)
        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self) -> int:
        """Bytes in use of what was made inside."""
        self._made = {key: kept for key, kept in self._made.items() if not kept[0].expired()}
        return sum(size for _, size in self._made.values())


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()
