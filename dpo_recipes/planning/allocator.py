"""What torch's caching allocator holds on a GPU beyond the tensors that are alive, on paper.

It asks the driver for segments, cuts blocks from them, and keeps a segment when its blocks are freed.

Leans on torch 2.13: the sizes in c10/cuda/CUDACachingAllocator, without `expandable_segments`.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

MIB = 2**20


class Block(NamedTuple):
    """A stretch of memory; blocks compare by size first, as the best fit is the smallest that is large enough."""

    size: int
    segment: int
    start: int


class FreeBlocks:
    """Free blocks: the best fit is taken, and neighbours become one."""

    def __init__(self) -> None:
        self.bytes = 0
        self._by_size: list[Block] = []
        self._by_start: dict[tuple[int, int], Block] = {}  # (segment, start) -> block
        self._by_end: dict[tuple[int, int], Block] = {}  # (segment, end) -> block

    def best_fit(self, size: int) -> Block | None:
        index = bisect.bisect_left(self._by_size, Block(size, 0, 0))
        if index == len(self._by_size):
            return None
        block = self._by_size[index]
        self.remove(block)
        return block

    def add(self, block: Block) -> Block:
        """-> the block with its free neighbours, which it is now one with."""
        before = self._by_end.get((block.segment, block.start))
        if before is not None:
            self.remove(before)
            block = Block(before.size + block.size, block.segment, before.start)
        after = self._by_start.get((block.segment, block.start + block.size))
        if after is not None:
            self.remove(after)
            block = block._replace(size=block.size + after.size)
        bisect.insort(self._by_size, block)
        self._by_start[block.segment, block.start] = block
        self._by_end[block.segment, block.start + block.size] = block
        self.bytes += block.size
        return block

    def remove(self, block: Block) -> None:
        self._by_size.pop(bisect.bisect_left(self._by_size, block))
        del self._by_start[block.segment, block.start]
        del self._by_end[block.segment, block.start + block.size]
        self.bytes -= block.size


BLOCK = 512  # bytes; every block is a multiple of it
SMALL = MIB  # up to here a block comes from a small segment
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB  # from here on a block gets a segment of its own,
ROUND = 2 * MIB  # the size of which is a multiple of this


class CachingAllocator:
    """torch's own on CUDA, which cuts blocks from segments of the driver and keeps a segment when all of it is free.

    Where the device is full it gives such segments back before it gives up: it may do with less than it would take.
    """

    def __init__(self) -> None:
        self.reserved = 0  # bytes of all segments
        self._segments = 0
        self._small, self._large = FreeBlocks(), FreeBlocks()

    @property
    def idle(self) -> int:
        return self._small.bytes + self._large.bytes

    def allocate(self, size: int) -> Block | None:
        if size == 0:
            return None
        size = _round_up(size, BLOCK)
        pool = self._pool(size)
        block = pool.best_fit(size) or self._new_segment(size)

        rest = block.size - size
        least_rest = BLOCK if pool is self._small else SMALL + 1  # a smaller one stays with the block
        if rest >= least_rest:
            pool.add(Block(rest, block.segment, block.start + size))
            block = block._replace(size=size)
        return block

    def free(self, block: Block | None) -> None:
        if block is not None:
            self._pool(block.size).add(block)

    def _pool(self, size: int) -> FreeBlocks:
        return self._small if size <= SMALL else self._large

    def _new_segment(self, size: int) -> Block:
        if size <= SMALL:
            segment_size = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            segment_size = LARGE_SEGMENT
        else:
            segment_size = _round_up(size, ROUND)
        self._segments += 1
        self.reserved += segment_size
        return Block(segment_size, self._segments, 0)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
