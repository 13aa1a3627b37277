"""Counts the bytes of tensors that are alive while a model runs, and their peak."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from worker.planning.attention import Attention

# torch's CUDA allocator hands out blocks of a multiple of so many bytes.
BLOCK_BYTES: Final = 512


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every storage that an operator makes counts until nobody holds it any more.

    It works on real tensors and on those of the meta device, which have shapes and no memory. Views
    share a storage and count once. What a kernel takes and gives back within one call is not seen.

    Args:
        known: Tensors that exist already, such as weights; only what comes beyond them counts.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = self._most = self.largest = 0
        self._storages: dict[int, Any] = {}
        for tensor in known:
            self._watch(tensor)
        self._before = self._live
        # Bytes of the largest storage made inside.
        self.largest = 0

    @property
    def peak(self) -> int:
        """Most bytes that were alive at once, beyond those of the known tensors."""
        return max(0, self._most - self._before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then count what it made."""
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            self._watch(tensor)
        return output

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        # torch gives the same object for as long as the storage is alive.
        key = id(storage)
        if key in self._storages:
            return
        size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self._live += size
        self._most = max(self._most, self._live)
        self.largest = max(self.largest, size)

        def forget(_: object) -> None:
            self._live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)


class FixedAttention(TorchFunctionMode):
    """Inside, scaled dot product attention takes the memory of one kernel, whichever device it is.

    The meta device has no kernels, so which one a card would choose has to be said.

    Args:
        attention: The kernel.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._attention = attention

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the attention, leave everything else."""
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return _attend(self._attention, *args, **kwargs)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Those that an operator returned: one, a sequence of them, or none."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _attend(
    attention: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """What a kernel allocates for query (n, heads, q, d), key (n, heads, k, d) and value."""
    output = query.new_empty(*query.shape[:-1], value.shape[-1])
    if attention is Attention.FUSED:
        # Beside the output, the logarithm of each row's sum, in fp32.
        query.new_empty(query.shape[:-1], dtype=torch.float32)
        return output
    # The scores and their softmax, both of them in full, and the scaled query and key.
    scaled = query.new_empty(query.shape), key.new_empty(key.shape)
    scores = query.new_empty(*query.shape[:-1], key.shape[-2])
    weights = torch.softmax(scores, dim=-1)
    del scaled, scores, weights
    return output
