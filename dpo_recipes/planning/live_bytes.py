"""The bytes of all tensors that are alive, counted by what they are for, and the worst moment of them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from .allocator import CachingAllocator


class Moment(NamedTuple):
    """What is alive at a time."""

    total: int  # bytes on a device
    name: str
    parts: Counter[str]  # part -> bytes


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by part, and keeps the count of the worst moment."""

    def __init__(self, allocator: CachingAllocator | None = None, divided_by: Mapping[str, int] | None = None) -> None:
        """`allocator`: what it keeps of freed memory counts too.

        `divided_by`: part -> over how many devices it is spread, by which the worst moment of one of them is found.
        The counts themselves stay those of whole parts.
        """
        super().__init__()
        self.allocator = allocator
        self.divided_by = divided_by or {}
        self.moment = ""
        self.now = Counter[str]()  # part -> bytes
        self.worst = Moment(0, "", Counter[str]())
        self._known: Any = WeakIdKeyDictionary()  # storage -> its part and bytes, as a counter
        self._in_use_at_worst = 0  # bytes of the allocator
        self._allocated: Any = WeakIdKeyDictionary()  # storage -> what frees the memory that the allocator holds for it

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(torch.Tensor, self.add, function(*args, **(kwargs or {})))

    def add(self, tensor: torch.Tensor, part: str = "") -> Any:
        """Count a tensor's storage, once, as activations or as the part that it is said to be."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = Counter[str]()
            weakref.finalize(storage, self.now.subtract, self._known[storage])
            self._allocate(storage, storage.nbytes())

        counted = self._known[storage]
        if part or not counted:
            self.now.subtract(counted)
            counted.clear()
            counted[part or "activations"] = storage.nbytes()
            self.now.update(counted)

            # Made whole, as a gradient is, and then divided. 4-bit weights are not; optimizer states are plain bytes.
            if part in self.divided_by and (tensor.is_floating_point() or part == "optimizer"):
                self._allocate(storage, storage.nbytes() // self.divided_by[part])

        self.look()
        return tensor

    def _allocate(self, storage: Any, size: int) -> None:
        """Have the allocator hold so many bytes for a storage until it is freed, in place of what it holds for it."""
        if self.allocator is None:
            return
        free_what_is_held = self._allocated.get(storage)
        if free_what_is_held is not None:
            free_what_is_held()
        self._allocated[storage] = weakref.finalize(storage, self.allocator.free, self.allocator.allocate(size))

    def look(self) -> None:
        """Keep the count where there has been no worse one."""
        total = self.now.total()
        for part, devices in self.divided_by.items():
            total -= self.now[part] - self.now[part] // devices
        if total >= self.worst.total:
            self.worst = Moment(total, self.moment, self.now.copy())
            if self.allocator is not None:
                self._in_use_at_worst = self.allocator.reserved - self.allocator.idle

    def kept_for_later(self) -> int:
        """Bytes that the allocator reserves in the end, beyond what is in use at the worst moment."""
        if self.allocator is None:
            return 0
        return self.allocator.reserved - self._in_use_at_worst
