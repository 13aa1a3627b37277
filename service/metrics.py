"""What Prometheus can scrape from the gateway; a registry of its own per application."""

from typing import Final, get_args

from prometheus_client import Counter, Gauge, Histogram

from koala.cancelling import Cancelled
from koala.metered_store import StoreMetrics
from koala.registry import new_registry
from koala.unreadable import Kind

_REQUEST_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300,
)  # fmt: skip

_RATIO_BUCKETS: Final = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1, 2, 5)


class Metrics:
    """The gateway's metrics."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.store = StoreMetrics(self.registry)
        self.requests = Counter(
            "koala_http_requests",
            "HTTP requests by route template and status; 499: the client hung up.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "koala_http_request_seconds",
            "Time from a request's arrival to the end of its response.",
            ["method", "route"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.connections = Gauge(
            "koala_http_connections",
            "Connections of clients that are open right now.",
            registry=self.registry,
        )
        self.connections_closed = Counter(
            "koala_http_connections_closed",
            "Connections closed on clients by the reason: new, headers, body and unread are time "
            "limits; limit: one that was silent made room for another; refused: a request that "
            "would have been one too many.",
            ["reason"],
            registry=self.registry,
        )
        self.jobs_submitted = Counter(
            "koala_jobs_submitted",
            "Generation requests by what the queue said: admitted, known or full.",
            ["outcome"],
            registry=self.registry,
        )
        self.images_served = Counter(
            "koala_images_served",
            "Images handed to clients, as files or as base64 in JSON.",
            ["response_format"],
            registry=self.registry,
        )
        self.waiting_clients = Gauge(
            "koala_waiting_clients",
            "Clients that wait for a job's end right now.",
            registry=self.registry,
        )
        self.webhooks = Counter(
            "koala_webhooks",
            "Attempts to deliver webhooks by what came of them.",
            ["outcome"],
            registry=self.registry,
        )
        self.webhook_seconds = Histogram(
            "koala_webhook_seconds",
            "Time of one attempt to deliver a webhook.",
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.webhooks_waiting = Gauge(
            "koala_webhooks_waiting",
            "Webhooks of ended jobs that are still to be delivered.",
            registry=self.registry,
        )
        self.redis_up = Gauge(
            "koala_redis_up", "Whether Redis answered this scrape.", registry=self.registry
        )
        self.queue_depth = Gauge(
            "koala_queue_depth", "Jobs that wait for a worker.", registry=self.registry
        )
        self.queue_oldest_seconds = Gauge(
            "koala_queue_oldest_seconds",
            "Age of the job that has waited longest; 0 where none waits.",
            registry=self.registry,
        )
        self.workers_alive = Gauge(
            "koala_workers_alive", "Live workers of this queue.", registry=self.registry
        )
        self.workers_ready = Gauge(
            "koala_workers_ready",
            "Live workers that serve this gateway's model.",
            registry=self.registry,
        )
        self.eta_error_ratio = Histogram(
            "koala_eta_error_ratio",
            "How far the ETA of completed jobs was from the truth when they were submitted, as a "
            "part of the time they took, by whether they came sooner or later than foretold. Jobs "
            "of less than a second do not count.",
            ["came"],
            buckets=_RATIO_BUCKETS,
            registry=self.registry,
        )
        self.jobs_abandoned = Counter(
            "koala_jobs_abandoned",
            "Jobs whose client hung up or was told of an error, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        for reason in ("new", "headers", "body", "unread", "limit", "refused"):
            self.connections_closed.labels(reason)
        self.unreadable_records = Counter(
            "koala_unreadable_records",
            "Stored records that could not be read and were passed over, each counted once.",
            ["kind"],
            registry=self.registry,
        )
        for kind in get_args(Kind):
            self.unreadable_records.labels(kind)
        for came in ("sooner", "later"):
            self.eta_error_ratio.labels(came)
        for outcome in ("admitted", "known", "full"):
            self.jobs_submitted.labels(outcome)
        for cancelled in (Cancelled.CANCELLED, Cancelled.ASKED, Cancelled.KEPT, Cancelled.OVER):
            self.jobs_abandoned.labels(cancelled.value)
        for outcome in ("delivered", "retried", "given_up", "gone", "refused", "expired"):
            self.webhooks.labels(outcome)
        for response_format in ("url", "b64_json"):
            self.images_served.labels(response_format)
