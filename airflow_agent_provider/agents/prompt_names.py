"""What a step's ``prompt`` is: the name of a file, a URL, or the text itself.

The DAG factory asks when it checks a workflow, the prompts room when it renders one; both ask here,
so that they never disagree.
"""

from __future__ import annotations

import re

#: Endings by which a prompt is known as the name of a template.
PROMPT_SUFFIXES = (".md", ".txt", ".j2", ".jinja2")

_URL = re.compile(r"s3://\S+\Z")


def prompt_url(prompt: str) -> bool:
    """Return whether ``prompt`` is the URL of a template in object storage."""
    return _URL.match(prompt) is not None


def prompt_file(prompt: str) -> bool:
    """Return whether ``prompt`` is the name of a template file.

    It is one if it is a single line without white space that ends in one of
    :data:`PROMPT_SUFFIXES`. An ``s3://`` URL is none, and anything else is the template's text.

    :param prompt: a step's prompt, as the workflow gives it.
    """
    named = prompt.endswith(PROMPT_SUFFIXES) and len(prompt.split(maxsplit=1)) == 1
    return named and prompt == prompt.strip() and not prompt_url(prompt)
