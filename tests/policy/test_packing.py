"""Packing: every token is placed and read once, under the limit, in order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.policy.packing import PREFIX, Block, BlockLayout, fill_bins, pack_blocks

LENGTHS = st.integers(1, 6)


@st.composite
def block_lists(draw):
    """Blocks whose token ids are all different, so that a read tells exactly where it came from."""
    counter = iter(range(10_000))

    def ids(length):
        return [next(counter) for _ in range(length)]

    blocks = []
    for _ in range(draw(st.integers(1, 5))):
        prefix = ids(draw(LENGTHS))
        branches = [ids(draw(LENGTHS)) for _ in range(draw(st.integers(0, 4)))]
        blocks.append(Block(prefix, branches, read_prefix=draw(st.booleans()) or not branches))
    return blocks


def golden_blocks():
    return [Block([1, 2, 3], [[10, 11], [20]], read_prefix=True), Block([7, 8], read_prefix=True)]


def test_the_flat_row_of_two_blocks_worked_by_hand():
    (pack,) = pack_blocks(golden_blocks(), max_tokens=100)
    assert pack.ids.tolist() == [1, 2, 3, 10, 11, 20, 7, 8]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert pack.layouts == (BlockLayout(3, (2, 1)), BlockLayout(2))
    assert pack.tokens == 8
    got = [(r.block, r.branch, r.predictors.tolist(), r.targets.tolist()) for r in pack.reads]
    assert got == [
        (0, PREFIX, [0, 1], [2, 3]),
        (0, 0, [2, 3], [10, 11]),
        (0, 1, [2], [20]),
        (1, PREFIX, [6], [8]),
    ]


def test_rows_repeat_the_prefix_as_plain_sequences():
    (pack,) = pack_blocks(golden_blocks(), max_tokens=100, mode="rows")
    assert pack.ids.tolist() == [1, 2, 3, 10, 11, 1, 2, 3, 20, 7, 8]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1]
    assert pack.layouts == (BlockLayout(5), BlockLayout(4), BlockLayout(2))
    got = [(r.block, r.branch, r.predictors.tolist(), r.targets.tolist()) for r in pack.reads]
    assert got == [
        (0, PREFIX, [0, 1], [2, 3]),
        (0, 0, [2, 3], [10, 11]),
        (0, 1, [7], [20]),
        (1, PREFIX, [9], [8]),
    ]


def test_a_block_over_the_limit_is_split_by_branches_and_reads_its_prefix_once():
    blocks = [Block([9], [[8]]), Block([1, 2, 3], [[10, 11], [20, 21], [30]], read_prefix=True), Block([4], [[5]])]
    packs = pack_blocks(blocks, max_tokens=6)
    # 5 + 6 tokens of the block's two parts and twice 2: three packs, none with room for another.
    assert sorted(pack.tokens for pack in packs) == [4, 5, 6]
    reads = sorted((r.block, r.branch) for pack in packs for r in pack.reads)
    assert reads == [(0, 0), (1, PREFIX), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_large_and_small_blocks_share_packs_of_equal_length():
    blocks = [Block([1], [[2] * length]) for length in (7, 5, 5, 3, 3)]
    assert [pack.tokens for pack in pack_blocks(blocks, max_tokens=15)] == [14, 14]


@given(block_lists(), st.sampled_from(["shared_prefix", "rows"]), st.integers(1, 60))
def test_the_longest_pack_is_the_first(blocks, mode, limit):
    lengths = [pack.tokens for pack in pack_blocks(blocks, limit, mode)]
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 50))
def test_bins_hold_every_item_once_under_the_limit_and_none_could_be_spared_by_merging(sizes, limit):
    bins = fill_bins(sizes, limit)
    assert sorted(item for found in bins for item in found) == list(range(len(sizes)))
    filled = sorted(sum(sizes[item] for item in found) for found in bins)
    assert all(fill <= limit for fill in filled)
    assert all(found == sorted(found) for found in bins)
    if len(filled) > 1:
        assert filled[0] + filled[1] > limit


@given(block_lists(), st.sampled_from(["shared_prefix", "rows"]), st.integers(1, 60))
def test_every_token_is_read_once_and_predicted_by_the_token_before_it(blocks, mode, limit):
    packs = pack_blocks(blocks, limit, mode)
    got = [(r.block, r.branch, r.targets.tolist()) for pack in packs for r in pack.reads]
    wanted = []
    for index, block in enumerate(blocks):
        if block.read_prefix:
            wanted.append((index, PREFIX, list(block.prefix[1:])))
        wanted += [(index, k, list(branch)) for k, branch in enumerate(block.branches)]
    assert sorted(got) == sorted(wanted)
    for pack in packs:
        blocks_in_order = [read.block for read in pack.reads]
        assert blocks_in_order == sorted(blocks_in_order)
        assert pack.tokens == sum(layout.tokens for layout in pack.layouts)
        one_sequence = len(pack.layouts) == 1 and len(pack.layouts[0].branches) <= 1
        assert pack.tokens <= limit or one_sequence
        for read in pack.reads:
            block = blocks[read.block]
            if read.branch == PREFIX:
                before, first = list(block.prefix[:-1]), 0
            else:
                before, first = [block.prefix[-1], *block.branches[read.branch][:-1]], len(block.prefix) - 1
            assert pack.ids[read.predictors].tolist() == before
            assert pack.positions[read.predictors].tolist() == list(range(first, first + len(before)))


def test_tensors_arrays_and_lists_of_ids_pack_alike():
    plain = pack_blocks([Block([1, 2], [[3, 4]])], 10)[0]
    tensors = pack_blocks([Block(torch.tensor([1, 2]), [torch.tensor([3, 4]).numpy()])], 10)[0]
    assert torch.equal(plain.ids, tensors.ids)
    assert tensors.ids.dtype == torch.long


@pytest.mark.parametrize("mode", ["shared_prefix", "rows"])
def test_a_sequence_over_the_limit_makes_a_pack_of_its_own(mode):
    blocks = [Block([1], [[2]]), Block([1, 2, 3], [[4], [5, 6, 7]]), Block([1, 2, 3, 4], read_prefix=True)]
    packs = pack_blocks(blocks, max_tokens=3, mode=mode)
    assert sorted(pack.tokens for pack in packs) == [2, 4, 4, 6]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (Block([], [[1]]), "block 0 has an empty prefix"),
        (Block([1], [[2], []]), "branch 1 of block 0 is empty"),
        (Block([1, 2]), "block 0 has no branches and its prefix is not read"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused(block, sentence):
    with pytest.raises(ValueError, match=sentence):
        pack_blocks([block], max_tokens=10)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown packing mode 'flex'"):
        pack_blocks([Block([1], [[2]])], 10, "flex")
