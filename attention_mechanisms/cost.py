"""What attention costs: the numbers that decide between its variants, each as a formula beside its module.

Writing a token with T keys behind it takes three things that one can run out of: parameters (memory that all texts
share), FLOPs (time, when many tokens are computed together) and the cache (memory of each text; and time, because
every step reads all of it).

torch's `FlopCounterMode` confirms the FLOPs, but does not see into the CPU's fused kernels: count `reference`, or
`forward` within `sdpa_kernel(SDPBackend.MATH)`.
"""

from __future__ import annotations

from dataclasses import dataclass


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
