"""Examples of all lengths in one rectangle: padded, or packed without waste.

A batch is a rectangle of tokens, and examples are not. *Padding* gives each a row and fills it up. *Packing* puts
several into each row of `context_length` tokens, and has to hide them from each other:

    ids         How are you ? <end>  Name a fruit . Plum <end>  ·  ·
    documents     0   0   0 0   0      1  1   1   1   1    1    2  2     who may look at whom: `document_mask`
    positions     0   1   2 3   4      0  1   2   3   4    5    0  0     as if each were alone

So an example has the same logits in a packed row as alone, and the same gradient (Krell et al. 2021, section 3.2; the
tests hold it to 1e-5). Which examples share a row is then a matter of cost alone. *Best-fit decreasing* takes the
longest first and puts each where the least room is left: never more than about 11/9 of the fewest rows (Johnson 1973).
It is a function of the lengths; among equal ones, and in the order of the rows, chance decides.

Neither wins always. Sorted by length, padding wastes as little, and a row of equal examples attends to less; packing
makes all steps of one shape and about one number of tokens. What each fills up is said before the training begins.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetuning.instruction.prompt_format import Encoded
from working_with_text_data.token_shards import IGNORE

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """An example as the loss wants it: what is read, and what should follow each token of it."""

    inputs: Ints
    """(tokens,)."""
    targets: Ints
    """(tokens,); `IGNORE` where what follows is not the model's to say."""
    was_cut: bool = False
    """Whether the end of its answer is missing."""

    def __len__(self) -> int:
        return len(self.inputs)


def tokens_of(encoded: Encoded, max_length: int) -> Tokens | None:
    """At most `max_length` tokens of an example, its end cut off; None if nothing to say is left.

    Only the answer's end is lost, never the question's beginning: without its end an answer still follows from the
    question, while half a question has no answer. What stands after the last answer is left out, as nothing is asked
    of it.
    """
    n = max((i for i, said in enumerate(encoded.answer) if said), default=-1) + 1
    ids = np.array(encoded.ids[: min(n, max_length + 1)], dtype=np.int64)  # each token but the last is read
    said = np.array(encoded.answer[: len(ids)], dtype=bool)
    targets = np.where(said, ids, IGNORE)[1:]
    if not (targets != IGNORE).any():
        return None
    return Tokens(ids[:-1], targets, was_cut=n > len(ids))


def padded(examples: Sequence[Tokens], n_rows: int, fill: int = 0) -> tuple[Ints, Ints]:
    """A row for each example, filled up on the right to the longest, and to `n_rows` with rows that ask nothing.

    Returns:
        Inputs and targets, each (n_rows, tokens).
    """
    width = max((len(example) for example in examples), default=1)
    inputs, targets = np.full((n_rows, width), fill), np.full((n_rows, width), IGNORE)
    for row, example in enumerate(examples):
        inputs[row, : len(example)], targets[row, : len(example)] = example.inputs, example.targets
    return inputs, targets


def packed(rows: Sequence[Sequence[Tokens]], width: int, fill: int = 0) -> tuple[Ints, Ints, Ints, Ints]:
    """Several examples in each row.

    Args:
        rows: the examples of each, which together have at most `width` tokens.

    Returns:
        Inputs, targets, documents and positions, each (rows, width): what `NextToken` takes.

    Raises:
        ValueError: a row's examples are too long together.
    """
    inputs, targets = np.full((len(rows), width), fill), np.full((len(rows), width), IGNORE)
    documents, positions = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples):
            end = start + len(example)
            if end > width:
                raise ValueError(f"examples of {sum(map(len, examples))} tokens do not fit into a row of {width}")
            inputs[row, start:end], targets[row, start:end] = example.inputs, example.targets
            documents[row, start:end], positions[row, start:end] = number, np.arange(len(example))
            start = end
        documents[row, start:] = len(examples)
    return inputs, targets, documents, positions


def best_fit(lengths: npt.ArrayLike, width: int, order: npt.ArrayLike | None = None) -> list[list[int]]:
    """Which examples share each row of `width` tokens: best-fit decreasing.

    Args:
        order: a permutation that decides between examples of equal length.

    Returns:
        The numbers of the examples in each row. How many rows there are does not depend on `order`.

    Raises:
        ValueError: an example is longer than a row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    places = np.arange(len(sizes)) if order is None else np.asarray(order)
    if len(sizes) and sizes.max() > width:
        raise ValueError(f"an example of {sizes.max()} tokens does not fit into a row of {width}")
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room -> rows that have just that
    rooms: list[int] = []  # its keys, sorted
    for i in places[np.argsort(-sizes[places], kind="stable")].tolist():
        size = int(sizes[i])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, room = len(rows), width
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        rows[row].append(i)
        left = room - size
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(row)
    return rows


class PackedBatches:
    """Which examples are in which row of batch number `step`, decided by (seed, epoch) alone: see `best_fit`.

    Args:
        lengths: (examples,), in tokens.
        width: tokens in a row.

    Raises:
        ValueError: there are no examples, or one is longer than a row.
    """

    def __init__(self, lengths: npt.ArrayLike, width: int, batch_size: int, seed: int = 0) -> None:
        self.lengths, self.width, self.batch_size, self.seed = np.asarray(lengths), width, batch_size, seed
        if not len(self.lengths):
            raise ValueError("there are no examples to learn from")
        self.n_rows = len(best_fit(self.lengths, width))
        self.steps_per_epoch = -(-self.n_rows // batch_size)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def __call__(self, step: int) -> list[list[int]]:
        """The numbers of the examples in each of `batch_size` rows; an epoch's last batch can have empty rows."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._arranged(epoch))
        rows = self._epoch[1][i * self.batch_size : (i + 1) * self.batch_size]
        return rows + [[]] * (self.batch_size - len(rows))

    def _arranged(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, epoch))
        rows = best_fit(self.lengths, self.width, random.permutation(len(self.lengths)))
        return [rows[i] for i in random.permutation(len(rows))]

    @property
    def waste(self) -> float:
        """The share of all tokens that only fills up."""
        return 1 - float(self.lengths.sum()) / (self.n_rows * self.width)


def padding_waste(lengths: npt.ArrayLike, batches: Any, epoch: int = 0) -> float:
    """The share of an epoch's tokens that only fills up, where each batch is as wide as its longest example.

    Args:
        batches: an `ExampleBatches`.
    """
    sizes, held, used = np.asarray(lengths), 0, 0
    for i in range(batches.steps_per_epoch):
        numbers = batches(epoch * batches.steps_per_epoch + i)
        own = sizes[numbers[numbers >= 0]]
        held, used = held + int(own.max()) * batches.batch_size, used + int(own.sum())
    return 1 - used / held
