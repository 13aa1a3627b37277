"""What ties the log lines and spans of one request together, from the gateway to the worker.

It travels in the ``meta`` of RQ's job, which nobody has to understand: a part of another version
passes it over.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# Of another service's or a client's making: nothing that could be mistaken for more than an id.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_W3C: Final = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Trail:
    """A request's id, and its place in a trace as W3C's Trace Context writes it.

    ``traceparent`` and ``tracestate`` are empty where nobody traces.
    """

    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""

    @classmethod
    def of_request(cls, request_id: str, headers: Mapping[str, str]) -> "Trail":
        """The trail of an HTTP request: from our own span of it, or else as its client has it."""
        carrier: dict[str, str] = {}
        is_traced = trace.get_current_span().get_span_context().is_valid
        context = None if is_traced or "traceparent" not in headers else _W3C.extract(headers)
        _W3C.inject(carrier, context)
        return cls(request_id, carrier.get("traceparent", ""), carrier.get("tracestate", ""))

    @classmethod
    def of_meta(cls, meta: Mapping[str, Any]) -> "Trail":
        """The trail in a job's ``meta``; an empty one where there is none that makes sense."""
        request_id = meta.get("request_id")
        if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
            request_id = ""
        names = ("traceparent", "tracestate")
        texts = {name: text for name in names if isinstance(text := meta.get(name), str)}
        # What is malformed is dropped on the way.
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, _W3C.extract(texts, Context()))
        return cls(request_id, carrier.get("traceparent", ""), carrier.get("tracestate", ""))

    @property
    def meta(self) -> dict[str, str]:
        """What a job's ``meta`` has of it."""
        return {name: text for name, text in asdict(self).items() if text}

    @property
    def context(self) -> Context:
        """The context that spans of this trace begin in."""
        return _W3C.extract(self.meta, Context())

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits; empty where nobody traces."""
        return self.traceparent[3:35]

    @property
    def ids(self) -> dict[str, str]:
        """What a log line has of it."""
        found = {"request_id": self.request_id, "trace_id": self.trace_id}
        return {name: text for name, text in found.items() if text}


NO_TRAIL: Final = Trail()

# The trail of the request that is being handled.
CURRENT: Final[ContextVar[Trail]] = ContextVar("trail", default=NO_TRAIL)
