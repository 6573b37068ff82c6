"""The files under api/deploy and docker-compose.yml: they can be read, agree with each other, and name what exists."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from api.settings import Settings
from api.telemetry import metrics

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "api" / "deploy"
ALERT_CASES = ROOT / "tests" / "api" / "alerts.test.yml"
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def known():
    """Every name that a sample of a metric may have."""
    kinds = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + suffix for family in metrics.registry().collect() for suffix in kinds.get(family.type, SUFFIXES)
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


def test_what_programs_write_goes_where_it_may(compose):
    for name in ("cpu", "gpu", "job", "eval"):
        service = compose["services"][name]
        writable = [volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")]
        writable += [place.split(":")[0] for place in service["tmpfs"]]
        assert writable == ["/data", "/tmp"]
        assert service["environment"]["HOME"].startswith("/data/")  # of each library that caches below ~
        assert service["environment"]["NUMBA_CACHE_DIR"].startswith("/tmp/")


def test_the_commands_exist(compose):
    from typer.main import get_command

    from api.cli.main import app

    dockerfile = (ROOT / "Dockerfile").read_text()
    commands = [compose["services"][name]["command"] for name in ("job", "eval")]
    commands.append(json.loads(re.search(r"^CMD (.*)$", dockerfile, re.MULTILINE)[1]))
    for words in commands:
        command = get_command(app)
        while hasattr(command, "get_command"):
            command = command.get_command(None, words.pop(0))
            assert command is not None
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_the_images_are_made_of_what_is_there():
    dockerfile = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    assert {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]} <= copied
    extras = {extra for group in re.findall(r"'\.\[([a-z,]+)\]'", dockerfile) for extra in group.split(",")}
    assert extras == {"cpu", "gpu", "mteb"} and extras <= set(project["project"]["optional-dependencies"])
    constraints = (ROOT / "constraints" / "core.txt").read_text().splitlines()
    assert set(re.findall(r"torch==\S+", dockerfile)) <= set(constraints)
    assert any(line.startswith("faiss-cpu") for line in constraints)  # the image for a GPU leaves it out


def test_ports_are_open_to_this_machine_only(compose):
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert port.removeprefix("${PUBLISH:-").startswith("127.0.0.1:")


def test_every_file_it_mounts_is_there(compose):
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert len(mounted) == 5
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


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    quiet, loud = yaml.safe_load(ALERT_CASES.read_text())["tests"]
    names = {rule["alert"] for rule in rules}
    assert {case["alertname"] for case in quiet["alert_rule_test"] if "exp_alerts" not in case} == names
    assert {case["alertname"] for case in loud["alert_rule_test"] if "exp_alerts" in case} == names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: it comes with Prometheus")
def test_the_alerts_fire_when_they_should():
    tried = subprocess.run(["promtool", "test", "rules", ALERT_CASES], capture_output=True, text=True, timeout=120)
    assert tried.returncode == 0, tried.stdout + tried.stderr


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
