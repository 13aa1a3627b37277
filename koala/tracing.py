"""Where spans go: nowhere, unless OpenTelemetry's own variables name a collector."""

from collections.abc import Mapping
from typing import Final

import structlog
from opentelemetry.trace import TracerProvider

from koala import __version__

log = structlog.get_logger()

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"


def tracer_provider(service: str, environ: Mapping[str, str]) -> TracerProvider | None:
    """What makes spans for this process and sends them off by OTLP; ``None``: nobody wants any.

    Headers, sampler, resource attributes and the like are read by the SDK itself, from its usual
    variables. Spans that are left are sent when the process ends.

    Args:
        service: The service's name, unless ``OTEL_SERVICE_NAME`` has another.
        environ: The environment.
    """
    endpoint = next((name for name in _ENDPOINTS if environ.get(name)), None)
    if endpoint is None or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        log.warning("no traces: only one OTLP protocol works here", works=_PROTOCOL, set=protocol)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning(
            "no traces: run `pip install 'koala-serve[otel]'`", set=endpoint, missing=error.name
        )
        return None
    named = environ.get("OTEL_SERVICE_NAME") or service
    resource = Resource.create({"service.name": named, "service.version": __version__})
    provider = SdkTracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("traces are sent", service=named, set=endpoint)
    return provider
