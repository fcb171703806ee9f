"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from airflow_agent_provider.agents.failures import FAILURE_CLASSES
from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.provider_info import get_provider_info
from airflow_agent_provider.rehearsal.script import Script
from dag_factory.reader import read_definition

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
YAML = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)
WORKFLOWS = [text for text in YAML if re.search("^name:", text, re.M)]
SCRIPTS = [text for text in YAML if not re.search("^name:", text, re.M)]


def test_the_first_workflow_is_the_seed() -> None:
    seed = (ROOT / "dags" / "feature-implementation.yaml").read_text()

    assert WORKFLOWS[0].split("\n", 1)[1] == seed


def test_its_own_workflow_is_valid(tmp_path: Path) -> None:
    (own,) = WORKFLOWS[1:]
    file = tmp_path / "dependency-report.yaml"
    file.write_text(own)

    workflow = read_definition(file).workflow

    assert [step.id for step in workflow.steps] == ["survey", "report"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_workflows_of_the_pages_are_valid(tmp_path: Path, page: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
    (tmp_path / "prompts").mkdir()
    for text in blocks:
        if name := re.match(r"name: (\S+)$", text, re.M):
            for prompt in re.findall(r"prompt: (prompts/\S+)", text):
                (tmp_path / prompt).write_text("Do it.")
            file = tmp_path / f"{name[1]}.yaml"
            file.write_text(text)
            assert read_definition(file).workflow.name == name[1]


def test_its_rehearsal_script_is_valid_and_fits_its_workflow() -> None:
    (script,) = SCRIPTS
    (own,) = WORKFLOWS[1:]

    steps = Script.model_validate(yaml.safe_load(script)).steps

    assert set(steps) == {step["id"] for step in yaml.safe_load(own)["steps"]}


def test_every_setting_is_in_the_table() -> None:
    options = get_provider_info()["config"]["agents"]["options"]
    settings = README.partition("\n## Settings\n")[2].partition("\n## ")[0]

    assert set(re.findall(r"^\| `(\w+)` \| .* \| .* \|$", settings, re.M)) == set(options)


def test_every_failure_class_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`[A-Z]\w+`.*?) \|", README, re.M)

    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(FAILURE_CLASSES)


@pytest.mark.parametrize("agent", AGENTS.values(), ids=list(AGENTS))
def test_every_agent_has_its_command(agent: object) -> None:
    name, connection = getattr(agent, "name", ""), getattr(agent, "connection", "")

    assert f"airflow connections add {connection} --conn-type {name} " in README


def test_every_file_that_it_links_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)

    assert len(links) >= 3
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_it_names_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))

    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M)) <= targets
