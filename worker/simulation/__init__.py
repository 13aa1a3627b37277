"""The engine's policy on a virtual clock, driven by a step-time curve instead of a model.

It plans throughput and latency for a device one does not have. Nothing here imports torch.
"""
