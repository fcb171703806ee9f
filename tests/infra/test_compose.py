"""The compose file's structure: no engine is needed to see that its parts fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: Ends by itself.
ONE_SHOT = {"migrate"}


def _environment() -> list[tuple[str, str, str]]:
    return [
        (service, name, str(value))
        for service, values in SERVICES.items()
        for name, value in values.get("environment", {}).items()
    ]


@pytest.mark.parametrize("service", sorted(set(SERVICES) - ONE_SHOT))
def test_each_lasting_service_is_checked_and_started_again(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert SERVICES[service]["restart"] == "unless-stopped"


def test_a_secret_has_no_default() -> None:
    secrets = [
        value
        for _, name, value in _environment()
        if re.search(r"PASSWORD|SECRET|FERNET|SQL_ALCHEMY", name) and not name.endswith("_FILE")
    ]

    assert len(secrets) >= 6
    assert [value for value in secrets if not re.search(r"\$\{\w+:\?", value)] == []


def test_the_scripted_vendors_get_no_secret() -> None:
    assert [name for service, name, _ in _environment() if service == "rehearsal"] == []


def test_services_wait_for_ones_that_are_there_and_tell_when_they_are_ready() -> None:
    conditions = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}
    for values in SERVICES.values():
        for other, how in values.get("depends_on", {}).items():
            assert conditions[how["condition"]] in SERVICES[other]


def test_each_named_volume_is_declared_and_used() -> None:
    named = {
        volume.split(":")[0]
        for values in SERVICES.values()
        for volume in values.get("volumes", [])
        if not volume.startswith(".")
    }

    assert named == set(COMPOSE["volumes"])


def test_each_folder_that_is_mounted_or_copied_exists() -> None:
    mounted = {
        volume.split(":")[0]
        for values in SERVICES.values()
        for volume in values.get("volumes", [])
        if volume.startswith(".")
    }
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", _dockerfile(), re.M)

    for path in [*mounted, *" ".join(copied).split()]:
        assert (ROOT / path).exists(), path


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for values in SERVICES.values() for port in values.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_images_are_pinned_to_what_is_tested() -> None:
    ministack = re.search(r"ministack==([\d.]+)", (ROOT / "Makefile").read_text())

    assert ministack is not None
    assert SERVICES["ministack"]["image"] == f"ministackorg/ministack:{ministack.group(1)}"
    assert re.search(r"^FROM apache/airflow:3\.3\.\d+-python3\.\d+$", _dockerfile(), re.M)
    assert all(re.search(r":[\w.-]+$", values["image"]) for values in SERVICES.values())


def _dockerfile() -> str:
    return (ROOT / "infra" / "Dockerfile").read_text()
