"""``koala generate``: prompts become files, watched on their way."""
