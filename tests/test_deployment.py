"""The files to deploy with: they parse, name only what exists, and keep the promises that can be read off them."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

import broker.server
from broker.app import create_app
from broker.cli.processes import web
from broker.contract import Status
from broker.db import upgrade
from broker.models import JobState
from broker.providers import discover
from broker.secret import Secret
from broker.server import GRACE_SECONDS
from broker.settings import generate_key, load_settings
from broker.web.hooks import LONGEST_BODY
from tests.documents import ROOT, commands, known_names, refusal
from tests.house import make_settings

KUBERNETES = ROOT / "deploy/kubernetes"
SYSTEMD = ROOT / "deploy/systemd"
MONITORING = ROOT / "deploy/monitoring"
OF_CONTAINERS = {"POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB"}
UNITS = {"k": 2**10, "m": 2**20, "KiB": 2**10, "MiB": 2**20}

Table = dict[str, Any]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def compose() -> Table:
    found: Table = yaml.safe_load(read("compose.yaml"))
    return found


@cache
def manifests() -> list[Table]:
    files = sorted(KUBERNETES.glob("*.yaml"))
    return [part for file in files for part in yaml.safe_load_all(file.read_text(encoding="utf-8")) if part]


def of_kind(kind: str) -> list[Table]:
    return [manifest for manifest in manifests() if manifest["kind"] == kind]


def pods() -> Iterator[tuple[str, Table]]:
    for manifest in (*of_kind("Deployment"), *of_kind("Job")):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]


def containers() -> list[Table]:
    return [container for _, pod in pods() for container in pod["spec"]["containers"]]


def own_services() -> dict[str, Table]:
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def unit(name: str) -> Mapping[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SYSTEMD / name, encoding="utf-8")
    return parser["Service"]


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines.splitlines() if line.strip()]


def instruction(name: str) -> str:
    """Return the last instruction of that name: the one that counts."""
    return [rest for found, rest in instructions() if found == name][-1]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    url = f"sqlite:///{tmp_path}/broker.db"
    upgrade(url)
    built = create_app(make_settings(url, data_dir=tmp_path, metrics_token=Secret("told-to-prometheus")))
    yield built
    built.extensions["broker"].database.engine.dispose()


# --- commands and settings ------------------------------------------------------------------------------


def every_command() -> set[tuple[str, ...]]:
    found = [json.loads(instruction("CMD"))]
    found += [service["command"] for service in own_services().values()]
    found += [container["args"] for container in containers()]
    found += [shlex.split(line.split("broker ", 1)[1]) for line in read("Procfile").splitlines()]
    for file in SYSTEMD.glob("*.service"):
        words = shlex.split(unit(file.name)["ExecStart"])[1:]
        assert words[:2] == ["--env-file", "/etc/broker/broker.env"]
        found.append(words[2:])
    return set(map(tuple, found))


@pytest.mark.parametrize("words", sorted(every_command()), ids=" ".join)
def test_every_command_that_is_started_exists(words: tuple[str, ...]) -> None:
    assert refusal(words) == ""


def test_every_setting_named_is_one() -> None:
    named = {name for service in own_services().values() for name in service["environment"]}
    named |= {name for config in of_kind("ConfigMap") for name in config["data"]}
    named |= {name for _, rest in instructions() if _ == "ENV" for name in re.findall(r"(\w+)=", rest)} - {
        *("PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }
    named |= {unit(file.name)["Environment"].partition("=")[0] for file in SYSTEMD.glob("*.service")}
    named |= set(re.findall(r"\b(?:BROKER|SEQUIN)_[A-Z_]+\b", "".join(map(read, ("compose.yaml", "deploy/Caddyfile")))))
    assert named <= known_names()
    assert set(re.findall(r"\$\{(\w+)", read("compose.yaml"))) <= known_names() | OF_CONTAINERS


def test_the_settings_for_kubernetes_are_taken_with_nothing_but_the_secrets_added() -> None:
    (config,) = of_kind("ConfigMap")
    secrets = {
        "BROKER_SECRET_KEY": "kD8bXq2vT7mJ4wZr9yLc3HfG6nPsA1uE",
        "BROKER_ENCRYPTION_KEYS": generate_key(),
        "SEQUIN_API_TOKEN": "sq_1",
        "DATABASE_URL": "postgresql://broker:p@db/broker",
        "STRIPE_CLIENT_ID": "ca_1",
        "STRIPE_CLIENT_SECRET": "sk_live_1",
    }
    settings = load_settings(config["data"] | secrets, {name: p.options for name, p in discover().items()})
    assert settings.production
    assert (settings.workers, settings.trusted_proxies) == (0, 1)


# --- the image ------------------------------------------------------------------------------------------


def test_the_image_is_not_root_and_holds_no_build_tools() -> None:
    user, _, group = instruction("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert len(stages) == 2
    assert {stage.split()[0] for stage in stages} == {"python:3.13-slim"}


def test_the_image_takes_what_is_pinned_and_names_no_index() -> None:
    (install,) = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert "--require-hashes" in install
    assert not re.search(r"https?://|index|find-links|trusted-host", "\n".join(rest for _, rest in instructions()))


def test_what_the_image_copies_is_there_and_everything_else_stays_out() -> None:
    rules = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.network
@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_believes_the_answer(app: Flask, status: int, exit_code: int) -> None:
    program, flag, code = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    assert app.test_client().get(re.search(r"'GET', '(.*?)'", code)[1]).status_code == 200  # type: ignore[index]

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the library's name
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.handle_request)
        serving.start()
        asked = code.replace("8000", str(server.server_port))
        done = subprocess.run([sys.executable, "-c", asked], check=False, timeout=60)
        serving.join()
    assert done.returncode == exit_code


# --- compose --------------------------------------------------------------------------------------------


def test_compose_is_the_whole_deployment() -> None:
    services = compose()["services"]
    assert set(services) == {"migrate", "web", "worker", "database", "caddy"}
    assert [services[name]["deploy"]["replicas"] for name in ("web", "worker")] == [2, 2]
    assert [name for name, service in services.items() if "ports" in service] == ["caddy"]
    assert services["database"]["networks"] == ["inside"]
    assert compose()["networks"]["inside"] == {"internal": True}
    for name in ("web", "worker"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_compose_lets_containers_write_nowhere_and_finish_what_they_do() -> None:
    for service in own_services().values():
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert seconds(service["stop_grace_period"]) > GRACE_SECONDS
    for name in ("migrate", "worker"):
        assert own_services()[name]["healthcheck"] == {"disable": True}, "nothing there answers"


def test_what_compose_mounts_is_in_the_checkout() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in compose()["volumes"]


def test_the_proxy_waits_for_whole_requests() -> None:
    caddy = read("deploy/Caddyfile")
    assert caddy.count("{") == caddy.count("}")
    (buffers,) = re.findall(r"^\t\trequest_buffers (\d+)(\w+)$", caddy, re.MULTILINE)
    assert int(buffers[0]) * UNITS[buffers[1]] >= LONGEST_BODY
    (ingress,) = of_kind("Ingress")
    annotations = {name.partition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    body = annotations["proxy-body-size"]
    assert int(body[:-1]) * UNITS[body[-1]] >= LONGEST_BODY
    assert annotations["proxy-request-buffering"] == "on"


def test_no_proxy_packs_pages_whose_length_would_tell_of_secrets() -> None:
    assert not re.search(r"^\s*encode\b", read("deploy/Caddyfile"), re.MULTILINE)
    (site,) = re.findall(r"```nginx\n(.*?)```", read("docs/operating.md"), re.DOTALL)
    assert re.search(r"^\s*gzip off;$", site, re.MULTILINE), "Debian's nginx packs pages unless told otherwise"


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


# --- Kubernetes -----------------------------------------------------------------------------------------


def test_every_manifest_is_applied() -> None:
    (kustomization,) = of_kind("Kustomization")
    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert {image["name"] for image in kustomization["images"]} == {container["image"] for container in containers()}


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=[name for name, _ in pods()])
def test_a_pod_is_nobody_and_writes_nowhere(name: str, pod: Table) -> None:
    spec = pod["spec"]
    user, _, group = instruction("USER").partition(":")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (int(user), int(group))
    assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert name == "broker-migrate" or spec["terminationGracePeriodSeconds"] > GRACE_SECONDS


def test_probes_ask_pages_that_exist_and_readiness_needs_no_other_side(app: Flask) -> None:
    (web,) = [container for container in containers() if container["name"] == "web"]
    addresses = {name: web[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    for address in addresses.values():
        assert address["port"] in {port["name"] for port in web["ports"]}
        # A pod is asked by its own address, not by the public one.
        answer = app.test_client().get(address["path"], headers={"Host": "10.1.2.3:8000"})
        assert answer.status_code == 200
    assert addresses["readinessProbe"]["path"] == "/readyz"
    assert addresses["livenessProbe"]["path"] == "/healthz", "a database that is away is no reason to restart"


def test_what_selects_pods_finds_them() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods()]
    selectors = [service["spec"]["selector"] for service in of_kind("Service")]
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors += [part["spec"]["selector"]["matchLabels"] for part in of_kind(kind)]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind("NetworkPolicy")]
    for selector in selectors:
        assert any(selector.items() <= label.items() for label in labels), selector


def test_the_ingress_leads_to_the_service_under_the_public_address() -> None:
    (ingress,), (service,), (config,) = of_kind("Ingress"), of_kind("Service"), of_kind("ConfigMap")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert f"https://{rule['host']}" == config["data"]["BROKER_PUBLIC_URL"]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]


# --- systemd --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in SYSTEMD.glob("*.service")))
def test_a_unit_is_an_account_of_its_own_without_rights(name: str) -> None:
    service = unit(name)
    assert service["User"] == "broker"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["Environment"] == f"DATA_DIR=/var/lib/{service['StateDirectory']}"
    assert service["Type"] == "oneshot" or int(service["TimeoutStopSec"]) > GRACE_SECONDS


def test_the_web_unit_leaves_the_number_of_processes_to_its_settings() -> None:
    assert "--processes" not in unit("broker-web.service")["ExecStart"]
    assert make_settings().processes == 1, "more than one wait for each other on SQLite"


@pytest.mark.parametrize(("arguments", "started"), [([], 3), (["--processes", "2"], 2)])
def test_the_web_server_has_as_many_processes_as_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], started: int
) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    upgrade(url)
    app = create_app(make_settings(url, data_dir=tmp_path, processes=3))
    asked: list[int] = []

    class Listening:
        def __init__(self, _: Flask, *, bind: str, processes: int, threads: int) -> None:
            asked.append(processes)

        def run(self) -> None:
            """Nobody comes."""

    monkeypatch.setattr(broker.server, "Server", Listening)
    outcome = app.test_cli_runner().invoke(web, arguments, catch_exceptions=False)
    app.extensions["broker"].database.engine.dispose()
    assert (outcome.exit_code, asked) == (0, [started])


# --- monitoring -----------------------------------------------------------------------------------------


def rules() -> list[Table]:
    found: Table = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in found["groups"] for rule in group["rules"]]


def panels() -> list[Table]:
    board: Table = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    found: list[Table] = board["panels"]
    return found


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def test_every_metric_named_is_told_and_every_metric_told_is_shown(app: Flask) -> None:
    told = app.test_client().get("/metrics", headers={"Authorization": "Bearer told-to-prometheus"}).text
    exists = set(re.findall(r"^# TYPE (broker_\w+) ", told, re.MULTILINE))
    named = {name for expression in expressions() for name in re.findall(r"\bbroker_\w+", expression)}
    assert named == exists


def test_labels_are_asked_for_values_they_can_have() -> None:
    possible: dict[str, set[str]] = {"status": set(Status), "state": set(JobState)}
    for expression in expressions():
        for label, _, value in re.findall(r"(\w+)(=~?)\"([^\"]*)\"", expression):
            if label != "app":
                assert set(value.split("|")) <= possible[label], expression


def test_expressions_are_closed() -> None:
    for expression in expressions():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_every_alert_says_what_to_do_by_commands_that_exist() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        for words in commands(rule["annotations"]["action"]):
            assert refusal(words) == ""


def test_the_dashboard_asks_the_data_source_that_was_chosen_and_places_no_panel_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_prometheus_reads_the_page_that_exists(app: Flask) -> None:
    found: Table = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = found["scrape_configs"]
    assert job["metrics_path"] in {rule.rule for rule in app.url_map.iter_rules()}
    assert all((MONITORING / file).is_file() for file in found["rule_files"])
