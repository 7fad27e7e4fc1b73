"""How good is a model? The surprise at text that it has not seen.

The loss is the mean surprise at each next token, -ln p, in nats. It depends on the vocabulary: longer tokens are
harder to guess, and fewer. *Bits per byte* does not: all surprise, in bits, over the bytes that the tokens stand for.
A model that has learned nothing needs log2(vocab_size) bits a token; the text stored plainly needs 8 bits a byte.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.devices import Precision, autocast

if TYPE_CHECKING:
    from gpt_model.gpt import GPT
    from working_with_text_data.bytepair_enc import BytePairTokenizer


def next_token_loss(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of `targets` under the model's predictions, in nats. Both int64 (batch, tokens)."""
    logits = model(inputs)  # (batch, tokens, vocab_size)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def bytes_of_tokens(tokenizer: BytePairTokenizer) -> Tensor:
    """int64 (n_vocab,): bytes of text that each token stands for; 0 for special tokens, which are not in the text."""
    lengths = torch.zeros(tokenizer.n_vocab, dtype=torch.long)
    for token, i in tokenizer.ids.items():
        lengths[i] = len(token)
    return lengths


@torch.inference_mode()
def evaluate_windows(
    model: GPT, windows: Tensor, token_bytes: Tensor, batch_size: int = 16, precision: Precision = "auto"
) -> tuple[float, float]:
    """(loss in nats per token, bits per byte) over fixed windows of text.

    Args:
        windows: int64 (windows, tokens + 1); the last id of each is only a target.
        token_bytes: what `bytes_of_tokens` gives.
    """
    was_training = model.training
    model.eval()
    nats = 0.0
    for ids in windows.split(batch_size):
        ids = ids.to(model.device)  # (batch, tokens + 1)
        with autocast(model.device, precision):
            nats += next_token_loss(model, ids[:, :-1], ids[:, 1:], reduction="sum").item()
    model.train(was_training)
    targets = windows[:, 1:]
    n_bytes = int(token_bytes[targets].sum())
    return nats / targets.numel(), nats / math.log(2) / max(n_bytes, 1)
