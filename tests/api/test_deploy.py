"""The files under api/deploy and docker-compose.yml: they can be read, agree with each other, and name what exists."""

import json
import re
from pathlib import Path

import pytest
import yaml

from api import metrics
from api.settings import Settings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "api" / "deploy"
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def known():
    """Every name that a sample of a metric may have."""
    kinds = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + suffix for family in metrics.REGISTRY.collect() for suffix in kinds.get(family.type, SUFFIXES)
    }


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def test_there_is_a_profile_for_each_use(compose):
    profiles = {profile for service in compose["services"].values() for profile in service["profiles"]}
    assert profiles == {"cpu", "gpu", "monitoring", "jobs", "eval"}


def test_every_service_has_few_rights(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["user"] not in ("0", "root"), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name


def test_what_runs_on_is_checked_and_ends_in_time(compose):
    for name in ("cpu", "gpu", "prometheus", "grafana"):
        service = compose["services"][name]
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
    for name in ("cpu", "gpu"):
        service = compose["services"][name]
        drain = service["environment"]["EMBEDSERVE_DRAIN_TIMEOUT_S"]
        assert drain == Settings.model_fields["drain_timeout_s"].default
        assert seconds(service["stop_grace_period"]) > drain
        assert "/readyz" in service["healthcheck"]["test"][-1]


def test_its_variables_are_settings(compose):
    from api.settings import OTHER_VARIABLES, PREFIX

    allowed = {PREFIX + name.upper() for name in Settings.model_fields} | set(OTHER_VARIABLES)
    for service in compose["services"].values():
        assert {name for name in service.get("environment", {}) if name.startswith(PREFIX)} <= allowed


def test_ports_are_open_to_this_machine_only(compose):
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert port.removeprefix("${EMBEDSERVE_PUBLISH:-").startswith("127.0.0.1:")


def test_every_file_it_mounts_is_there(compose):
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert len(mounted) == 4
    assert all((ROOT / path).exists() for path in mounted)


def test_prometheus_reads_the_rules_and_the_service(compose):
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    targets = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= targets
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    for name in ("cpu", "gpu"):
        service = compose["services"][name]
        assert host in service["networks"]["default"]["aliases"]
        assert service["ports"][0].endswith(f":{port}")


def names_in(expression):
    return set(re.findall(r"\b(?:es|process)_[a-z_]+", re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)))


def test_the_rules_name_metrics_that_exist(known):
    rules = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert names_in(rule["expr"]) <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_the_dashboard_names_metrics_that_exist_and_its_data_source(known):
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "embedserve.json").read_text())
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert len(board["panels"]) >= 12
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            assert names_in(target["expr"]), panel["title"]
            assert names_in(target["expr"]) <= known, panel["title"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_labels_in_rules_and_panels_exist():
    text = (DEPLOY / "alerts.yml").read_text() + (DEPLOY / "grafana/dashboards/embedserve.json").read_text()
    labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(",")}
    assert labels == {"le", "route", "code", "reason", "model", "stage", "input_type"}


def test_a_name_that_does_not_exist_is_found(known):
    assert names_in('sum by (es_x) (rate(es_requests_total{es_y="1"}[5m])) / es_nothing') - known == {"es_nothing"}
