"""What both sides of the queue agree on: settings, job spec and states, queue, events, images."""

__version__ = "0.1.0"
