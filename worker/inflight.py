"""The worker: RQ's own loop while idle, ours while anything is in flight."""

import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Final, cast

import structlog
from opentelemetry.trace import TracerProvider
from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended

from koala.clock import RedisClock
from koala.settings import Settings
from koala.workers import Vram
from worker.account import Account
from worker.admission import Admission, InvalidJob, ServedModel, UnsupportedJob
from worker.beat import Beat
from worker.boarding import Boarding
from worker.draining import drain
from worker.engine import (
    Engine,
    EngineEvent,
    Failed,
    Finished,
    Preview,
    Progress,
)
from worker.fencing import FencedJob, FencedQueue, LeaseLost
from worker.flight import Flight, ImageKey, Outcome
from worker.gallery import Gallery
from worker.herald import Herald
from worker.idle import IdleUnload
from worker.landing import Landing
from worker.leases import Leases, Scripts
from worker.loop_clock import LoopClock
from worker.metrics import WorkerMetrics
from worker.reaper import Reaper
from worker.report import Report
from worker.showing import Showing
from worker.steady import SteadyWorker
from worker.strays import Strays
from worker.unsupported import UnsupportedJobs
from worker.upkeep import Upkeep

log = structlog.get_logger()

# Images admitted but not stored yet, in batches: bounds memory when decoding or storing is slow.
_BACKLOG_BATCHES: Final = 4

# How long the loop rests when the engine has nothing to do but something is still in flight.
_REST_SECONDS: Final = 0.005

# How long the loop does not ask for jobs again where there was none: on small models a step takes
# little longer than the question.
_POLL_SECONDS: Final = 0.02


class InflightWorker(SteadyWorker):
    """Runs many jobs at once on one engine, step by step.

    Args:
        settings: Queue name, lease, limits.
        connection: A blocking client that returns bytes.
        clock: Redis' time; the heartbeat keeps it right.
        engine: Draws.
        gallery: Encodes and stores.
        model: The engine's model.
        account: The rest of what the worker says of itself: device, dtype, metrics_url.
        vram: Looks at the memory of the device, from any thread.
        metrics: Where to count.
        idle: Frees the engine's model while nothing is in flight.
        name: The worker's name; unique.
        tracer_provider: Makes spans of the jobs; without one nothing is traced.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Redis,
        clock: RedisClock,
        engine: Engine,
        gallery: Gallery,
        *,
        model: ServedModel,
        account: dict[str, Any],
        metrics: WorkerMetrics,
        idle: IdleUnload,
        name: str,
        vram: Callable[[], Vram | None] = lambda: None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        scripts = Scripts(connection, settings, clock)
        super().__init__(
            [settings.queue],
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            keys=scripts.keys,
            clock=clock,
            event_ttl=settings.event_ttl,
            drain_seconds=settings.drain_seconds,
        )
        self._settings = settings
        self._engine = engine
        self._gallery = gallery
        self._account = Account(engine, {"model": model.id, **account}, vram)
        self._rates = self._account.rates
        self._metrics = metrics
        self._idle = idle
        self._flights: dict[str, Flight] = {}
        self._stops: SimpleQueue[str] = SimpleQueue()
        self._lost: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._leases = Leases(scripts, settings)
        self._strays = Strays(self._leases, metrics)
        self._landing = Landing(self, metrics, Report(name, metrics, clock, tracer_provider))
        self._admission = Admission(self, self._leases, self._strays, settings, model)
        self._unsupported = UnsupportedJobs(connection, scripts, settings, self._lacks)
        self._boarding = Boarding(
            self.link, self._admission, self._landing, self._strays, self._unsupported
        )
        self._showing = Showing(self, metrics, gallery.safety)
        self._laps = LoopClock(metrics.loop_seconds)
        self._herald = Herald(self, self.link)
        self._upkeep = Upkeep(
            self,
            self._leases,
            self._strays,
            self._unsupported,
            Reaper(scripts, settings),
            settings,
            self._flights,
            self._lost.put,
            self._stops.put,
            lambda **given: self._account.describe(
                is_loaded=idle.is_loaded, trouble=self._store_trouble, **given
            ),
            metrics,
        )
        self._beat = Beat(settings.heartbeat_seconds, self._upkeep.beat, idle.check)
        self.link.follow(self._beat.link)
        self._next_look = 0.0
        self._next_poll = 0.0
        self._is_suspended = False

    # The loop

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run the job that ended the wait, and whatever joins it, until nothing is in flight."""
        self._boarding.is_closed = False
        self._laps.start()
        self._take(job)
        if not self._flights:
            return
        # Claimed first: the lease is renewed while the weights are on their way.
        with self._idle.awake():
            self._laps.lap("admission")
            while self._flights:
                self._obey()
                self._admit()
                self._laps.lap("admission")
                self._advance()
                self._laps.lap("telling")
                self._collect()
                self._land()
                self._laps.lap("ending")
                self._maintain()
                self._laps.lap("upkeep")
            self._look_again()

    def _look_again(self) -> None:
        """Measure again what may have been measured in a bad moment, until there is a job."""
        capacity = self._engine.capacity
        for size in capacity.look_again(self._is_idle):
            points = capacity.calibrations[size].curve.points
            steps = {rows: round(1000 * seconds, 2) for rows, seconds in points.items()}
            name, rows = f"{size[0]}x{size[1]}", capacity.cap(size)
            log.info("measured again", size=name, max_rows=rows, step_ms=steps)

    def _is_idle(self) -> bool:
        """Whether there is nothing to do, as far as Redis can be asked."""
        is_idle = False
        if not self.is_stopping and self.link.is_due:
            with self.link.attempt():
                is_idle = not any(queue.count for queue in self.queues)
        return is_idle

    def _obey(self) -> None:
        """Do what others want: drop what is lost, stop what is stopped, end what takes too long."""
        for job_id, token in drain(self._lost):
            flight = self._flights.get(job_id)
            # Whose end is being written down may have ended already; the fence knows.
            if flight is not None and flight.token == token and flight.outcome is None:
                self._forget_lost(flight)
        for job_id in drain(self._stops):
            if job_id in self._flights:
                self._decide(self._flights[job_id], Outcome.stopped())
        for flight in self._flights.values():
            if flight.overtime > 0:
                message = f"The job did not finish within {flight.timeout:g} seconds."
                self._decide(flight, Outcome.failed("timeout", message))
            elif flight.is_late(self.clock.time()):
                message = "The deadline passed before the job was done."
                self._decide(flight, Outcome.failed("deadline_exceeded", message))
        if self.is_drained:
            self._hand_back()

    def _admit(self) -> None:
        """Take jobs while the engine can use them now; the rest is for other workers."""
        if time.monotonic() < self._next_poll:
            return
        while self._has_room and self.link.is_due:
            popped = None
            with self.link.attempt():
                popped = self.take_supported() or self.queue_class.dequeue_any(
                    self.queues,
                    None,
                    connection=self.connection,
                    job_class=self.job_class,
                    serializer=self.serializer,
                )
            if popped is None:
                self._next_poll = time.monotonic() + _POLL_SECONDS
                return
            self._take(popped[0])

    def _advance(self) -> None:
        """One step of the engine; an engine that raises ends the worker, as a crash would."""
        if self._engine.is_idle:
            return
        began = time.perf_counter()
        events = self._engine.step()
        seconds = time.perf_counter() - began
        self._laps.lap_tick(self._engine.last_tick)
        self._account.note_step(began)
        self._metrics.count_tick(self._engine.last_tick, self._engine)
        heard = [(event, self._flight_of(event.key)) for event in events]
        # First of all, what the engine is done with: it must not be asked to remove that.
        for event, flight in heard:
            if flight is not None and isinstance(event, (Finished, Failed)):
                flight.in_engine.discard(event.key.index)
        for event, flight in heard:
            if flight is not None and flight.outcome is None:
                self._heed(event, flight, seconds)
        self._show(heard)
        self._herald.note([event.key.job_id for event in events if isinstance(event, Progress)])
        self._herald.tell(self._flights)

    def _heed(self, event: EngineEvent, flight: Flight, seconds: float) -> None:
        match event:
            case Progress(step=step):
                flight.advance(event.key.index, step, seconds)
                self._metrics.steps.inc()
            case Finished(image=image):
                flight.decode()
                self._gallery.take(flight, event.key.index, image)
            case Failed(error=error):
                log.error("a sample failed", job_id=flight.id, exc_info=error)
                self._decide(flight, Outcome.broken(error))

    def _show(self, heard: Iterable[tuple[EngineEvent, Flight | None]]) -> None:
        previews = [
            (flight, event)
            for event, flight in heard
            if flight is not None and isinstance(event, Preview)
        ]
        if previews:
            self._showing.show(previews)
        self._engine.charge_previews(self._showing.spent())

    def _collect(self) -> None:
        """Note which images are stored by now; rest if that is all there is to wait for."""
        patience = _REST_SECONDS if self._engine.is_idle else 0.0
        for stored in self._gallery.collect(patience):
            if stored.image is not None:
                self._rates.image()
                self._metrics.images.labels(stored.flight.spec.output_format).inc()
                stored.flight.store(stored.index, stored.image)
            elif stored.failure is not None:
                self._decide(stored.flight, stored.failure)
            else:
                self._metrics.images_blocked.inc()
                stored.flight.withhold(stored.index)

    def _land(self) -> None:
        """See to it that the end of every job whose end is decided gets written down."""
        for flight in self._flights.values():
            if flight.outcome is not None and self.link.is_due:
                self._landing.begin(flight, flight.outcome)
        patience = _REST_SECONDS if self._engine.is_idle else 0.0
        for flight, end in self._landing.ended(patience):
            with self.link.attempt():
                try:
                    landed_at = end.result()
                    if flight.decoded_at is not None:
                        self._rates.stored(landed_at - flight.decoded_at)
                    if flight.outcome is not None and flight.outcome.result is None:
                        self._gallery.discard(flight)
                    self._forget(flight)
                except LeaseLost:
                    self._forget_lost(flight)
        if not self.link.is_due and self._engine.is_idle:
            time.sleep(_REST_SECONDS)

    def _maintain(self) -> None:
        """What RQ's own loop would do between two jobs, at the pace of the heartbeat."""
        if time.monotonic() < self._next_look or not self.link.is_due:
            return
        self._next_look = time.monotonic() + self._settings.heartbeat_seconds
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        with self.link.attempt():
            self._is_suspended = bool(is_suspended(self.connection))

    # Into flight

    @property
    def claims_nothing(self) -> bool:
        """Whether the images of a job could not be stored."""
        return self._gallery.store_watch.trouble is not None

    @property
    def _store_trouble(self) -> str | None:
        reason = self._gallery.store_watch.trouble
        return None if reason is None else f"the image store cannot be used: {reason}"

    @property
    def _has_room(self) -> bool:
        if self.is_stopping or self._is_suspended or self._boarding.is_closed:
            return False
        if self.claims_nothing:
            return False
        backlog = sum(flight.images_to_store for flight in self._flights.values())
        return self._engine.has_room and backlog < _BACKLOG_BATCHES * self._engine.max_rows

    def take_supported(self) -> tuple[Job, Queue] | None:
        """The next job that others set aside and this worker understands, as if it were popped."""
        while (job_id := self._unsupported.take()) is not None:
            # What is gone meanwhile is gone from the list of popped jobs, too.
            popped = self._fetch_popped(job_id)
            if popped is not None:
                return popped
        return None

    def _fetch_popped(self, job_id: str) -> tuple[Job, Queue] | None:
        return FencedQueue.fetch_popped(
            self.connection, self.queues[0].key, job_id, self.job_class, self.serializer
        )

    def _lacks(self, job_id: str) -> str | None:
        """What a job asks for that this version does not know."""
        found = self._fetch_popped(job_id)
        try:
            if found is not None:
                self._admission.read(cast(FencedJob, found[0]))
        except UnsupportedJob as error:
            return str(error)
        except InvalidJob:
            # To be taken and refused.
            pass
        return None

    def _take(self, job: Job) -> None:
        flight = self._boarding.take(cast(FencedJob, job), is_alone=not self._flights)
        if flight is not None:
            self._board(flight)

    def _board(self, flight: Flight) -> None:
        stale = self._flights.get(flight.id)
        if stale is not None:
            # Our lease ran out, the job went round, and here it is again before we noticed.
            self._forget_lost(stale)
        self._flights[flight.id] = flight
        self._metrics.count_wait(flight.job, flight.execution.created_at)
        self._metrics.jobs_running.set(len(self._flights))
        seconds = flight.spec.unet_calls * (self._rates.seconds_per_step or 0.0)
        if flight.is_late(self.clock.time() + seconds):
            message = f"The deadline is too near: the job takes {seconds:.3g} s, and more."
            self._decide(flight, Outcome.failed("deadline_exceeded", message))
            return
        try:
            for index, request in enumerate(flight.requests):
                self._engine.add(request)
                flight.in_engine.add(index)
        except ValueError as error:
            self._decide(flight, Outcome.failed("invalid_job", f"Not to be drawn: {error}."))
        self._metrics.count_tokens(flight)

    # In flight

    def _flight_of(self, key: ImageKey) -> Flight | None:
        flight = self._flights.get(key.job_id)
        return flight if flight is not None and flight.token == key.run else None

    # Out of flight

    def _decide(self, flight: Flight, outcome: Outcome) -> None:
        """The one place where a job in flight is given up: nothing of it is drawn any more."""
        if flight.outcome is None:
            flight.outcome = outcome
            self._leave_engine(flight)

    def _leave_engine(self, flight: Flight) -> None:
        for index in flight.in_engine:
            self._engine.remove(flight.key(index))
        flight.in_engine.clear()

    def _forget(self, flight: Flight) -> None:
        self._leave_engine(flight)
        if self._flights.get(flight.id) is flight:
            del self._flights[flight.id]
        self.executions.pop(flight.token, None)
        self._metrics.jobs_running.set(len(self._flights))

    def _forget_lost(self, flight: Flight) -> None:
        log.warning("a lease was lost, its job is somebody else's", job_id=flight.id)
        self._metrics.leases_lost.inc()
        self._forget(flight)

    def _hand_back(self) -> None:
        flights = sorted(self._flights.values(), key=lambda flight: flight.job.created_at)
        self._boarding.send_back([(flight.id, flight.token) for flight in flights], "drained")
        for flight in flights:
            self._forget(flight)

    # Around the loop

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """RQ's; from here on the worker is known to be there."""
        super().bootstrap(*args, **kwargs)
        self._upkeep.beat()
        self._beat.start()

    def teardown(self) -> None:
        """RQ's; from here on the worker is known to be gone."""
        self._beat.stop()
        self._gallery.close()
        self._landing.close()
        self._showing.close()
        with self.link.attempt():
            # What Redis does not take back now is found by the reaper once its lease is over.
            self._strays.hand_back()
            self._upkeep.withdraw()
        super().teardown()

    @property
    def trouble(self) -> str | None:
        """Why this worker should be restarted, if so; safe to ask on any thread."""
        if hung := self._upkeep.hung:
            return f"Past their time, in a step that does not end: {', '.join(hung)}."
        return None

    def request_stop_job(self, job_id: str) -> None:
        """Stop a job in flight; ids of other jobs are passed over."""
        self._stops.put(job_id)
