"""One step of a group: the U-Net call, guidance, each sample's scheduler, and what goes wrong."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from worker.batching import Size
from worker.engine.denoise import Batch
from worker.engine.memory import is_fatal, is_out_of_memory
from worker.engine.pipeline import ResidentPipeline
from worker.engine.sample import NonFiniteError, Sample
from worker.engine.tick import TickRecorder

_NOT_FINITE: Final = "the latents came to hold NaN or infinity"


@dataclass(slots=True)
class StepOutcome:
    """What became of the samples of a step.

    Args:
        advanced: They did their step.
        failed: They cannot be drawn, for the reason given.
        starved: There was no memory for them; their state is what it was before.
        tried: Rows of the call that ran out of memory; 0: none did.
    """

    advanced: list[Sample] = field(default_factory=list)
    failed: list[tuple[Sample, Exception]] = field(default_factory=list)
    starved: list[Sample] = field(default_factory=list)
    tried: int = 0


class Denoiser:
    """Takes steps. A failure stays with the sample it comes from.

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: ResidentPipeline) -> None:
        self._pipeline = pipeline
        # The last batch of each size: its inputs are the same until somebody joins or leaves.
        self._batches: dict[Size, Batch] = {}

    def step(
        self, size: Size, samples: Sequence[Sample], most_rows: int, tick: TickRecorder
    ) -> StepOutcome:
        """Advance samples of one size by one U-Net evaluation.

        Args:
            size: Their size.
            samples: At least one.
            most_rows: Most rows of one U-Net call; only a single sample may have more.
            tick: Where the step is recorded.

        Raises:
            torch.AcceleratorError: The device is lost.
        """
        outcome = StepOutcome()
        with tick.phase("unet"):
            batch, noise_pred = self._predict(size, list(samples), most_rows, outcome)
            self._pipeline.synchronize()
        if batch is not None and noise_pred is not None:
            tick.rows, tick.samples, tick.size = batch.rows, len(batch.samples), size
            with tick.phase("scheduler"):
                self._advance(batch, noise_pred, most_rows, outcome)
        return outcome

    def _predict(
        self, size: Size, samples: list[Sample], most_rows: int, outcome: StepOutcome
    ) -> tuple[Batch | None, torch.Tensor | None]:
        """The batch of those who could be fed to the U-Net, and what it says, if it does."""
        batch = None
        try:
            batch, model_inputs = self._inputs(size, samples, outcome)
            if batch is None:
                return None, None
            noise_pred = batch.noise_pred(self._pipeline, model_inputs, most_rows)
            return batch, batch.guide(noise_pred)
        except Exception as error:
            if is_fatal(error):
                raise
            ran_out = is_out_of_memory(error)
            failure = error.with_traceback(None)
        failed = {sample for sample, _ in outcome.failed}
        remaining = batch.samples if batch else [s for s in samples if s not in failed]
        if ran_out:
            outcome.starved += remaining
            rows = sum(sample.request.rows for sample in remaining)
            outcome.tried = min(rows, most_rows)
        elif len(remaining) == 1:
            outcome.failed.append((remaining[0], failure))
        else:
            self._one_by_one(size, remaining, most_rows, outcome)
        return None, None

    def _inputs(
        self, size: Size, samples: list[Sample], outcome: StepOutcome
    ) -> tuple[Batch | None, list[torch.Tensor]]:
        fed, inputs = [], {}
        for sample in samples:
            try:
                inputs[sample] = sample.model_input()
                fed.append(sample)
            except Exception as error:
                if is_fatal(error) or is_out_of_memory(error):
                    raise
                outcome.failed.append((sample, error.with_traceback(None)))
        if not fed:
            return None, []
        batch = self._batches.get(size)
        if batch is None or not batch.consists_of(fed):
            batch = self._batches[size] = Batch(fed)
        return batch, [inputs[sample] for sample in batch.samples]

    def _one_by_one(
        self, size: Size, samples: list[Sample], most_rows: int, outcome: StepOutcome
    ) -> None:
        """One of them spoils the call: alone, it fails alone."""
        for sample in samples:
            batch, noise_pred = self._predict(size, [sample], most_rows, outcome)
            if batch is not None and noise_pred is not None:
                self._advance(batch, noise_pred, most_rows, outcome)

    def _advance(
        self, batch: Batch, noise_pred: torch.Tensor, most_rows: int, outcome: StepOutcome
    ) -> None:
        advanced = []
        for i, sample in enumerate(batch.samples):
            try:
                sample.advance(noise_pred[i : i + 1])
                advanced.append(sample)
            except Exception as error:
                if is_fatal(error):
                    raise
                if is_out_of_memory(error):
                    outcome.starved.append(sample)
                    outcome.tried = min(batch.rows, most_rows)
                else:
                    outcome.failed.append((sample, error.with_traceback(None)))
        for sample, is_finite in zip(advanced, _are_finite(advanced), strict=True):
            if is_finite:
                outcome.advanced.append(sample)
            else:
                outcome.failed.append((sample, NonFiniteError(_NOT_FINITE)))

    def keep(self, sizes: Collection[Size]) -> None:
        """Let go of what was kept for the next step of any other size."""
        for size in self._batches.keys() - set(sizes):
            del self._batches[size]


def _are_finite(samples: list[Sample]) -> list[bool]:
    """Which samples' latents hold neither NaN nor infinity; one look at the device for all."""
    if not samples:
        return []
    try:
        latents = torch.cat([sample.latents for sample in samples])
        flags: list[bool] = torch.isfinite(latents).flatten(1).all(1).tolist()
        return flags
    except Exception as error:
        if is_fatal(error) or not is_out_of_memory(error):
            raise
    return [bool(torch.isfinite(sample.latents).all()) for sample in samples]
