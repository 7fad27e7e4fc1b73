"""Weight-only storage: matrices that are kept in fewer bytes than they are multiplied in.

Decoding is bound by reading weights (`decoding.py`), so a weight of half the bytes is read in half the time. Nothing
else has to change: activations, the cache and all sums stay float32, and a weight is widened where it is multiplied,
in a register of the processor (`few_rows.cpp`).

    float32     4 bytes   as it was
    bfloat16    2 bytes   float32 rounded to the first 8 of its 24 significant bits: 2 to 3 decimal digits
    int8        1 byte    w ≈ s · q with q from -127 to 127 and a scale s for each output: s = max |w| / 127

A scale belongs to a row of the matrix, so it can wait until the row's sum is done: y = s · (q · x) + b. That is one
multiplication an output, and none a weight. Rounding moves a weight by at most s / 2: rows with one large weight suffer
most (Dettmers et al. 2022, section 3). What it does to a model is measured, not derived: see `evaluate.py`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.gpt import GPT
from utils.native import load_native

Storage = Literal["float32", "bfloat16", "int8"]
FEW_ROWS = 16  # beyond so many, products are bound by arithmetic, which a library does better

# Matrices that attention reads as tensors, and never as a layer: latent attention folds them into others.
_READ_AS_TENSORS = ("k_up", "v_up")


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric, a scale for each output.

    Args:
        weight: (out, in).

    Returns:
        q int8 (out, in), and the scale float32 (out,), with weight ≈ scale[:, None] * q to scale / 2.
    """
    weight = weight.float()
    scale = weight.abs().amax(dim=1) / 127  # (out,)
    safe = torch.where(scale > 0, scale, 1)  # a row of zeros stays one
    return (weight / safe[:, None]).round().to(torch.int8), scale


class WeightOnlyLinear(nn.Module):
    """`nn.Linear` with its matrix in a stored format. For inference: the matrix has no gradient.

    Args:
        weight: (out, in), in any floating format.
        bias: (out,) or None.
        storage: the format to keep it in.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, storage: Storage) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scale = None
        if storage == "int8":
            stored, scale = quantize_int8(weight)
        else:
            stored = weight.to(getattr(torch, storage)).contiguous()
        self.stored = nn.Parameter(stored, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.scale: Tensor | None
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """The matrix as it is multiplied: float32 (out, in), made anew at each call."""
        return self.rows(slice(None))

    def rows(self, which: Tensor | slice) -> Tensor:
        """Some of its rows, widened: (…, in)."""
        rows = self.stored[which].float()
        return rows if self.scale is None else rows * self.scale[which].unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (…, in) to (…, out)."""
        few = x.numel() <= FEW_ROWS * self.in_features
        if few and x.device.type == "cpu" and not torch.is_grad_enabled():
            # A compiled step needs an operator that torch knows; called through torch it takes 10 µs more.
            product = torch.ops.scratchbook.few_rows if torch.compiler.is_compiling() else _few_rows
            y: Tensor = product(x, self.stored, self.scale, self.bias)
            return y
        return _widen_and_multiply(x, self.stored, self.scale, self.bias)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, stored={self.stored.dtype}"


class WeightOnlyEmbedding(nn.Module):
    """A table of stored rows, some of which are widened. Its matrix may be the output's, as `nn.Linear` keeps it."""

    def __init__(self, head: WeightOnlyLinear) -> None:
        super().__init__()
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (…) to (…, width)."""
        return self.head.rows(ids)


def store_weights(model: GPT, storage: Storage) -> GPT:
    """A model that computes with the matrices of `model` in a stored format, in float32.

    What has the right format already is shared with `model`, the rest is made anew, and `model` may be thrown away. The
    result decodes; it is not trained or saved.

    Raises:
        ValueError: no such format, or the matrices have been stored already.
    """
    if storage not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"weights are stored as float32, bfloat16 or int8, not {storage!r}")
    if isinstance(model.lm_head, WeightOnlyLinear):
        raise ValueError(f"the weights are stored already, as {model.lm_head.stored.dtype}: take the model as it was")
    with torch.device("meta"):  # no memory for what is replaced at once
        light = type(model)(model.config)
    light.load_state_dict({name: w.float() for name, w in model.state_dict().items() if w.ndim < 2}, False, assign=True)
    if model.transformer.wpe is not None:
        light.transformer.wpe = nn.Embedding.from_pretrained(model.transformer.wpe.weight.detach().float())
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            bias = None if layer.bias is None else layer.bias.detach()
            if own in _READ_AS_TENSORS:
                kept: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
                kept.load_state_dict({n: w.float() for n, w in layer.state_dict().items()}, assign=True)
            else:
                kept = WeightOnlyLinear(layer.weight.detach(), bias, storage)
            setattr(light.get_submodule(parent), own, kept)
    for name, table in model.transformer.value_embeddings.items():
        light.transformer.value_embeddings[name] = _stored_table(table, storage)
    own_table = model.transformer.wte
    tied = model.config.tie_embeddings
    wte = WeightOnlyEmbedding(cast(Any, light.lm_head)) if tied else _stored_table(own_table, storage)
    light.transformer.wte = cast(Any, wte)
    return light.train(model.training).requires_grad_(False)


def _stored_table(table: nn.Module, storage: Storage) -> WeightOnlyEmbedding:
    """An embedding with its rows in a stored format."""
    return WeightOnlyEmbedding(WeightOnlyLinear(cast(nn.Embedding, table).weight.detach(), None, storage))


def few_rows_are_fast() -> bool:
    """Whether there is a kernel for stored weights on the CPU. Without one they are slower than float32, not faster."""
    return _kernel(torch.float32) is not None


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and scales: what a decoding step reads of a model, but for most of the embeddings."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in tensors.values())


# The operator. It is one to torch, so that a compiled step keeps it whole, with a shape that is known beforehand.
_LIBRARY = torch.library.Library("scratchbook", "DEF")
_LIBRARY.define("few_rows(Tensor x, Tensor stored, Tensor? scale, Tensor? bias) -> Tensor")


def _few_rows(x: Tensor, stored: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """float32 x (…, in) times the stored matrix (out, in), scaled, and the bias added: (…, out)."""
    kernel = _kernel(stored.dtype)
    if kernel is None:  # no compiler
        return _widen_and_multiply(x, stored, scale, bias)
    x = x.float().contiguous()
    n_out, n_in = stored.shape
    y = x.new_empty(*x.shape[:-1], n_out)
    pointers = (stored.data_ptr(), _pointer(scale), _pointer(bias), x.data_ptr(), y.data_ptr())
    kernel(*pointers, x.numel() // n_in, n_out, n_in, torch.get_num_threads())
    return y


def _widen_and_multiply(x: Tensor, stored: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """The same with the whole matrix widened at once: for many rows, and where there is no kernel."""
    if scale is None:
        return F.linear(x, stored.to(x.dtype), bias)
    y = F.linear(x, stored.to(x.dtype)) * scale
    return y if bias is None else y + bias


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


_KERNELS: dict[torch.dtype, Any] = {}


def _kernel(dtype: torch.dtype) -> Any:
    """The function of `few_rows.cpp` for a stored format; None where there is no compiler."""
    if dtype not in _KERNELS:
        library = load_native(Path(__file__).with_name("few_rows.cpp"))
        kernel = getattr(library, f"few_rows_{str(dtype).removeprefix('torch.')}", None)
        if kernel is not None:
            kernel.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 3 + [ctypes.c_int]
            kernel.restype = None
        _KERNELS[dtype] = kernel
    return _KERNELS[dtype]


_LIBRARY.impl("few_rows", _few_rows, "CPU")
_LIBRARY.impl("few_rows", lambda x, stored, scale, bias: x.new_empty(*x.shape[:-1], stored.shape[0]), "Meta")
