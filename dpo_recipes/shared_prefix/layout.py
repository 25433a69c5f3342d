"""The flat row: a padded batch of pairs without its padding, in which what a pair begins with stands once.

Leans on TRL 1.16: the model is called with `labels=..., fused_lm_head=True` and 2B rows of T tokens, padded on the
right: B chosen ones, then their B rejected ones, each with its prompt. A label of -100 is not scored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .products import round_number


class Stretch(NamedTuple):
    """Neighbours in the row, which see the `shared` tokens from `prefix` on and, causally, themselves."""

    start: int
    stop: int
    prefix: int
    shared: int

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> int:
        return self.shared + self.queries


class Ragged(NamedTuple):
    """The stretches as a varlen kernel takes them: all queries in a line, all keys in a line, and where each ends."""

    key_places: Tensor  # (K,): the keys of one stretch after the other, as indices into the row; a prefix comes again
    query_borders: Tensor  # (stretches + 1,), int32: 0, then where each stretch ends in the line of queries
    key_borders: Tensor  # (stretches + 1,), int32: the same in the line of keys
    most_queries: int  # of one stretch
    most_keys: int


class Queries:
    """The tokens of a row that ask in a layer, as stretches."""

    def __init__(self, stretches: list[Stretch]):
        self.stretches = [stretch for stretch in stretches if stretch.queries > 0]
        self._ragged: dict[torch.device, Ragged] = {}

    def places(self) -> Tensor:
        """(queries,): indices into the row."""
        of_stretches = [torch.arange(stretch.start, stretch.stop) for stretch in self.stretches]
        return torch.cat([torch.empty(0, dtype=torch.long), *of_stretches])

    def ragged(self, device: torch.device) -> Ragged:
        """The stretches for a varlen kernel, which reads all of them in one call."""
        if device not in self._ragged:
            self._ragged[device] = self._make_ragged(device)
        return self._ragged[device]

    def _make_ragged(self, device: torch.device) -> Ragged:
        queries = [stretch.queries for stretch in self.stretches]
        keys = [stretch.keys for stretch in self.stretches]

        places = []
        for stretch in self.stretches:
            places.append(torch.arange(stretch.prefix, stretch.prefix + stretch.shared))
            places.append(torch.arange(stretch.start, stretch.stop))

        return Ragged(
            key_places=torch.cat(places).to(device),
            query_borders=_borders(queries, device),
            key_borders=_borders(keys, device),
            most_queries=max(queries),
            most_keys=max(keys),
        )


class _Spread(torch.autograd.Function):
    """Some of `size` neighbours at their places, zero elsewhere. torch's `index_copy` would keep them for backward."""

    @staticmethod
    def forward(ctx: Any, picked: Tensor, places: Tensor, size: int, dim: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.dim = dim
        shape = list(picked.shape)
        shape[dim] = size
        return picked.new_zeros(shape).index_copy_(dim, places, picked)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(ctx.dim, places), None, None, None


class Row:
    """A padded batch of B pairs, (2B, T), as one row of N tokens.

    Take one pair: prompt 1 2 3, chosen 4 5, rejected 4 6 7. TRL's batch has T = 6 columns, and a dot is padding:

        chosen       1 2 3 4 5 .
        rejected     1 2 3 4 6 7

    Both begin with 1 2 3 4. The row has all of chosen, and then what rejected has beyond those four tokens:

        index        0 1 2 3 4 5 6
        tokens       1 2 3 4 5 6 7
        positions    0 1 2 3 4 4 5      the columns that they had: 5 and 6 both follow the 4

    Two stretches of it see different things:

        chosen       Stretch(start=0, stop=5, prefix=0, shared=0)      itself
        rejected     Stretch(start=5, stop=7, prefix=0, shared=4)      the tokens 0 to 3, and itself

    Five tokens are scored, and each is predicted from the one before it in its own row of the batch. So the token at
    3 predicts twice, the 5 of chosen and the 6 of rejected:

        targets      4 5   4 6 7
        predictors   2 3   2 3 5        indices into the row

    The next pair begins at index 7.

    Behind the last layer only predictors are read. There the stretches begin with the first of them, and what stands
    before it in chosen is seen as a prefix is:

        chosen       Stretch(start=2, stop=5, prefix=0, shared=2)
        rejected     Stretch(start=5, stop=7, prefix=0, shared=4)
        ending       2 3 4 5 6          indices into the row

    A row of a round number of tokens (products.py) ends with a stretch of filler, copies of one token that see each
    other alone and that nobody reads. The ending takes of it what it needs to be round, and then of the prompts.
    """

    def __init__(
        self,
        ids: Tensor,
        labels: Tensor,
        lengths: list[int],
        common: list[int],
        first: list[int],
        *,
        in_round_numbers: bool = False,
    ):
        """`ids`, `labels`: (2B, T); `lengths`: tokens of the 2B rows without padding; `common`: of the B prefixes.

        `first`: of the 2B rows, the first column that predicts a scored token; T - 1 where none does.
        `in_round_numbers`: of tokens, in the row and behind its last layer.
        """
        stretches = _stretches(lengths, common)
        endings = _endings(stretches, common, first)
        tokens = stretches[-1].stop
        whole = stretches
        if in_round_numbers:
            filler = Stretch(tokens, round_number(tokens), prefix=tokens, shared=0)  # which may be empty
            tokens = filler.stop
            whole = [*stretches, filler]
            endings = _in_a_round_number(endings, filler)
        self.whole = Queries(whole)
        self.ending = Queries(endings)
        self.ending_places = self.ending.places().to(ids.device)  # (M,), indices into the row

        place = _places(stretches, width=ids.size(1))  # (2B, T), batch -> row
        source = _sources(place, lengths, tokens)  # (N,), row -> flattened batch
        place, source = place.to(ids.device), source.to(ids.device)

        self.place = place  # (2B, T), the index in the row of every token of the batch; at padding, of any
        self.padded_tokens = ids.numel()
        self.tokens = ids.flatten()[source][None]  # (1, N)
        self.positions = (source % ids.size(1))[None]  # (1, N)

        # A token is predicted from the column before its own, so that there are T - 1 columns of predictions.
        next_labels = labels[:, 1:]
        self.scored = next_labels != -100  # (2B, T - 1)
        self.predictors = place[:, :-1][self.scored]  # (S,)
        self.targets = next_labels[self.scored][None]  # (1, S)

        # With gradients or without, with a prefix or without: each kind must have been seen to be right.
        self.kind = (torch.is_grad_enabled(), any(common))

        # What the last layer says of itself (last_layer.py).
        self.last_attention: Any = None  # the module whose queries are those of `ending`
        self.is_behind_last_attention = False
        self.skips_unread = True  # whether the last layer may leave tokens out

        # What the attention function notes down on its way through the model.
        self.windows: dict[int, int | None] = {}  # attention layer -> its sliding window
        self.half = False  # whether a layer computed in 16 bits
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    @classmethod
    def of(
        cls,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        fused_lm_head: bool = False,
        use_cache: bool = False,
        output_router_logits: bool | None = None,
        in_round_numbers: bool = False,
        **other: Any,
    ) -> Row | None:
        """The row of TRL's call for pairs that are padded on the right; None for every other call.

        `in_round_numbers` is not TRL's: see `__init__`.
        """
        asks_for_more = any(value is not None for value in other.values())
        if not fused_lm_head or use_cache or asks_for_more:
            return None
        if not _are_pairs(input_ids, attention_mask, labels):
            return None

        attended = attention_mask.bool()  # (2B, T)
        lengths = attention_mask.long().sum(1)  # (2B,)
        columns = torch.arange(attended.size(1), device=attended.device)
        padded_on_the_right = attended == (columns < lengths[:, None])
        padding_is_not_scored = attended | (labels == -100)
        as_usual = (padded_on_the_right & padding_is_not_scored).all()

        # A running product stays 1 up to the first column in which the two sides differ or one of them has ended.
        pairs = len(input_ids) // 2
        same = (input_ids[:pairs] == input_ids[pairs:]) & attended[:pairs] & attended[pairs:]
        common = same.long().cumprod(1).sum(1)  # (B,)

        # A running sum is 0 up to the first scored token, which the column before its own predicts.
        first = ((labels[:, 1:] != -100).long().cumsum(1) == 0).sum(1)  # (2B,), T - 1 where nothing is scored

        # All numbers in one transfer, as each one by itself would wait for a GPU.
        *counts, usual = torch.cat([lengths, common, first, as_usual.long()[None]]).tolist()
        if not usual or not any(counts[: 3 * pairs]):
            return None
        return cls(
            input_ids,
            labels,
            lengths=counts[: 2 * pairs],
            common=counts[2 * pairs : 3 * pairs],
            first=counts[3 * pairs :],
            in_round_numbers=in_round_numbers,
        )

    def pick(self, tokens: Tensor, dim: int) -> Tensor:
        """Of N tokens along `dim` the M of `ending`."""
        return tokens.index_select(dim, self.ending_places.to(tokens.device))

    def spread(self, picked: Tensor, dim: int) -> Tensor:
        """The M tokens of `ending` at their places among N along `dim`; zero elsewhere, where nobody reads."""
        spread: Tensor = _Spread.apply(picked, self.ending_places.to(picked.device), self.tokens.numel(), dim)
        return spread

    def mask(self, stretch: Stretch, window: int | None, like: Tensor) -> Tensor | None:
        """What `added_mask` says, or None where plain causal attention does the same."""
        if stretch.shared == 0 and (window is None or window >= stretch.keys):
            return None
        return self.added_mask(stretch, window, like)

    def added_mask(self, stretch: Stretch, window: int | None, like: Tensor) -> Tensor:
        """(1, 1, queries, keys), to be added to scores: 0 where a query sees a key, else the least number.

        The queries of a stretch are the last of its keys. Stretches of one shape have one mask, in the type of the
        queries (`like`): of one of booleans torch makes such a one in every layer, and holds each for the backward.
        """
        window = min(window or stretch.keys, stretch.keys)
        shape = (stretch.shared, stretch.keys, window, like.device, like.dtype)
        if shape not in self._masks:
            key = torch.arange(stretch.keys, device=like.device)
            query = torch.arange(stretch.shared, stretch.keys, device=like.device)[:, None]
            ahead = key - query  # (queries, keys), how far the key stands in front of the query
            seen = (ahead <= 0) & (ahead > -window)
            unseen = torch.full(seen.shape, torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
            self._masks[shape] = unseen.masked_fill(seen, 0)[None, None]
        return self._masks[shape]


def _are_pairs(ids: Any, attention_mask: Any, labels: Any) -> bool:
    """Whether all three are there, of one shape (2B, T)."""
    for tensor in (ids, attention_mask, labels):
        if tensor is None or tensor.dim() != 2 or tensor.shape != ids.shape:
            return False
    return len(ids) % 2 == 0


def _stretches(lengths: list[int], common: list[int]) -> list[Stretch]:
    """Chosen and rejected of each pair, pair after pair; a stretch may be empty."""
    pairs = len(common)
    stretches = []
    end = 0
    for pair, shared in enumerate(common):
        start = end
        middle = start + lengths[pair]
        end = middle + lengths[pairs + pair] - shared
        stretches.append(Stretch(start, middle, prefix=start, shared=0))
        stretches.append(Stretch(middle, end, prefix=start, shared=shared))
    return stretches


def _endings(stretches: list[Stretch], common: list[int], first: list[int]) -> list[Stretch]:
    """The stretches from their first predictor on. Where that stands in the prefix it is in chosen's.

    Rejected is whole: it begins where the two sides differ, and all but the last of its tokens predict one.
    """
    pairs = len(common)
    endings = []
    for pair in range(pairs):
        chosen, rejected = stretches[2 * pair], stretches[2 * pair + 1]
        unread = first[pair]  # tokens of chosen before the first one that predicts
        if first[pairs + pair] < common[pair]:
            unread = min(unread, first[pairs + pair])
        unread = min(unread, chosen.queries)
        endings.append(Stretch(chosen.start + unread, chosen.stop, prefix=chosen.start, shared=unread))
        endings.append(rejected)
    return endings


def _in_a_round_number(endings: list[Stretch], filler: Stretch) -> list[Stretch]:
    """The endings with more tokens, from the filler and then from what stands before them in chosen.

    There are enough of these, as all of the row together is a round number that is no smaller.
    """
    tokens = sum(ending.queries for ending in endings)
    missing = round_number(tokens) - tokens
    of_filler = min(missing, filler.queries)
    missing -= of_filler
    longer = []
    for chosen, rejected in zip(endings[::2], endings[1::2], strict=True):
        more = min(missing, chosen.shared)
        missing -= more
        longer.append(Stretch(chosen.start - more, chosen.stop, chosen.prefix, chosen.shared - more))
        longer.append(rejected)
    return [*longer, filler._replace(stop=filler.start + of_filler)]


def _places(stretches: list[Stretch], width: int) -> Tensor:
    """(2B, T): the index in the row of every token of the batch; at padding, 0."""
    chosen, rejected = stretches[::2], stretches[1::2]
    place = torch.zeros(len(stretches), width, dtype=torch.long)
    for batch_row, stretch in enumerate([*chosen, *rejected]):
        place[batch_row, : stretch.shared] = torch.arange(stretch.prefix, stretch.prefix + stretch.shared)
        place[batch_row, stretch.shared : stretch.keys] = torch.arange(stretch.start, stretch.stop)
    return place


def _sources(place: Tensor, lengths: list[int], tokens: int) -> Tensor:
    """(N,): `place` turned round, for each of the row's tokens where it stands in the flattened batch.

    A token of a prefix stands there twice, once in either side, and it does not matter which one is taken. Filler
    copies the first token of the batch.
    """
    attended = torch.arange(place.size(1)) < torch.tensor(lengths)[:, None]  # (2B, T)
    in_the_batch = torch.arange(place.numel()).view_as(place)[attended]
    source = torch.zeros(tokens, dtype=torch.long)
    source[place[attended]] = in_the_batch
    return source


def _borders(counts: list[int], device: torch.device) -> Tensor:
    """0, and the running sum of the counts, in the 32 bits that kernels take."""
    return torch.tensor([0, *counts], device=device).cumsum(0, dtype=torch.int32)
