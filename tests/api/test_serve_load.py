"""The clients of the load measurement, against a real server."""

from urllib.parse import urlparse

from benchmarks.serve_clients import bodies_of, run_load
from benchmarks.serve_load import texts_of


def test_clients_count_what_they_are_answered(address):
    place = urlparse(address)
    texts = texts_of(12)
    assert len(set(texts)) == 12
    load = run_load(place.hostname, place.port, "/embed", bodies_of(texts, 4), 4, clients=3, seconds=0.3)
    assert list(load.statuses) == [200]
    assert load.texts == 4 * load.statuses[200] >= 12
    assert 0 < load.percentile_ms(0.5) <= load.percentile_ms(1.0) <= 1000 * load.seconds
    refused = run_load(place.hostname, place.port, "/embed", [b"{}"], 1, clients=1, seconds=0.05)
    assert (list(refused.statuses), refused.texts) == ([422], 0)
