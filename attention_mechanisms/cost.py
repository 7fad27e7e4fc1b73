"""What attention costs: the numbers that decide between its variants, each as a formula beside its module.

Writing a token with T keys behind it takes three things that one can run out of: parameters (memory that all texts
share), FLOPs (time, when many tokens are computed together) and the cache (memory of each text; and time, because
every step reads all of it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class AttentionCost:
    """One attention layer, one text."""

    parameters: int
    """Weights and biases."""
    flops_per_token: int
    """Additions and multiplications in the matrix products of one new token."""
    cache_numbers: int
    """Numbers in the cache, for the whole text."""

    def cache_bytes(self, bytes_per_number: int = 2) -> int:
        """Bytes of the cache; 2 a number in half precision, 4 in float32."""
        return self.cache_numbers * bytes_per_number


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products of `run`, as torch counts them: the witness for `flops_per_token`.

    torch's counter does not see into fused kernels on a CPU, so attention runs as plain products meanwhile. These count
    the whole square of scores, also what a mask then forbids.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
