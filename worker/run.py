"""Starts one worker: Redis, the pipeline, the engine, the loop; in this order."""

import os
import secrets
import socket
import sys

import redis
import structlog
from opentelemetry.trace import TracerProvider
from PIL.Image import Image
from redis.backoff import NoBackoff
from redis.retry import Retry

from koala import __version__
from koala.catalogue import ModelCard, resolve
from koala.clock import RedisClock
from koala.connections import connect
from koala.errors import ModelNotFound
from koala.metered_store import MeteredStore
from koala.printable import printable
from koala.settings import Settings
from koala.store import ImageStore
from worker.admission import ServedModel
from worker.endpoint import Endpoint
from worker.engine import START_PATIENCE, Capacity, Engine, ResidentPipeline
from worker.flight import Flight
from worker.gallery import Gallery
from worker.idle import IdleUnload
from worker.images import ImageMetadata
from worker.inflight import InflightWorker
from worker.measurements import measured_sizes
from worker.metrics import WorkerMetrics
from worker.model import CannotLoad, load
from worker.residency import predict
from worker.safety import SafetyChecker, SafetyCheckerError
from worker.store_watch import StoreWatch
from worker.vram import vram_of

log = structlog.get_logger()


class CannotStart(Exception):
    """The worker cannot start; the message says why, in one line."""


def run(settings: Settings, tracer_provider: TracerProvider | None = None) -> int:
    """Work until a signal asks to stop; the process's exit code.

    An unreachable Redis or a model that cannot be loaded is one line on stderr and exit code 1; a
    worker that broke down ends with exit code 1 too, what was wrong being in the log.
    """
    try:
        card = _find(settings)
        metrics = WorkerMetrics()
        # Before the model is loaded and measured: a port that is taken needs no model to be told.
        endpoint = Endpoint(metrics.registry)
        metrics_url = _serve(endpoint, settings)
        store = _open_store(settings, metrics)
        # The log should tell of a store that cannot be used before the model is loaded.
        store_watch = StoreWatch(store)
        store_watch.begin()
        safety = _safety(settings)
        connection = _reach_redis(settings)
        pipeline = load(settings, card)
        engine = Engine(pipeline, capacity=_measure(settings, card, pipeline))
        worker = _build(
            settings,
            card,
            connection,
            pipeline,
            engine,
            store,
            store_watch,
            safety,
            metrics,
            metrics_url,
            tracer_provider,
        )
        endpoint.watch(lambda: worker.trouble)
        log.info(
            "ready",
            worker=worker.name,
            model=card.id,
            device=str(pipeline.device),
            metrics=metrics_url,
        )
        worker.work()
        return 0 if worker.is_stopping else 1
    except (CannotStart, CannotLoad) as error:
        print(f"koala: {printable(str(error))}", file=sys.stderr)
        return 1
    except redis.RedisError as error:
        # The loop outlives outages, so this one came while the model was being loaded.
        print(f"koala: Redis went away: {printable(str(error))}", file=sys.stderr)
        return 1


def _find(settings: Settings) -> ModelCard:
    try:
        return resolve(settings.model, settings.model_revision)
    except ModelNotFound as error:
        raise CannotStart(error.message) from None


def _open_store(settings: Settings, metrics: WorkerMetrics) -> ImageStore:
    try:
        return MeteredStore(settings.resolved_image_store, metrics.store)
    except (ValueError, ImportError) as error:
        raise CannotStart(f"KOALA_IMAGE_STORE: {error}.") from None


def _safety(settings: Settings) -> SafetyChecker | None:
    if settings.safety_checker is None:
        return None
    try:
        return SafetyChecker.load(settings.safety_checker)
    except SafetyCheckerError as error:
        raise CannotStart(f"KOALA_SAFETY_CHECKER: {error}.") from None


def _reach_redis(settings: Settings) -> redis.Redis:
    try:
        connection = connect(settings)
    except ValueError as error:
        raise CannotStart(f"KOALA_REDIS_URL: {error}.") from None
    # A connection that went stale deserves a second try. Whoever waits longer than that holds up
    # the engine, so from there on the loop itself says when to try again.
    connection.set_retry(Retry(NoBackoff(), 1))
    try:
        connection.ping()
    except redis.RedisError as error:
        raise CannotStart(f"No Redis for the worker: {error}") from None
    return connection


def _measure(settings: Settings, card: ModelCard, pipeline: ResidentPipeline) -> Capacity:
    target = settings.target_step_ms
    capacity = Capacity.measuring(
        pipeline,
        most=settings.max_batch_rows,
        target_seconds=None if target is None else target / 1000,
        budget=settings.vram_budget,
        prediction=predict(card, pipeline),
    )
    side = card.native_side
    refusal = capacity.learn((side, side), START_PATIENCE)
    capacity.refresh()
    refusal = refusal or capacity.refuse((side, side))
    if refusal is not None:
        raise CannotStart(f"{refusal}, with {card.id} loaded.")
    for measured in measured_sizes(capacity):
        steps = {rows: round(1000 * s, 2) for rows, s in measured.step_seconds.items()}
        log.info("measured", size=measured.name, max_rows=measured.max_rows, step_ms=steps)
    return capacity


def _serve(endpoint: Endpoint, settings: Settings) -> str:
    try:
        return endpoint.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        raise CannotStart(
            f"Cannot serve metrics on {settings.metrics_host}:{settings.metrics_port}: "
            f"{error.strerror}. Set "
            "KOALA_METRICS_PORT to another port."
        ) from None


def _build(
    settings: Settings,
    card: ModelCard,
    connection: redis.Redis,
    pipeline: ResidentPipeline,
    engine: Engine,
    store: ImageStore,
    store_watch: StoreWatch,
    safety: SafetyChecker | None,
    metrics: WorkerMetrics,
    metrics_url: str,
    tracer_provider: TracerProvider | None,
) -> InflightWorker:
    metrics.watch_engine(engine, lambda: pipeline.parameter_bytes)
    metrics.watch_device(pipeline.device)
    clock = RedisClock()
    clock.ask(connection)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    dtype = str(pipeline.dtype).removeprefix("torch.")
    metrics.introduce(name, card.id, str(pipeline.device), dtype)

    def describe(flight: Flight, index: int, image: Image) -> ImageMetadata:
        spec = flight.spec
        return ImageMetadata(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt,
            seed=spec.image_seed(index),
            steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            scheduler=pipeline.scheduler_label(spec.scheduler),
            model=card.id,
            software=f"koala-serve {__version__}",
            width=image.width,
            height=image.height,
            created=clock.now(),
            lora=spec.lora,
        )

    return InflightWorker(
        settings,
        connection,
        clock,
        engine,
        Gallery(store, describe, safety, store_watch),
        model=ServedModel(
            id=card.id,
            names=frozenset({card.id, card.source, settings.model}),
            count_tokens=pipeline.count_tokens,
            max_prompt_tokens=pipeline.max_prompt_tokens,
        ),
        account={
            "device": str(pipeline.device),
            "dtype": dtype,
            "metrics_url": metrics_url,
        },
        metrics=metrics,
        vram=lambda: vram_of(pipeline.device, pipeline.parameter_bytes),
        idle=IdleUnload(pipeline, settings.idle_unload_seconds),
        name=name,
        tracer_provider=tracer_provider,
    )
