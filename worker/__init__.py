"""The GPU worker: takes jobs from the queue and draws them on one resident pipeline."""
