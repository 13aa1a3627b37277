"""Webhooks: a signed POST to where the request said, once its job has ended.

The transaction that ends a job puts it into the outbox, a sorted set in Redis by the time of the
next try. A courier in every gateway claims what is due, sends it, and puts off what failed.
"""
