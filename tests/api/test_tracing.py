"""OpenTelemetry: the exported spans."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from embedserve import InputError
from tests.api.conftest import wait_until


@pytest.fixture
def collector():
    """A server that takes spans; its ``spans`` are those it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    server.spans += scope.spans
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.spans = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_request_is_a_span_with_its_stages(collector, settings, encoder):
    own = Settings(**settings.model_dump() | {"otel_endpoint": f"http://127.0.0.1:{collector.server_port}"})
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with TestClient(create_app(own, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        client.post("/embed", json={"input": "a private text"}, headers={"traceparent": f"00-{trace}-{parent}-01"})
    (root,) = [span for span in collector.spans if span.name == "POST /embed"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (trace, parent)
    stages = {span.name: span for span in collector.spans if span.parent_span_id == root.span_id}
    assert set(stages) == {"tokenize", "queue", "compute"}
    assert stages["tokenize"].end_time_unix_nano <= stages["queue"].start_time_unix_nano + 1000
    values = {value.key: value.value for value in root.attributes}
    assert values["http.response.status_code"].int_value == 200
    assert values["embedserve.tokens"].int_value > 0
    assert not any("private" in str(span) for span in collector.spans)
    assert not any("readyz" in span.name for span in collector.spans)


def test_a_missing_otel_extra_is_reported(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError, match=r"embedserve\[otel\]"):
        create_app(Settings(**settings.model_dump() | {"otel_endpoint": "http://127.0.0.1:1"}))
