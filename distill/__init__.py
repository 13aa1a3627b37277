"""Training, export and evaluation of the emoji-scene SDXL checkpoint in ``models/demo``."""
