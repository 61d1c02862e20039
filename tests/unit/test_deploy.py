"""The files of deploy/: what no machine without Docker or Kubernetes can run, by the rules that matter."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest

from outboxd.config import ENVIRONMENT, DrainConfig
from tests import deployments
from tests.deployments import FOLDER, README, ROOT

HARD_STOP_S = 15.0
PORT = 9464


# --- Containerfile -----------------------------------------------------------------------------------------


def values(stage: str, name: str) -> list[str]:
    return [i.value for i in deployments.stage(stage) if i.name == name]


@pytest.mark.parametrize("stage", ["shop", "outboxd"])
def test_an_image_runs_as_a_numbered_account_that_is_not_root(stage: str) -> None:
    user = values(stage, "USER")[-1]

    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "runAsNonRoot can only check a number"


@pytest.mark.parametrize("stage", ["shop", "outboxd"])
def test_an_image_has_nothing_that_was_only_needed_to_build_it(stage: str) -> None:
    assert values(stage, "FROM")[0].startswith("docker.io/library/python:3."), "slim, and with a version"
    assert values(stage, "FROM")[0].partition(" ")[0].endswith("-slim")
    assert values(stage, "RUN") == [], "what is installed is installed in the build stage"
    copied = [value for value in values(stage, "COPY") if "--from" in value]
    assert copied == ["--from=build /opt/outboxd /opt/outboxd"]


def test_nothing_of_a_package_manager_is_kept() -> None:
    (install,) = values("build", "RUN")

    assert "--without-pip" in install
    assert "--no-cache-dir" in install
    assert "apt-get" not in install


def test_build_and_runtime_have_the_same_python() -> None:
    """A virtual environment is bound to the interpreter that it was made with."""
    assert values("build", "FROM")[0].partition(" ")[0] == values("runtime", "FROM")[0].partition(" ")[0]


def test_what_is_copied_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    for stage in ("build", "shop"):
        for value in values(stage, "COPY"):
            if value.startswith("--from"):
                continue
            *sources, _target = value.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source


def test_only_the_image_of_outboxd_alone_has_a_healthcheck() -> None:
    """It would be asked of an application's containers too."""
    assert values("shop", "HEALTHCHECK") == []
    assert len(values("outboxd", "HEALTHCHECK")) == 1


def test_the_healthcheck_does_not_depend_on_the_database() -> None:
    (check,) = [i for i in deployments.stage("outboxd") if i.name == "HEALTHCHECK"]

    assert check.exec_form() == ["outboxd", "health", "--live"]


def test_the_default_stage_is_outboxd() -> None:
    assert deployments.containerfile()[-1].stage == "outboxd"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="there is no hadolint")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        ["hadolint", FOLDER / "Containerfile"], capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")


# --- Compose -----------------------------------------------------------------------------------------------


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = deployments.compose()["services"][name]
    return found


def test_the_sidecar_is_the_application_s_own_image() -> None:
    assert service("outboxd")["image"] == service("application")["image"] == service("migrate")["image"]
    build = service("outboxd")["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == FOLDER / "Containerfile"
    assert build["target"] in {i.stage for i in deployments.containerfile()}


def test_what_services_refer_to_is_declared() -> None:
    document = deployments.compose()
    assert set(document) <= {"name", "services", "secrets", "volumes"} | {k for k in document if k.startswith("x-")}
    for name, found in document["services"].items():
        assert set(found.get("secrets", [])) <= set(document["secrets"]), name
        assert set(found.get("depends_on", {})) <= set(document["services"]), name
        for volume in found.get("volumes", []):
            assert volume.partition(":")[0] in document["volumes"], name


def test_secrets_are_files() -> None:
    document = deployments.compose()
    for name, found in document["services"].items():
        for variable, value in found.get("environment", {}).items():
            if re.search("PASSWORD|DSN", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert value.removeprefix("/run/secrets/") in found["secrets"], f"{name}: {variable}"
    for secret in document["secrets"].values():
        assert re.fullmatch(r"\./secrets/\w+", secret["file"])
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_compose_waits_for_the_grace_period() -> None:
    period = service("outboxd")["stop_grace_period"]

    assert float(period.removesuffix("s")) > DrainConfig().grace_period_s + HARD_STOP_S


def test_the_sidecar_waits_for_nobody_and_can_be_scraped() -> None:
    outboxd = service("outboxd")

    assert "depends_on" not in outboxd
    assert outboxd["environment"]["OUTBOX_HTTP_LISTEN"] == f":{PORT}"
    assert outboxd["expose"] == [str(PORT)]
    assert "ports" not in outboxd, "metrics are not for the host's network"


def test_containers_of_compose_can_write_and_become_nothing() -> None:
    for name in ("migrate", "application", "outboxd"):
        assert service(name)["read_only"] is True
        assert service(name)["cap_drop"] == ["ALL"]
        assert service(name)["security_opt"] == ["no-new-privileges:true"]


# --- Kubernetes --------------------------------------------------------------------------------------------


def test_kubernetes_accepts_the_manifest() -> None:
    for kind in ("Job", "Deployment", "Service"):
        kubernetes_validate.validate(deployments.kubernetes(kind), "1.30", strict=True)


def test_outboxd_is_a_native_sidecar_of_the_application_s_image() -> None:
    (application,) = deployments.pod("Deployment")["containers"]

    assert deployments.sidecar()["image"] == application["image"]
    assert deployments.pod("Job")["containers"][0]["image"] == application["image"]


def test_liveness_and_start_ask_whether_the_loop_turns_and_nobody_asks_for_readiness() -> None:
    sidecar = deployments.sidecar()

    for probe in ("startupProbe", "livenessProbe"):
        assert sidecar[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert "readinessProbe" not in sidecar, "the application would leave its Service when the outbox stalls"
    live = sidecar["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= DrainConfig().receiver_timeout_s


def test_the_pod_is_given_time_for_the_application_and_then_for_the_sidecar() -> None:
    pod = deployments.pod("Deployment")
    (application,) = pod["containers"]
    before = application["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pod["terminationGracePeriodSeconds"] > before + DrainConfig().grace_period_s + HARD_STOP_S


def test_a_scraper_finds_the_metrics() -> None:
    sidecar = deployments.sidecar()
    environment = {variable["name"]: variable["value"] for variable in sidecar["env"]}
    notes = deployments.kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert environment["OUTBOX_HTTP_LISTEN"] == f":{PORT}", "the pod's interface, not the loopback"
    assert sidecar["ports"] == [{"name": "metrics", "containerPort": PORT}]
    assert notes["prometheus.io/port"] == str(PORT)
    assert notes["prometheus.io/path"] == "/metrics"


def test_secrets_are_mounted_files_and_no_pod_that_serves_has_the_owner_s() -> None:
    for kind, secret in (("Job", "outboxd-owner"), ("Deployment", "outboxd")):
        pod = deployments.pod(kind)
        assert [volume["secret"]["secretName"] for volume in pod["volumes"]] == [secret]
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        for variable in [v for container in containers for v in container.get("env", [])]:
            assert variable["name"].removesuffix("_FILE") in {*ENVIRONMENT, "OUTBOX_CONFIG"}
            if "DSN" in variable["name"]:
                assert variable["value"] == f"/run/secrets/{secret}/dsn"


def test_pods_are_not_root_and_can_become_nothing() -> None:
    for kind in ("Job", "Deployment"):
        pod = deployments.pod(kind)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} == set(container["resources"]), container["name"]


def test_the_migration_is_tried_again_only_where_that_can_help() -> None:
    (rule,) = deployments.kubernetes("Job")["spec"]["podFailurePolicy"]["rules"]

    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 78]
    assert deployments.pod("Job")["restartPolicy"] == "Never", "a failure policy needs it"


# --- cron and README ---------------------------------------------------------------------------------------


def test_cron_runs_every_minute_within_the_minute() -> None:
    job = deployments.cron()
    words = job.command.split()

    assert job.schedule == "* * * * *"
    assert job.account == "outboxd"
    assert "--quiet" in words
    assert float(words[words.index("--max-seconds") + 1]) < 60
    assert "/usr/local/bin" in job.environment["PATH"].split(":"), "cron's own path has no outboxd"


def test_the_readme_says_first_that_the_sidecar_is_the_application_s_image() -> None:
    text = README.read_text("utf-8")

    advice = text.index("the sidecar is your application's own image")
    assert advice < min(text.index(word) for word in ("docker build", "## Compose", "## Kubernetes"))


def test_commands_of_the_readme_name_files_that_exist() -> None:
    named = re.findall(r"--file(?:name)?[ =](\S+)", "\n".join(deployments.shell_blocks(README)))

    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).is_file()] == []
