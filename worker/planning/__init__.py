"""What a model takes of a card's memory, found without a card and without the weights."""
