"""What a card does with a model, beside what was published and what was planned."""
