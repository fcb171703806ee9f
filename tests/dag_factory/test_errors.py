"""Each kind of broken definition, and exactly what is said of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from airflow_agent_provider.agents.registry import AGENTS, AgentSpec
from dag_factory.errors import InvalidWorkflow, Problem, nearest, one_line, printable, show
from dag_factory.reader import read_definition


class Case(NamedTuple):
    """A broken definition.

    :param name: what is broken.
    :param text: the file; it is called ``w.yaml``, or ``w.json`` where it starts with a brace.
    :param lines: what is said, after the file's name; what stands in braces there is filled in by
        :func:`said`.
    """

    name: str
    text: str | bytes
    lines: list[str]


def steps(*lines: str) -> str:
    """Return a definition of two steps, ``a`` and the one whose lines are given."""
    given = "".join(f"    {line}\n" for line in lines)
    return f"name: w\nsteps:\n  - {{id: a, agent: codex, prompt: go}}\n  - id: b\n{given}"


GOOD_STEP = "steps: [{id: a, agent: codex, prompt: go}]\n"

FILE = [
    Case("empty file", "", ["1:1: the file is empty; a workflow has a name and steps"]),
    Case(
        "only a comment", "# later\n", ["1:1: the file is empty; a workflow has a name and steps"]
    ),
    Case(
        "not a mapping",
        "- a\n- b\n",
        [
            "1:1: the file is a list, not a mapping; "
            "a workflow is a mapping that has a name and steps"
        ],
    ),
    Case(
        "a tab",
        "name: w\nsteps:\n\t- id: a\n",
        ["3:1: a tab; indent with spaces"],
    ),
    Case(
        "a tab after spaces",
        "name: w\nsteps:\n  - id: a\n  \tagent: codex\n",
        ["4:3: a tab; indent with spaces"],
    ),
    Case(
        "not UTF-8",
        b"name: w\ndescription: caf\xe9\n",
        ["2:17: byte 0xe9 is not UTF-8; save the file as UTF-8"],
    ),
    Case(
        "a control character",
        "name: w\ndescription: a\x07b\n",
        ["2:15: U+0007 is not allowed in YAML; leave it out"],
    ),
    Case(
        "an escaped control character",
        'name: w\ndescription: "a\\0b"\n' + GOOD_STEP,
        ["2:14: the character U+0000 cannot be stored; leave it out"],
    ),
    Case(
        "too big",
        "#" * ((1 << 20) + 1),
        ["1:1: the file is too big; at most 1024 KiB"],
    ),
    Case(
        "a colon in plain text",
        "name: w\ndescription: Plan: then do\n",
        [
            "2:18: a ':' cannot stand here; check the indentation, "
            "and put text that holds ': ' in quotes"
        ],
    ),
    Case(
        "wrong indentation",
        "name: w\nsteps:\n  - id: a\n   agent: codex\n",
        ["4:4: no '- ' where a list goes on; check the indentation, here and above"],
    ),
    Case(
        "a list that goes on as a mapping",
        "name: w\nsteps:\n  - id: a\n  agent: codex\n",
        ["4:3: no '- ' where a list goes on; check the indentation, here and above"],
    ),
    Case(
        "an open quote",
        'name: w\ndescription: "never closed\n',
        ["2:14: these quotes are never closed; close them"],
    ),
    Case(
        "an open bracket",
        "name: w\ntags: [a, b\nsteps: []\n",
        ["3:6: a list in brackets is not closed; add ',' or ']'"],
    ),
    Case(
        "a character that starts nothing",
        "name: w\ndescription: @home\n",
        ["2:14: this character cannot start a value; put the value in quotes"],
    ),
    Case(
        "a key without a colon",
        "name: w\nsteps\n",
        ["3:1: a key without a ':'; write 'key: value'"],
    ),
    Case(
        "an unknown escape",
        'name: w\ndescription: "a\\d"\n',
        ["2:16: an unknown escape; write \\\\ for a backslash, or use single quotes"],
    ),
    Case(
        "any other syntax error",
        "%YAML 3.0\n---\nname: w\n",
        ["1:1: not YAML: found incompatible YAML document; check indentation, quotes and brackets"],
    ),
    Case(
        "two documents",
        "name: w\n" + GOOD_STEP + "---\nname: v\n",
        ["3:1: a second document starts here; a file holds one workflow, without '---' in it"],
    ),
    Case(
        "an object tag",
        "name: w\ndescription: !!python/object/apply:os.system [id]\n" + GOOD_STEP,
        [
            "2:14: 'description' is a list, not text; write it as one text",
            "2:14: the tag '!!python/object/apply:os.system' is not supported; "
            "write the plain value",
        ],
    ),
    Case(
        "a merge key",
        "name: w\nsteps:\n  - &a {id: a, agent: codex, prompt: go}\n  - {<<: *a, id: b}\n",
        [
            "4:5: step 'b' has no 'prompt'; "
            "add it, or 'run' or 'approve' for a step of another kind",
            "4:5: step 'b' has no agent; name one here or under 'defaults': {agents}",
            "4:6: merge keys are not supported; use 'defaults', or write the keys out",
        ],
    ),
    Case(
        "an unknown alias",
        "name: w\ndescription: *nowhere\n" + GOOD_STEP,
        [
            "2:14: 'description' is empty; give it a value, or remove it",
            "2:14: no anchor is called 'nowhere'; define it before its use",
        ],
    ),
    Case(
        "an alias within its anchor",
        "name: w\ntags: &t [*t]\n" + GOOD_STEP,
        [
            "2:11: item 1 of 'tags' is empty; give it a value, or remove it",
            "2:11: the alias 't' stands within its own anchor",
        ],
    ),
    Case(
        "aliases that multiply",
        "name: w\n"
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        "b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
        "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\n"
        "d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
        "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\n",
        ["6:20: too many values; at most 50000, and aliases count each time"],
    ),
    Case(
        "nested too deeply",
        "name: w\ntags: " + "[" * 100,
        ["2:46: nested too deeply; at most 40 levels"],
    ),
    Case(
        "a duplicate key",
        "name: w\n" + GOOD_STEP + "name: v\n",
        ["3:1: duplicate key 'name'; it is given in line 1 already"],
    ),
    Case(
        "a key that is no text",
        "name: w\n? [a, b]\n: c\n" + GOOD_STEP,
        ["2:3: a key is plain text; put the text of an alias or a collection here instead"],
    ),
    Case(
        "a number that JSON cannot hold",
        "name: w\nparams: {x: {default: .nan}}\n" + GOOD_STEP,
        ["2:23: .nan is no number that JSON can hold; put it in quotes"],
    ),
    Case(
        "a number of many digits",
        "name: w\nparams: {x: {default: " + "9" * 5000 + "}}\n" + GOOD_STEP,
        ["2:23: the number has too many digits; at most 300"],
    ),
]

JSON = [
    Case(
        "JSON with a duplicate key",
        '{"name": "w",\n "steps": [{"id": "a", "agent": "codex", "prompt": "go",\n  "id": "a"}]}',
        ["3:3: duplicate key 'id'; it is given in line 2 already"],
    ),
    Case(
        "JSON with a trailing comma",
        '{"name": "w",\n "steps": [],\n}',
        ["3:1: no key where one belongs; keys are in quotes"],
    ),
    Case(
        "JSON cut short",
        '{"name": "w",\n "steps": [',
        ["2:12: the JSON text ends too early; go on"],
    ),
    Case(
        "JSON with an unknown word",
        '{"name": "w",\n "steps": yes}',
        [
            "2:11: no JSON value; expected a text in double quotes, a number, "
            "'{', '[', true or false"
        ],
    ),
    Case(
        "JSON with an open quote",
        '{"name": "w\n}',
        ["1:12: not JSON: invalid control character at; check the quotes"],
    ),
    Case(
        "JSON with half a surrogate pair",
        '{"name": "w", "description": "\\ud800",\n'
        ' "steps": [{"id": "a", "agent": "codex", "prompt": "go"}]}',
        ["1:30: the character U+D800 cannot be stored; leave it out"],
    ),
]

KEYS = [
    Case(
        "an unknown key of the workflow",
        "name: w\nscedule: '@daily'\n" + GOOD_STEP,
        ["2:1: unknown key 'scedule'; did you mean 'schedule'?"],
    ),
    Case(
        "an unknown key of a step",
        steps("agent: codex", "promt: go"),
        [
            "4:5: step 'b' has no 'prompt'; add it",
            "6:5: unknown key 'promt'; did you mean 'prompt'?",
        ],
    ),
    Case(
        "a key that is near to none",
        steps("agent: codex", "prompt: go", "retry: {zzz: 1}"),
        ["7:13: unknown key 'zzz'; allowed: backoff, count, delay, max_delay, on"],
    ),
    Case(
        "keys of a later release",
        "name: w\ndeadline: 4h\n" + steps("agent: codex", "prompt: go", "resources: {cpu: 1}")[8:],
        [
            "2:1: 'deadline' is not supported yet; remove it",
            "8:5: 'resources' is not supported yet; remove it",
        ],
    ),
    Case(
        "a kind of step of a later release",
        steps("publish: {}"),
        ["5:5: 'publish' is not supported yet; remove it"],
    ),
    Case(
        "a step that does nothing",
        steps("timeout: 5m"),
        [
            "4:5: step 'b' has no 'prompt'; "
            "add it, or 'run' or 'approve' for a step of another kind",
            "4:5: step 'b' has no agent; name one here or under 'defaults': {agents}",
        ],
    ),
    Case(
        "a step that does two things",
        steps("agent: codex", "prompt: go", "run: ruff check ."),
        [
            "7:5: 'run' cannot stand here; "
            "the step has a 'prompt' already, and does one thing; make it two steps",
        ],
    ),
    Case(
        "a command with what is for agents",
        steps("run: ruff check .", "repair: 2", "verify: pytest", "outptu: x"),
        [
            "6:5: 'repair' cannot stand here; it is for a step with 'prompt'",
            "7:5: 'verify' cannot stand here; it is for a step with 'prompt'",
            "8:5: unknown key 'outptu'; did you mean 'output'?",
        ],
    ),
    Case(
        "a command that is blank",
        steps("run: ' '"),
        ["5:10: a blank command proves nothing; write one such as pytest -q"],
    ),
    Case(
        "a condition that is no expression",
        steps("run: make", "when: steps.a.output", "trigger_rule: all_sucess"),
        [
            "6:11: 'steps.a.output' is no expression; one in double braces and nothing else, "
            "such as '{{ steps.review.output.approved }}'",
            "7:19: 'trigger_rule' cannot be 'all_sucess'; did you mean 'all_success'?",
        ],
    ),
    Case(
        "a run's frame",
        "name: w\nmax_active_runs: 0\ntimezone: Europe/Berln\nstart_date: 31.1.2026\n"
        + steps("run: make", "priority: high", "pool: 3")[8:],
        [
            "2:18: 'max_active_runs' is 0; a whole number from 1 to 100000",
            "3:11: unknown time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?",
            "4:13: '31.1.2026' is no date; write 2026-01-31",
            "9:15: 'priority' is 'high', not a whole number; such as 10",
            "10:11: 'pool' is 3, not text; the name of one of Airflow's pools",
        ],
    ),
    Case(
        "keys in the wrong place",
        "name: w\ntimeout: 5m\nverify: pytest\ndefaults: {agent: codex, paths: {allow: a}}\n"
        + steps("prompt: go", "budget: {usd: 5}")[8:],
        [
            "2:1: 'timeout' cannot stand here; "
            "it is for steps, so put it under 'defaults' or into a step",
            "3:1: 'verify' cannot stand here; it is for one step, so move it there",
            "4:26: 'paths' cannot stand here; it is for one step, so move it there",
            "9:5: 'budget' cannot stand here; "
            "it is for the whole workflow, so move it to the file's top level",
        ],
    ),
    Case(
        "unknown keys within keys",
        "name: w\nbudget: {usd: 5, euro: 4}\nsetup: {run: make, file: Makefile}\n"
        + steps(
            "agent: [{name: codex, modle: x}]", "prompt: go", "paths: {allow: '**', forbid: '*'}"
        )[8:],
        [
            "2:18: unknown key 'euro'; allowed: tokens, usd",
            "3:20: unknown key 'file'; did you mean 'files'?",
            "7:27: unknown key 'modle'; did you mean 'model'?",
            "9:26: unknown key 'forbid'; allowed: allow, deny",
        ],
    ),
    Case(
        "an unknown key of a single agent",
        steps("agent: {name: codex, modle: x}", "prompt: go"),
        ["5:26: unknown key 'modle'; did you mean 'model'?"],
    ),
    Case(
        "missing keys",
        "description: nothing else\n",
        ["1:1: the workflow has no 'name'; add it", "1:1: the workflow has no 'steps'; add it"],
    ),
    Case(
        "no steps", "name: w\nsteps: []\n", ["2:8: 'steps' is empty; give it a value, or remove it"]
    ),
    Case(
        "a step that is no mapping",
        "name: w\nsteps:\n  - plan\n",
        ["3:5: item 1 of 'steps' is 'plan', not a mapping; a step starts with '- id: …'"],
    ),
    Case(
        "values of the wrong type",
        "name: w\ndescription: 5\ntags: docs\n"
        + steps("agent: codex", "prompt: go", "prompt_contract: yes", "context: [a]")[8:],
        [
            "2:14: 'description' is 5, not text; put it in quotes",
            "3:7: 'tags' is 'docs', not a list; a list such as [docs, nightly]",
            "9:22: 'prompt_contract' is 'yes', not true or false; write true or false",
            "10:14: 'context' is a list, not a mapping; a mapping of names to values",
        ],
    ),
    Case(
        "an empty value",
        steps("agent: codex", "prompt:"),
        ["6:12: 'prompt' is empty; give it a value, or remove it"],
    ),
    Case(
        "agents without a name",
        "name: w\ndefaults: {agent: [codex, '']}\n"
        "steps:\n  - {id: a, agent: [], prompt: go}\n  - {id: b, agent: {model: x}, prompt: go}\n",
        [
            "2:27: 'name' is empty; give it a value, or remove it",
            "4:20: 'agent' is empty; give it a value, or remove it",
            "5:20: the agent has no 'name'; add it",
        ],
    ),
    Case(
        "agents of the wrong type",
        "name: w\ndefaults: {agent: 5}\n" + steps("agent: [codex, 5]", "prompt: go")[8:],
        [
            "2:19: 'agent' is 5, not a list; "
            "a name, a mapping of name, model, connection and options, or a list of these",
            "6:20: item 2 of 'agent' is 5, not a mapping; "
            "a name, or a mapping of name, model, connection and options",
        ],
    ),
    Case(
        "a long tag",
        f"name: w\ntags: [{'x' * 101}]\n" + GOOD_STEP,
        ["2:8: item 1 of 'tags' is too long; at most 100 characters"],
    ),
]

VALUES = [
    Case(
        "a name that is not the file's",
        "name: v\n" + GOOD_STEP,
        ["1:7: the name is 'v', but the file is 'w.yaml'; make them equal"],
    ),
    Case(
        "an id that is no name",
        "name: w\nsteps: [{id: ../a, agent: codex, prompt: go}]\n",
        [
            "2:14: '../a' is no name; up to 200 letters, digits, '-', '_' and '.', "
            "the first a letter or digit"
        ],
    ),
    Case(
        "a bad duration",
        steps("agent: codex", "prompt: go", "timeout: 45", "stall: 5 minutes"),
        [
            "7:14: 45 is no duration; write 30s, 45m, 2h, 1d or 1h30m",
            "8:12: '5 minutes' is no duration; write 30s, 45m, 2h, 1d or 1h30m",
        ],
    ),
    Case(
        "a duration out of range",
        steps("agent: codex", "prompt: go", "timeout: 0s", "stall: 400d"),
        [
            "7:14: '0s' is out of range; from 1s to 365d",
            "8:12: '400d' is out of range; from 1s to 365d",
        ],
    ),
    Case(
        "a bad retry",
        steps("agent: codex", "prompt: go", "retry: {count: -1, backoff: linear}"),
        [
            "7:20: 'count' is -1; a whole number from 0 to 100",
            "7:33: 'backoff' cannot be 'linear'; allowed: constant, exponential, none",
        ],
    ),
    Case(
        "delays without a wait",
        steps("agent: codex", "prompt: go", "retry: {backoff: none, delay: 1m}"),
        ["7:12: 'backoff: none' retries at once; remove the delays, or the backoff"],
    ),
    Case(
        "a longest delay that is shorter",
        steps("agent: codex", "prompt: go", "retry: {delay: 10m, max_delay: 1m}"),
        ["7:12: 'max_delay' is shorter than 'delay'; make it the longer one"],
    ),
    Case(
        "a retry that is a word",
        steps("agent: codex", "prompt: go", "retry: twice"),
        [
            "7:12: 'retry' is 'twice', not a mapping; "
            "a number, or a mapping of count, delay, backoff, max_delay and on"
        ],
    ),
    Case(
        "failure classes to retry on",
        "name: w\ndefaults: {agent: codex, retry: {on: RateLimit}}\nsteps:\n"
        "  - {id: a, prompt: go, retry: {on: [Unavailable, AuthenticationFailed]}}\n"
        "  - {id: b, prompt: go, retry: {on: [PolicyViolated]}}\n"
        "  - {id: c, prompt: go, retry: {on: xyz}}\n"
        "  - {id: d, prompt: go, retry: {on: []}}\n"
        "  - {id: e, prompt: go, retry: {on: 503}}\n",
        [
            "2:38: unknown failure class 'RateLimit'; did you mean 'RateLimited'?",
            "4:51: 'AuthenticationFailed' is never retried, since no retry can help; remove it",
            "5:38: 'PolicyViolation' is never retried, since no retry can help; remove it",
            "6:37: unknown failure class 'xyz'; allowed: AgentFailed, ContextExhausted, "
            "Interrupted, OutputInvalid, RateLimited, Stalled, TimedOut, Unavailable, "
            "VerificationFailed",
            "7:37: 'on' is empty; give it a value, or remove it",
            "8:37: 'on' is 503, not a list; "
            "the name of a failure class such as Unavailable, or a list of names",
        ],
    ),
    Case(
        "an unknown change policy and network",
        steps("agent: codex", "prompt: go", "changes: require", "network: closed"),
        [
            "7:14: 'changes' cannot be 'require'; did you mean 'required'?",
            "8:14: 'network' cannot be 'closed'; allowed: model, open",
        ],
    ),
    Case(
        "repairs out of range",
        "name: w\ndefaults: {repair: -1}\n"
        + steps("agent: codex", "prompt: go", "repair: 11")[8:]
        + "  - {id: c, agent: codex, prompt: go, repair: often}\n",
        [
            "2:20: 'repair' is -1; a whole number from 0 to 10",
            "8:13: 'repair' is 11; a whole number from 0 to 10",
            "9:47: 'repair' is 'often', not a whole number; such as 3",
        ],
    ),
    Case(
        "commands that say nothing",
        "name: w\nsetup: {run: ['uv sync', '']}\nsteps:\n"
        "  - {id: a, agent: codex, prompt: go, verify: ' '}\n"
        "  - {id: b, agent: codex, prompt: go, verify: [pytest -q, {run: make}]}\n"
        "  - {id: c, agent: codex, prompt: go, verify: true}\n",
        [
            "2:26: item 2 of 'run' is empty; give it a value, or remove it",
            "4:47: a blank command proves nothing; write one such as pytest -q",
            "5:59: item 2 of 'verify' is a mapping, not text; write it as one text",
            "6:47: 'verify' is true, not a list; "
            "a shell command such as pytest -q, or a list of commands",
        ],
    ),
    Case(
        "patterns that name nothing of the workspace",
        "name: w\nsteps:\n"
        "  - {id: a, agent: codex, prompt: go, paths: {allow: ['src/**', /etc/*], deny: ../*}}\n"
        "  - {id: b, agent: codex, prompt: go, paths: {allow: docs/, deny: ['*.{a,b}']}}\n"
        "  - {id: c, agent: codex, prompt: go, paths: {allow: 'a/**.py', deny: ['!a', './a']}}\n"
        "  - {id: d, agent: codex, prompt: go, paths: {}}\n"
        "  - {id: e, agent: codex, prompt: go, paths: {deny: []}}\n"
        "  - {id: f, agent: codex, prompt: go, paths: 'src/**'}\n"
        "  - {id: g, agent: codex, prompt: go, paths: {allow: 5}}\n",
        [
            "3:65: '/etc/*' leads out of the workspace; a pattern below it, without '..'",
            "3:80: '../*' leads out of the workspace; a pattern below it, without '..'",
            "4:54: 'docs/' names no file; write 'docs/**' for all that is in a folder",
            "4:68: '*.{a,b}' holds '{'; only *, ? and ** are special, so write ? in its place",
            "5:54: 'a/**.py' has '**' beside other characters; "
            "'**' is a whole name, as in src/**/*.py",
            "5:72: '!a' starts with '!'; write the pattern alone, under 'allow' or 'deny'",
            "5:78: './a' is no path of the workspace; write a pattern such as src/**",
            "6:46: 'paths' is empty; give 'allow', 'deny' or both",
            "7:53: 'deny' is empty; give it a value, or remove it",
            "8:46: 'paths' is 'src/**', not a mapping; a mapping of allow and deny",
            "9:54: 'allow' is 5, not a list; a pattern such as src/**, or a list of patterns",
        ],
    ),
    Case(
        "budgets out of range",
        "name: w\nbudget: {usd: 0, tokens: -5}\n" + GOOD_STEP,
        [
            "2:15: 'usd' is 0; a number above 0",
            "2:26: 'tokens' is -5; a whole number above 0",
        ],
    ),
    Case(
        "budgets that are no numbers",
        "name: w\nbudget: {usd: $5, tokens: 2_000_000}\n" + GOOD_STEP,
        [
            "2:15: 'usd' is '$5', not a number; such as 5 or 0.5",
            "2:27: 'tokens' is '2_000_000', not a whole number; such as 2000000",
        ],
    ),
    Case(
        "a budget without its unit",
        "name: w\nbudget: 5\n" + GOOD_STEP,
        ["2:9: 'budget' is 5, not a mapping; a mapping of usd and tokens"],
    ),
    Case(
        "an empty budget",
        "name: w\nbudget: {}\n" + GOOD_STEP,
        ["2:9: 'budget' is empty; give 'usd', 'tokens' or both"],
    ),
    Case(
        "a set-up that is a command",
        "name: w\nsetup: uv sync\n" + GOOD_STEP,
        ["2:8: 'setup' is 'uv sync', not a mapping; a mapping of run and files"],
    ),
    Case(
        "a set-up without a command",
        "name: w\nsetup: {files: uv.lock}\n" + GOOD_STEP,
        ["2:8: the setup has no 'run'; add it"],
    ),
    Case(
        "a set-up with other files",
        "name: w\nsetup: {run: [], files: [/etc/passwd, '*.lock', 5]}\n" + GOOD_STEP,
        [
            "2:14: 'run' is empty; give it a value, or remove it",
            "2:26: '/etc/passwd' leads out of the workspace; a path below it, without '..'",
            "2:39: '*.lock' is a pattern; name each file",
            "2:49: item 3 of 'files' is 5, not text; put it in quotes",
        ],
    ),
    Case(
        "an unknown access",
        steps("agent: codex", "prompt: go", "access: readonly"),
        ["7:13: 'access' cannot be 'readonly'; did you mean 'read_only'?"],
    ),
    Case(
        "outputs outside the workspace",
        "name: w\nsteps:\n"
        "  - {id: a, agent: codex, prompt: go, output: ../plan.md}\n"
        "  - {id: b, agent: codex, prompt: go, output: /etc/passwd}\n"
        "  - {id: c, agent: codex, prompt: go, output: .git/config}\n"
        "  - {id: d, agent: codex, prompt: go, output: {}}\n",
        [
            "3:47: '../plan.md' leads out of the workspace; a path below it, without '..'",
            "4:47: '/etc/passwd' leads out of the workspace; a path below it, without '..'",
            "5:47: '.git/config' is no file of the workspace; a path such as docs/plan.md",
            "6:47: 'output' is empty; give a 'path', a 'schema' or both",
        ],
    ),
    Case(
        "a repository with a password",
        "name: w\nrepository: https://me:secret@example.com/r.git\n" + GOOD_STEP,
        [
            "2:13: the URL holds credentials, which everybody could read; "
            "put them into a connection of type git, and name it with 'connection'"
        ],
    ),
    Case(
        "two models",
        steps("agent: {name: codex, model: x}", "model: y", "prompt: go"),
        ["4:5: the model is given twice; keep 'model' here or under 'agent'"],
    ),
    Case(
        "two models in a list of agents",
        steps("agent: [codex, {name: cursor, model: x}]", "model: y", "prompt: go"),
        ["4:5: the model is given twice; keep 'model' here or under 'agent'"],
    ),
]

SCHEDULES = [
    Case(
        "a bad cron expression",
        "name: w\nschedule: 61 * * * *\n" + GOOD_STEP,
        [
            "2:11: '61 * * * *' is no cron expression: [61 * * * *] is not acceptable, "
            "out of range; such as '0 6 * * 1-5'"
        ],
    ),
    Case(
        "a cron expression of other fields",
        "name: w\nschedule: every day\n" + GOOD_STEP,
        [
            "2:11: 'every day' is no cron expression; five fields, minute hour day month weekday, "
            "such as '0 6 * * 1-5'"
        ],
    ),
    Case(
        "a time that never comes",
        "name: w\nschedule: 0 0 31 2 *\n" + GOOD_STEP,
        [
            "2:11: '0 0 31 2 *' is no cron expression: failed to find prev date; "
            "such as '0 6 * * 1-5'"
        ],
    ),
    Case(
        "an unknown preset",
        "name: w\nschedule: '@dayly'\n" + GOOD_STEP,
        ["2:11: unknown schedule '@dayly'; did you mean '@daily'?"],
    ),
    Case(
        "a schedule and a parameter without default",
        "name: w\nschedule: '@daily'\nparams: {issue: {type: string}}\n" + GOOD_STEP,
        ["3:10: the parameter 'issue' has no default, but runs start by schedule; add one"],
    ),
    Case(
        "bad parameters",
        "name: w\nparams:\n  ref: {type: string}\n  a: {type: strng}\n"
        "  b: {type: integer, default: x}\n  c: 5\n" + GOOD_STEP,
        [
            "3:3: every workflow has the parameter 'ref'; set its default by 'repository'",
            "4:13: no JSON schema: 'strng' is not valid under any of the given schemas; "
            "see json-schema.org",
            "5:31: the default does not fit the schema: 'x' is not of type 'integer'; "
            "change either",
            "6:6: 'c' is 5, not a JSON schema; such as {type: string, default: x}",
        ],
    ),
    Case(
        "parameters whose schemas cannot be used",
        "name: w\nparams:\n  a: {pattern: (, default: x}\n  b: {$ref: '#', default: x}\n"
        "  c: {$ref: 'https://example.com/schema', default: x}\n" + GOOD_STEP,
        [
            "3:16: no JSON schema: '(' is not a 'regex'; see json-schema.org",
            "4:27: the default does not fit the schema: it refers to itself without end; "
            "change either",
            "5:52: the default does not fit the schema: Unresolvable: https://example.com/schema; "
            "change either",
        ],
    ),
]

GRAPH = [
    Case(
        "a duplicate id",
        "name: w\nsteps:\n  - {id: a, agent: codex, prompt: go}\n"
        "  - {id: a, agent: codex, prompt: go}\n",
        ["4:10: duplicate id 'a'; step 1 has it already"],
    ),
    Case(
        "unknown dependencies",
        "name: w\nsteps:\n  - {id: plan, agent: codex, prompt: go}\n"
        "  - {id: test, agent: codex, prompt: go, depends_on: [plann, xyz]}\n",
        [
            "4:55: unknown step 'plann'; did you mean 'plan'?",
            "4:62: unknown step 'xyz'; allowed: plan",
        ],
    ),
    Case(
        "a step that depends on itself",
        steps("agent: codex", "prompt: go", "depends_on: b"),
        ["7:17: step 'b' depends on itself; remove this"],
    ),
    Case(
        "a dependency named twice",
        steps("agent: codex", "prompt: go", "depends_on: [a, a]"),
        ["7:21: 'a' is named twice; remove one"],
    ),
    Case(
        "two circles",
        "name: w\ndefaults: {agent: codex}\nsteps:\n"
        "  - {id: a, prompt: go, depends_on: c}\n"
        "  - {id: b, prompt: go, depends_on: a}\n"
        "  - {id: c, prompt: go, depends_on: [b]}\n"
        "  - {id: d, prompt: go, depends_on: [a, e]}\n"
        "  - {id: e, prompt: go, depends_on: d}\n",
        [
            "4:37: the steps wait for each other: 'a' → 'b' → 'c' → 'a'; "
            "remove one 'depends_on' of these",
            "7:41: the steps wait for each other: 'd' → 'e' → 'd'; "
            "remove one 'depends_on' of these",
        ],
    ),
    Case(
        "no agent",
        "name: w\nsteps: [{id: a, prompt: go}]\n",
        ["2:9: step 'a' has no agent; name one here or under 'defaults': {agents}"],
    ),
    Case(
        "unknown agents",
        "name: w\ndefaults: {agent: {name: codx}}\nsteps:\n"
        "  - {id: a, prompt: go}\n  - {id: b, agent: gpt, prompt: go}\n",
        [
            "2:26: unknown agent 'codx'; did you mean 'codex'?",
            "5:20: unknown agent 'gpt'; allowed: {agents}",
        ],
    ),
    Case(
        "unknown agents in a list",
        "name: w\ndefaults: {agent: [codex, gpt]}\nsteps:\n"
        "  - {id: a, prompt: go}\n  - {id: b, agent: [{name: cursr}, codx], prompt: go}\n",
        [
            "2:27: unknown agent 'gpt'; allowed: {agents}",
            "5:28: unknown agent 'cursr'; did you mean 'cursor'?",
            "5:36: unknown agent 'codx'; did you mean 'codex'?",
        ],
    ),
    Case(
        "an agent named twice",
        "name: w\ndefaults: {agent: [codex, codex]}\nsteps:\n"
        "  - {id: a, agent: [codex, {name: codex, connection: codex_default}], prompt: go}\n"
        "  - {id: b, agent: [codex, {name: codex, connection: mine}, codex], prompt: go}\n",
        [
            "2:27: 'codex' is named twice, with the same connection; remove one",
            "4:28: 'codex' is named twice, with the same connection; remove one",
            "5:61: 'codex' is named twice, with the same connection; remove one",
        ],
    ),
    Case(
        "one model for different agents",
        "name: w\ndefaults: {agent: [codex, cursor], model: x}\nsteps:\n"
        "  - {id: a, prompt: go}\n"
        "  - {id: b, agent: [cursor, codex], prompt: go}\n"
        "  - {id: c, agent: [cursor, codex], model: x, prompt: go}\n",
        [
            "2:43: one 'model' for different agents; give it to those of the list that know it",
            "5:20: one 'model' for different agents; give it to those of the list that know it",
            "6:44: one 'model' for different agents; give it to those of the list that know it",
        ],
    ),
    Case(
        "an agent that cannot work read-only",
        "name: w\ndefaults: {access: read_only}\nsteps:\n"
        "  - {id: a, agent: mute, prompt: go}\n"
        "  - {id: b, agent: mute, prompt: go, access: read_only}\n"
        "  - {id: c, agent: mute, prompt: go, access: write}\n",
        [
            "4:20: Mute cannot work read-only; give it 'access: write'{or:read_only}",
            "5:46: Mute cannot work read-only; give it 'access: write'{or:read_only}",
        ],
    ),
    Case(
        "agents of a list that cannot work read-only",
        "name: w\ndefaults: {agent: [codex, mute]}\nsteps:\n"
        "  - {id: a, prompt: go, access: read_only}\n"
        "  - {id: b, agent: [codex, {name: mute}], prompt: go, access: write}\n"
        "  - {id: c, agent: [codex, {name: mute}], prompt: go, access: read_only}\n",
        [
            "4:33: Mute cannot work read-only; give it 'access: write'{or:read_only}",
            "6:63: Mute cannot work read-only; give it 'access: write'{or:read_only}",
        ],
    ),
    Case(
        "an agent of the defaults that cannot work read-only",
        "name: w\ndefaults: {agent: mute, access: read_only}\nsteps:\n  - {id: a, prompt: go}\n",
        ["4:5: Mute cannot work read-only; give it 'access: write'{or:read_only}"],
    ),
    Case(
        "a read-only step that must change something",
        "name: w\ndefaults: {agent: codex, access: read_only}\nsteps:\n"
        "  - {id: a, prompt: go, changes: required}\n"
        "  - {id: b, prompt: go, changes: required, access: write}\n"
        "  - {id: c, prompt: go, changes: forbidden}\n",
        [
            "4:34: a read-only step cannot change what it must; "
            "give it 'access: write', or remove this"
        ],
    ),
    Case(
        "a budget that an agent says nothing of",
        "name: w\nbudget: {usd: 5, tokens: 100}\ndefaults: {agent: [codex, mute]}\nsteps:\n"
        "  - {id: a, prompt: go}\n"
        "  - {id: b, prompt: go, agent: {name: mute}}\n"
        "  - {id: c, prompt: go, agent: [codex, cursor]}\n",
        [
            "3:27: Mute reports neither cost nor tokens, which the budget's 'usd' counts; "
            "remove 'usd'{or:cost,usage}",
            "3:27: Mute reports no tokens, which the budget's 'tokens' counts; "
            "remove 'tokens'{or:usage}",
            "6:32: Mute reports neither cost nor tokens, which the budget's 'usd' counts; "
            "remove 'usd'{or:cost,usage}",
            "6:32: Mute reports no tokens, which the budget's 'tokens' counts; "
            "remove 'tokens'{or:usage}",
        ],
    ),
    Case(
        "an agent that gives no structured answer",
        "name: w\ndefaults: {agent: mute}\nsteps:\n"
        "  - {id: a, prompt: go, output: {schema: schemas/plan.json}}\n"
        "  - {id: b, prompt: go, output: {path: plan.json, schema: schemas/plan.json}}\n"
        "  - {id: c, agent: [codex, mute], prompt: go, output: {schema: schemas/plan.json}}\n",
        [
            "4:42: Mute gives no structured answer; "
            "add a 'path' that it writes the output to{or:structured_output}",
            "6:64: Mute gives no structured answer; "
            "add a 'path' that it writes the output to{or:structured_output}",
        ],
    ),
]

FILES = [
    Case(
        "a missing prompt",
        steps("agent: codex", "prompt: prompts/plann.md"),
        ["6:13: there is no file 'prompts/plann.md'; did you mean 'prompts/plan.md'?"],
    ),
    Case(
        "a missing prompt that is near to none",
        steps("agent: codex", "prompt: review.j2"),
        ["6:13: there is no file 'review.j2'; looked in {folder} and {parent}"],
    ),
    Case(
        "a prompt outside the folders",
        steps("agent: codex", "prompt: ../../etc/motd.txt"),
        [
            "6:13: the path '../../etc/motd.txt' leads elsewhere; "
            "a path below the folder, without '..'"
        ],
    ),
    Case(
        "a prompt whose name is no prompt's",
        steps("agent: codex", "prompt: prompts/plan.markdown"),
        [
            "6:13: 'prompts/plan.markdown' is no prompt file; "
            "its name has no spaces and ends in .md, .txt, .j2, .jinja2"
        ],
    ),
    Case(
        "a URL that names no object",
        steps("agent: codex", "prompt: s3://bucket"),
        ["6:13: 's3://bucket' names no object; write s3://bucket/key"],
    ),
    Case(
        "a missing schema",
        steps("agent: codex", "prompt: go", "output: {schema: schemas/plan.jsn}"),
        ["7:22: there is no file 'schemas/plan.jsn'; did you mean 'schemas/plan.json'?"],
    ),
    Case(
        "schemas that are none",
        "name: w\ndefaults: {agent: codex}\nsteps:\n"
        "  - {id: a, prompt: go, output: {schema: prompts/plan.md}}\n"
        "  - {id: b, prompt: go, output: {schema: {type: objet}}}\n"
        "  - {id: c, prompt: go, output: {schema: 5}}\n"
        "  - {id: d, prompt: go, output: {schema: s3://bucket/plan.json}}\n",
        [
            "4:42: the schema file 'prompts/plan.md' is not JSON: "
            "Expecting value: line 1 column 1 (char 0); mend it",
            "5:49: no JSON schema: 'objet' is not valid under any of the given schemas; "
            "see json-schema.org",
            "6:42: 'schema' is 5; the name of a JSON file, or the schema itself",
            "7:42: a schema in S3 is not supported yet; put the file beside the prompts",
        ],
    ),
]

CASES = [*FILE, *JSON, *KEYS, *VALUES, *SCHEDULES, *GRAPH, *FILES]


def said(line: str, folder: Path) -> str:
    """Return a line with what stands in braces filled in.

    ``{agents}`` are all agents, and ``{or:…}`` is the advice to take one with the capabilities.
    """

    def able(match: re.Match[str]) -> str:
        *others, last = [
            name
            for name, spec in sorted(AGENTS.items())
            if any(getattr(spec.capabilities, one) for one in match[1].split(","))
        ]
        return f", or take the agent {' or '.join([', '.join(others)] * bool(others) + [last])}"

    line = line.replace("{folder}", str(folder)).replace("{parent}", str(folder.parent))
    return re.sub(r"\{or:([a-z_,]+)\}", able, line.replace("{agents}", ", ".join(sorted(AGENTS))))


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_says_what_is_wrong_where_and_what_is_allowed(case: Case, folder: Path) -> None:
    text = case.text if isinstance(case.text, bytes) else case.text.encode()
    name = "w.json" if text.startswith(b"{") else "w.yaml"
    (folder / name).write_bytes(text)

    with pytest.raises(InvalidWorkflow) as raised:
        read_definition(folder / name, f"dags/{name}")

    expected = [f"dags/{name}:{said(line, folder)}" for line in case.lines]
    assert str(raised.value).splitlines() == expected


def test_all_errors_of_a_file_come_at_once_sorted_by_place(folder: Path) -> None:
    parts = "".join(
        f"  - {{id: s{number}, agent: codx, prompt: go, timeout: x, depends_on: nope}}\n"
        for number in range(20)
    )
    (folder / "w.yaml").write_text(f"name: v\nname: w\nschedule: x\nsteps:\n{parts}")

    with pytest.raises(InvalidWorkflow) as raised:
        read_definition(folder / "w.yaml")

    problems = raised.value.problems
    assert len(problems) == 3 + 3 * 20
    places = [(problem.line, problem.column) for problem in problems]
    assert places == sorted(places)


def test_the_same_stem_twice_names_both_files(folder: Path) -> None:
    text = "name: w\n" + GOOD_STEP
    for suffix in (".yaml", ".yml"):
        (folder / f"w{suffix}").write_text(text)
    with pytest.raises(InvalidWorkflow) as raised:
        read_definition(folder / "w.yml", "w.yml")
    assert str(raised.value) == (
        "w.yml:1:7: 'w.yml' and 'w.yaml' define the same workflow; remove or rename one"
    )


def test_a_file_that_cannot_be_read_is_a_located_error(folder: Path) -> None:
    (folder / "notes.md").write_text("# Notes")
    for path, said in (
        (folder / "notes.md", "no workflow's file; its name ends in .yaml, .yml or .json"),
        (folder / "missing.yaml", "there is no such file or folder; check the path"),
        (folder, "not a plain file; name a workflow's file"),
    ):
        with pytest.raises(InvalidWorkflow) as raised:
            read_definition(path, "x.yaml")
        assert str(raised.value) == f"x.yaml:1:1: {said}"


def test_prompts_that_cannot_be_used_are_errors(folder: Path) -> None:
    prompts = folder.parent / "prompts"
    (prompts / "empty.md").write_text("\n")
    (prompts / "latin.md").write_bytes(b"caf\xe9")
    (prompts / "folder.md").mkdir()
    (prompts / "two words.md").write_text("Go.")
    names = ("empty.md", "latin.md", "folder.md", "two words.md")
    parts = "".join(
        f"  - {{id: s{number}, prompt: prompts/{name}}}\n" for number, name in enumerate(names)
    )
    (folder / "w.yaml").write_text(f"name: w\ndefaults: {{agent: codex}}\nsteps:\n{parts}")

    with pytest.raises(InvalidWorkflow) as raised:
        read_definition(folder / "w.yaml", "w.yaml")

    assert str(raised.value).splitlines() == [
        "w.yaml:4:22: the file 'prompts/empty.md' is empty; write it",
        "w.yaml:5:22: the file 'prompts/latin.md' is not UTF-8 at byte 3; save it as UTF-8",
        "w.yaml:6:22: 'prompts/folder.md' is no plain file; name a file",
        "w.yaml:7:22: 'prompts/two words.md' is no prompt file; "
        "its name has no spaces and ends in .md, .txt, .j2, .jinja2",
    ]


def test_where_no_agent_can_do_it_none_is_advised(
    folder: Path, mute: AgentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(AGENTS) - {mute.name}:
        monkeypatch.delitem(AGENTS, name)
    text = "name: w\nbudget: {tokens: 1}\nsteps: [{id: a, agent: mute, prompt: go}]\n"
    (folder / "w.yaml").write_text(text)
    with pytest.raises(InvalidWorkflow) as raised:
        read_definition(folder / "w.yaml", "w.yaml")
    assert str(raised.value) == (
        "w.yaml:3:24: Mute reports no tokens, which the budget's 'tokens' counts; remove 'tokens'"
    )


def test_the_same_problem_is_said_once() -> None:
    problem = Problem("w.yaml", 1, 1, "wrong; right")
    assert InvalidWorkflow([problem, problem]).problems == (problem,)


def test_words_of_errors_stay_on_one_line_and_short() -> None:
    assert show("a\nb") == "'a\\nb'"
    assert len(show("x" * 1000)) == 60
    assert one_line("a\n  b;") == "a b"
    assert len(one_line("x" * 1000)) == 200
    assert printable("caf\udce9.yaml") == "caf\\udce9.yaml"
    assert nearest("x", []) == "there are none"
