"""Packing: every token is placed and read once, under the limit, in order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.policy.packing import PREFIX, Block, fill_bins, pack_blocks
from pact_lightning.policy.prefix_tree import BlockLayout, spans

LENGTHS = st.integers(1, 6)


@st.composite
def block_lists(draw):
    """Blocks of few different token ids, so that many begin alike, or all different ones, so that none do."""
    several = draw(st.integers(1, 3)) if draw(st.booleans()) else None
    counter = iter(range(10_000))

    def ids(length):
        if several is not None:
            return draw(st.lists(st.integers(1, several), min_size=length, max_size=length))
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
    blocks = [Block([length + 10 * n], [[2] * length]) for n, length in enumerate((7, 5, 5, 3, 3))]
    assert [pack.tokens for pack in pack_blocks(blocks, max_tokens=15)] == [14, 14]


@given(block_lists(), st.sampled_from(["shared_prefix", "rows"]), st.integers(1, 60))
def test_the_longest_pack_is_the_first(blocks, mode, limit):
    lengths = [pack.tokens for pack in pack_blocks(blocks, limit, mode)]
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 50))
def test_bins_hold_every_item_once_under_the_limit_and_none_could_be_spared_by_merging(sizes, limit):
    bins = fill_bins(len(sizes), lambda items: sum(sizes[item] for item in items), limit)
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
        assert pack.tokens == sum(layout.tokens for layout in pack.layouts) <= pack.row_tokens
        assert pack.tokens <= limit or len({(read.block, max(0, read.branch)) for read in pack.reads}) == 1
        seen = seen_tokens(pack)
        for read in pack.reads:
            block = blocks[read.block]
            branch = [] if read.branch == PREFIX else list(block.branches[read.branch])
            whole, first = list(block.prefix) + branch, 1 if read.branch == PREFIX else len(block.prefix)
            assert [seen[place] for place in read.predictors.tolist()] == [whole[:n] for n in range(first, len(whole))]
            assert pack.positions[read.predictors].tolist() == list(range(first - 1, len(whole) - 1))


def seen_tokens(pack):
    """The tokens that each place of the flat row sees, by the parts that its own goes on from."""
    found = []
    for span in spans(pack.layouts):
        before = [token for part in span.path for token in pack.ids[part.start : part.end].tolist()]
        assert span.before == len(before)
        found += [before + pack.ids[span.start : place + 1].tolist() for place in range(span.start, span.end)]
    return found


def test_different_blocks_share_what_they_begin_with_and_rollouts_what_they_sampled_alike():
    system, tools = [1, 2, 3, 4], [5, 6]
    blocks = [
        Block([*system, *tools, 10], [[20, 21, 22], [20, 21, 23]]),
        Block([90, 91], [[92]]),
        Block([*system, *tools, 11], [[30], [31]], read_prefix=True),
        Block([*system, 12], [[20]]),
    ]
    (pack,) = pack_blocks(blocks, 100)
    assert pack.layouts == (
        BlockLayout(4, (BlockLayout(2, (BlockLayout(3, (1, 1)), BlockLayout(1, (1, 1)))), 2)),
        BlockLayout(3),
    )
    assert pack.ids.tolist() == [1, 2, 3, 4, 5, 6, 10, 20, 21, 22, 23, 11, 30, 31, 12, 20, 90, 91, 92]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 6, 7, 7, 4, 5, 0, 1, 2]
    got = [(r.block, r.branch, r.predictors.tolist(), r.targets.tolist()) for r in pack.reads]
    assert got == [
        (0, 0, [6, 7, 8], [20, 21, 22]),
        (0, 1, [6, 7, 8], [20, 21, 23]),
        (1, 0, [17], [92]),
        (2, PREFIX, [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 11]),
        (2, 0, [11], [30]),
        (2, 1, [11], [31]),
        (3, 0, [14], [20]),
    ]
    assert pack.row_tokens == 10 + 10 + 3 + 8 + 8 + 6


def test_a_beginning_too_short_for_what_stands_behind_it_is_not_shared():
    def of(shared):
        return [Block([*range(shared), 1000 * n], [list(range(100_000 * n, 100_000 * n + 319))]) for n in (1, 2)]

    for shared, tokens in ((19, 2 * (19 + 320)), (20, 20 + 2 * 320)):  # 32 times 20 are the 640 behind it
        (pack,) = pack_blocks(of(shared), 10_000)
        assert pack.tokens == tokens


def test_blocks_that_begin_alike_share_packs():
    """Two families of four, each 10 tokens long: apart they are 20 tokens a pack, mixed they would be 22 and more."""
    blocks = [Block([*range(family, family + 8), 500 + n], [[900 + n]]) for n in range(4) for family in (100, 200)]
    packs = pack_blocks(blocks, 16)
    assert [pack.tokens for pack in packs] == [16, 16]
    assert [{read.block % 2 for read in pack.reads} for pack in packs] == [{0}, {1}]


def test_very_many_sequences_that_go_on_from_each_other_are_packed():
    blocks = [Block([1] * n, [[2 + n % 2]]) for n in range(1, 600, 2)]
    (pack,) = pack_blocks(blocks, 10**7)
    assert pack.tokens < pack.row_tokens
    seen = seen_tokens(pack)
    assert all(seen[int(read.predictors[0])] == [1] * (2 * read.block + 1) for read in pack.reads)


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
