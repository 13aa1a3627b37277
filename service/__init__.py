"""The gateway: the HTTP API in front of the queue. Never imports torch."""
