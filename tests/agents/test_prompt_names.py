"""What a step's prompt is."""

from __future__ import annotations

import pytest

from airflow_agent_provider.agents.prompt_names import prompt_file, prompt_url


@pytest.mark.parametrize(
    ("prompt", "is_file", "is_url"),
    [
        ("prompts/plan.md", True, False),
        ("plan.txt", True, False),
        ("plan.j2", True, False),
        ("plan.md.jinja2", True, False),
        ("s3://bucket/plan.md", False, True),
        ("s3://bucket/plan", False, True),
        ("s3://bucket/a plan.md", False, False),
        ("prompts/plan.markdown", False, False),
        ("Read plan.md", False, False),
        ("plan.md\n", False, False),
        (" plan.md", False, False),
        ("plan\n.md", False, False),
        ("plan\u2028.md", False, False),
        ("Plan it.", False, False),
        ("", False, False),
    ],
)
def test_a_prompt_is_a_file_a_url_or_text(prompt: str, is_file: bool, is_url: bool) -> None:
    assert prompt_file(prompt) is is_file
    assert prompt_url(prompt) is is_url
