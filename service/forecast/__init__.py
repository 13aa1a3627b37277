"""When jobs will be done: the queue and the workers run ahead, from what the workers measured."""
