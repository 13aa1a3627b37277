"""Samples in denoising, grouped by latent shape: only equal shapes fit one U-Net call."""

from collections.abc import Iterator
from typing import TypeAlias

from worker.engine.denoise import Batch
from worker.engine.request import SampleKey
from worker.engine.sample import Sample

LatentShape: TypeAlias = tuple[int, int, int]


class ShapeGroup:
    """Samples of one latent shape, which advance together."""

    def __init__(self, shape: LatentShape) -> None:
        self.shape = shape
        self._samples: dict[SampleKey, Sample] = {}
        self._batch: Batch | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(tuple(self._samples.values()))

    def add(self, sample: Sample) -> None:
        """Let ``sample`` advance with the others from now on."""
        self._samples[sample.key] = sample
        self._batch = None

    def remove(self, key: SampleKey) -> None:
        """Take a sample out.

        Raises:
            KeyError: It is not in this group.
        """
        del self._samples[key]
        self._batch = None

    def batch(self) -> Batch:
        """All samples of the group as one batch; kept until somebody joins or leaves."""
        if self._batch is None:
            self._batch = Batch(list(self._samples.values()))
        return self._batch


class ShapeGroups:
    """The groups, and whose turn it is: the one whose last turn lies furthest back.

    With g groups each gets every g-th turn, so none starves; a group that has just formed waits
    for one round at most.
    """

    def __init__(self) -> None:
        # In the order of their turns: the next one first.
        self._groups: dict[LatentShape, ShapeGroup] = {}

    @property
    def rows(self) -> int:
        """Rows that the samples take in all."""
        return sum(sample.request.rows for group in self._groups.values() for sample in group)

    def add(self, sample: Sample) -> None:
        """Put ``sample`` into the group of its shape."""
        group = self._groups.get(sample.shape)
        if group is None:
            group = self._groups[sample.shape] = ShapeGroup(sample.shape)
        group.add(sample)

    def remove(self, sample: Sample) -> None:
        """Take ``sample`` out of its group.

        Raises:
            KeyError: It is in no group.
        """
        group = self._groups[sample.shape]
        group.remove(sample.key)
        if not group:
            del self._groups[sample.shape]

    def choose(self) -> ShapeGroup | None:
        """The group to advance now, which thereby had its turn; ``None`` without samples."""
        if not self._groups:
            return None
        shape = next(iter(self._groups))
        group = self._groups.pop(shape)
        self._groups[shape] = group
        return group
