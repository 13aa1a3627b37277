"""A process's registry of Prometheus metrics: what every part has, beside what is its own."""

from prometheus_client import CollectorRegistry, Info, ProcessCollector, disable_created_metrics

from koala import __version__


def new_registry() -> CollectorRegistry:
    """A registry with the process's CPU time, memory and files, and ``koala_build_info``.

    Each part is one process, so nothing has to be added up between processes: several gateways or
    workers are several targets.
    """
    # A second series for each counter, of when it began: nobody asks for these.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Info("koala_build", "The version that runs here.", registry=registry)
    build.info({"version": __version__})
    return registry
