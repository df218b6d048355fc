"""`broker web` and `broker worker`: the commands that run until they are stopped."""

from __future__ import annotations

import click
import structlog
from flask.cli import ScriptInfo

from broker.cli.printing import until_eof
from broker.db import require_current_schema
from broker.lifeline import StopSignal, stop_at_end_of_input
from broker.services import Services
from broker.telemetry import tracing

DEFAULT_THREADS = 16

log = structlog.get_logger(__name__)


@click.command()
@click.option("--bind", help="HOST:PORT to listen on; 127.0.0.1 and PORT from the settings by default.")
@click.option("--processes", type=click.IntRange(1, 64), help="BROKER_PROCESSES by default.")
@click.option("--threads", type=click.IntRange(1, 512), default=DEFAULT_THREADS, show_default=True)
@until_eof
@click.pass_context
def web(context: click.Context, bind: str | None, processes: int | None, threads: int, *, until_eof: bool) -> None:
    """Serve people, hosts and providers."""
    from broker.server import Server

    if until_eof:
        stop_at_end_of_input()
    app = context.ensure_object(ScriptInfo).load_app()
    services: Services = app.extensions["broker"]
    _require_ready(services)
    address = bind or f"127.0.0.1:{services.settings.port}"
    processes = processes or services.settings.processes
    log.info("web.started", bind=address, processes=processes, threads=threads)
    Server(app, bind=address, processes=processes, threads=threads).run()


@click.command()
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True)
@until_eof
@click.pass_context
def worker(context: click.Context, threads: int, *, until_eof: bool) -> None:
    """Deliver to Sequin, and finish what was interrupted."""
    from broker.worker import Worker

    services: Services = context.ensure_object(ScriptInfo).load_app().extensions["broker"]
    _require_ready(services)
    stop_signal = StopSignal()
    if until_eof:
        stop_at_end_of_input()
    tracing.start()
    running = Worker(services, threads=threads)
    running.start()
    log.info("worker.started", threads=threads)
    stop_signal.wait()
    running.stop()
    tracing.stop()
    log.info("worker.stopped")


def _require_ready(services: Services) -> None:
    """Refuse to start on tables of another version, or with a key ring that does not open what is there."""
    require_current_schema(services.database)
    problems = services.key_ring.check()
    if problems:
        for problem in problems:
            click.echo(problem, err=True)
        raise SystemExit(1)
