"""OpenTelemetry: one trace from the request to the stored image, through gateway and worker."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from koala import tracing
from koala.catalogue import DEMO_FOLDER
from koala.trail import Trail
from tests.service.fakes import Served, serving, wait_until
from tests.worker.rig import Rig
from worker.engine import Engine, ResidentPipeline

GENERATIONS = "/v1/images/generations"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["queue", "admission", "denoise", "decode", "store"]


@pytest.fixture(scope="module")
def pipeline() -> ResidentPipeline:
    return ResidentPipeline.load(DEMO_FOLDER, device="cpu")


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def traced(rig: Rig, provider: TracerProvider) -> Iterator[Served]:
    with serving(rig.settings, tracer_provider=provider) as served:
        yield served


def submit(served: Served, headers: dict[str, str] | None = None, **fields: object) -> str:
    body = {"prompt": "a koala", "num_inference_steps": 4, "seed": 1} | fields
    headers = {"Prefer": "respond-async"} | (headers or {})
    job_id: str = served.http.post(GENERATIONS, json=body, headers=headers).json()["id"]
    return job_id


def finished(exporter: InMemorySpanExporter, awaited: str) -> list[str]:
    """The names of all spans that ended, once that of a request is among them."""

    def names() -> list[str]:
        return [span.name for span in exporter.get_finished_spans()]

    # It ends when the answer is out, so its client may be quicker.
    wait_until(lambda: awaited in names())
    return names()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    finished(exporter, f"POST {GENERATIONS}")
    spans = exporter.get_finished_spans()
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def test_one_trace_spans_the_request_and_all_stages_of_its_job(
    rig: Rig,
    traced: Served,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    pipeline: ResidentPipeline,
) -> None:
    job_id = submit(traced, {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "r1"}, n=2)
    rig.work(engine=Engine(pipeline, max_rows=8), tracer_provider=provider)

    spans = by_name(exporter)
    request, job = spans.pop(f"POST {GENERATIONS}"), spans.pop("job")
    assert list(spans) == STAGES
    traces = {span.context.trace_id for span in exporter.get_finished_spans()}
    assert traces == {int(TRACE, 16)}
    assert request.parent.span_id == int(PARENT, 16)
    assert request.kind is SpanKind.SERVER
    assert request.attributes["http.response.status_code"] == 202
    assert job.parent.span_id == request.context.span_id
    assert job.kind is SpanKind.CONSUMER
    assert job.attributes["koala.job_id"] == job_id
    assert job.attributes["koala.request_id"] == "r1"
    assert job.attributes["koala.status"] == "finished"
    assert spans["denoise"].attributes["koala.steps_done"] == 8
    # The stages follow each other without a gap, and fill the job.
    ends = [job.start_time]
    for stage in STAGES:
        assert spans[stage].parent.span_id == job.context.span_id
        assert abs(spans[stage].start_time - ends[-1]) < 1_000_000
        assert spans[stage].end_time >= spans[stage].start_time
        ends.append(spans[stage].end_time)
    assert abs(job.end_time - ends[-1]) < 1_000_000


def test_a_job_that_fails_ends_its_trace_as_an_error(
    rig: Rig, traced: Served, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    submit(traced, prompt="broken")
    rig.work(tracer_provider=provider)

    spans = by_name(exporter)
    assert spans["job"].status.status_code is StatusCode.ERROR
    assert spans["job"].attributes["error.type"] == "generation_failed"
    assert spans["denoise"].attributes["koala.steps_done"] == 1
    assert "decode" not in spans
    assert spans["job"].context.trace_id == spans[f"POST {GENERATIONS}"].context.trace_id


def test_what_machines_ask_every_few_seconds_is_not_traced(
    traced: Served, exporter: InMemorySpanExporter
) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        traced.http.get(path)
    traced.http.get("/v1/models")
    assert finished(exporter, "GET /v1/models") == ["GET /v1/models"]


def test_a_worker_that_does_not_trace_leaves_the_gateways_trace_alone(
    rig: Rig, traced: Served, exporter: InMemorySpanExporter
) -> None:
    job_id = submit(traced)
    rig.work()
    assert rig.record(job_id).state == "completed"
    assert list(by_name(exporter)) == [f"POST {GENERATIONS}"]


def test_what_others_write_into_a_jobs_meta_does_no_harm(rig: Rig) -> None:
    strange = {"request_id": "a\nb", "traceparent": 5, "tracestate": ["x"], "more": {}}
    assert Trail.of_meta(strange) == Trail()
    job_id = rig.submit()
    rig.redis.hset(rig.keys.job(job_id), "meta", b"\xff no JSON")
    rig.work()
    assert rig.record(job_id).state == "completed"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A collector's address, and what it is sent."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_reach_the_collector_that_the_environment_names(
    collector: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    provider = tracing.tracer_provider("koala-test", {"OTEL_EXPORTER_OTLP_ENDPOINT": address})
    assert isinstance(provider, TracerProvider)
    provider.get_tracer("test").start_span("a span").end()
    provider.shutdown()

    [message] = received
    [resource] = ExportTraceServiceRequest.FromString(message).resource_spans
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "koala-test"
    assert [span.name for span in resource.scope_spans[0].spans] == ["a span"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_without_a_collector_nothing_is_traced_or_said(environ: dict[str, str]) -> None:
    with capture_logs() as lines:
        assert tracing.tracer_provider("koala-test", environ) is None
    assert lines == []


def test_a_protocol_that_is_not_spoken_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    with capture_logs() as lines:
        assert tracing.tracer_provider("koala-test", environ) is None
    assert [(line["set"], line["works"]) for line in lines] == [("grpc", "http/protobuf")]


def test_a_collector_without_the_extra_is_a_warning_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, OTLPSpanExporter.__module__, None)
    with capture_logs() as lines:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
        assert tracing.tracer_provider("koala-test", environ) is None
    assert "koala-serve[otel]" in lines[0]["event"]
