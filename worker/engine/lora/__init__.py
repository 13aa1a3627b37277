"""LoRAs (https://arxiv.org/abs/2106.09685) that differ from row to row of one call."""

from worker.engine.lora.adapter import Adapter
from worker.engine.lora.names import Part
from worker.engine.lora.rows import AppliedLora, RowLoras
from worker.engine.lora.shelf import LoraOrder, Shelf

__all__ = ["Adapter", "AppliedLora", "LoraOrder", "Part", "RowLoras", "Shelf"]
