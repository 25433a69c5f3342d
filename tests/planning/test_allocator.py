"""The caching allocator on paper: segments, cut blocks, neighbours that become one, and what is kept."""

from __future__ import annotations

from dpo_recipes.planning.allocator import MIB, CachingAllocator


def test_small_blocks_share_a_segment_and_large_ones_have_their_own():
    allocator = CachingAllocator()
    allocator.allocate(1)  # 512 bytes of a segment of 2 MiB
    assert allocator.idle == 2 * MIB - 512
    allocator.allocate(3 * MIB)  # of a segment of 20 MiB
    assert allocator.idle == 2 * MIB - 512 + 17 * MIB
    allocator.allocate(19 * MIB)  # a segment of its own, of 20 MiB; the rest is no more than 1 MiB and stays with it
    assert allocator.idle == 2 * MIB - 512 + 17 * MIB
    allocator.allocate(6 * MIB)  # from the rest of the 20
    assert allocator.idle == 2 * MIB - 512 + 11 * MIB


def test_what_is_freed_is_kept_and_used_again():
    allocator = CachingAllocator()
    block = allocator.allocate(100 * MIB)
    allocator.free(block)
    assert allocator.idle == 100 * MIB
    assert allocator.allocate(60 * MIB) is not None and allocator.idle == 40 * MIB
    allocator.allocate(50 * MIB)  # which no free block takes: another segment
    assert allocator.idle == 40 * MIB


def test_free_neighbours_become_one():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(4 * MIB) for _ in range(5)]  # the whole of one segment
    assert allocator.idle == 0
    for place in (0, 2, 1):
        allocator.free(blocks[place])
    assert allocator.allocate(9 * MIB) is not None and allocator.idle == 3 * MIB


def test_nothing_takes_nothing():
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(0))
    assert allocator.idle == 0
