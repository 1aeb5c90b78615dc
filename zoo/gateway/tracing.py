"""Spans of OpenTelemetry for requests over HTTP, on by the environment variables that it has for this: OTEL_*.

The span of a request is a child of the one that its `traceparent` names, and parent of the inferences that it asks for
(`zoo/tracing.py`). Requests that only look (GET) without a `traceparent` have none: probes, scrapes and the page would
bury the rest.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "zoo-gateway"
LAST_S = 2.0  # for what is left to be sent when the process is to end

log = logging.getLogger("zoo.gateway")


def begin() -> Tracing | None:
    """Has spans sent by OTLP over HTTP, if the environment says to where."""
    said = os.environ
    where = said.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or said.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not where or said.get("OTEL_TRACES_EXPORTER") == "none" or said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        log.warning("OTEL_… says where traces go, and nothing sends them: pip install 'model-zoo[otel]'")
        return None
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if "service.name=" not in said.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        said.setdefault("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    log.info("traces are sent to %s", where)
    return Tracing(provider)


class Tracing:
    """Makes a span for each request that wants one."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("zoo.gateway")

    def request(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestSpan | None:
        """Current from here on; its `end` has to be called in the same task."""
        if method in ("GET", "HEAD", "OPTIONS") and b"traceparent" not in headers:
            return None
        from opentelemetry import context, propagate, trace

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        span = self._tracer.start_span(
            method,
            propagate.extract(carrier),
            trace.SpanKind.SERVER,
            {"http.request.method": method, "url.path": path},
        )
        return RequestSpan(span, method, context.attach(trace.set_span_in_context(span)))

    def close(self) -> None:
        """Sends what is left, for a bounded time: what takes the spans may be gone."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_S)


class RequestSpan:
    """Of one request. `token`: of the context before it."""

    def __init__(self, span: Span, method: str, token: Token[Context]) -> None:
        self._span = span
        self._method = method
        self._token = token

    def end(self, status: int, route: str, door: str, request_id: str) -> None:
        """`status` 0: the other side went before an answer was begun. `route`: "" where no path fits."""
        from opentelemetry import context, trace

        context.detach(self._token)
        if route:
            self._span.update_name(f"{self._method} {route}")
        for name, value in (("http.route", route), ("http.response.status_code", status), ("zoo.door", door)):
            if value:
                self._span.set_attribute(name, value)
        self._span.set_attribute("zoo.request_id", request_id)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(trace.Status(trace.StatusCode.ERROR))
        self._span.end()
