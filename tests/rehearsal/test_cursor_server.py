"""The stand-in for Cursor against real git remotes, asked through plain HTTP."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_agent_provider.rehearsal.cursor_agents import step_of
from airflow_agent_provider.rehearsal.cursor_server import CursorServer, RateLimit
from airflow_agent_provider.rehearsal.script import Script
from tests.stand_ins import PLAN_PROMPT, Remote, eventually, make_remote, script

Start = Callable[[Script], httpx.Client]

pytestmark = pytest.mark.integration


@pytest.fixture
def client() -> Iterator[Start]:
    """Return what starts a stand-in and gives a client of it."""
    opened: list[tuple[httpx.Client, CursorServer]] = []

    def start(wanted: Script) -> httpx.Client:
        server = CursorServer(wanted).start()
        http = httpx.Client(base_url=server.url, auth=("key_1", ""), timeout=20)
        opened.append((http, server))
        return http

    yield start
    for http, server in opened:
        http.close()
        server.stop()


def creation(remote: Remote, **more: Any) -> dict[str, Any]:
    repo = {"url": remote.url, "startingRef": "main"}
    return {
        "agentId": f"bc-{uuid.uuid4()}",
        "prompt": {"text": PLAN_PROMPT},
        "name": "feature/manual__1/plan",
        "repos": [repo],
        **more,
    }


def _url(http: httpx.Client, path: str) -> str:
    return str(http.base_url.join(path))


def ended(http: httpx.Client, run: dict[str, Any]) -> dict[str, Any]:
    path = f"/v1/agents/{run['agentId']}/runs/{run['id']}"

    def look() -> dict[str, Any] | None:
        body: dict[str, Any] = http.get(path).json()
        return body if body["status"] not in ("CREATING", "RUNNING") else None

    return eventually(look)


def test_an_agent_works_on_a_clone_and_pushes_its_branch(client: Start, remote: Remote) -> None:
    http = client(
        script(
            {"write": {"path": "docs/plan.md", "content": "# Plan\n"}},
            {"run": "git log --format=%s -1 > seen.txt; echo $HOME > home.txt"},
            {"say": "The plan is in docs/plan.md."},
        )
    )
    created = http.post("/v1/agents", json=creation(remote))
    assert created.status_code == 201
    run = created.json()["run"]
    assert run["status"] == "CREATING"
    assert created.json()["agent"]["latestRunId"] == run["id"]
    assert run["id"].startswith("run-")
    done = ended(http, run)
    assert done["status"] == "FINISHED"
    assert done["result"] == "The plan is in docs/plan.md."
    (branch,) = done["git"]["branches"]
    assert branch["repoUrl"] == remote.url
    assert branch["branch"].startswith("cursor/feature-manual-1-plan-")
    assert remote.git("show", f"{branch['branch']}:docs/plan.md") == "# Plan"
    assert remote.git("show", f"{branch['branch']}:seen.txt") == "Begin"
    assert remote.git("show", f"{branch['branch']}:home.txt") != os.environ.get("HOME")
    assert remote.git("rev-parse", f"{branch['branch']}~1") == remote.git("rev-parse", "main")


def test_who_changes_nothing_pushes_nothing(client: Start, remote: Remote) -> None:
    http = client(script({"say": {"approved": True}}))
    done = ended(http, http.post("/v1/agents", json=creation(remote)).json()["run"])
    assert done["status"] == "FINISHED"
    assert done["result"] == '{"approved": true}'
    assert done["git"]["branches"] == []
    assert remote.branches() == ["main"]


def test_an_empty_repository_begins_with_the_agents_commit(
    client: Start, tmp_path: Path, remote: Remote
) -> None:
    remote.git("init", "--quiet", "--bare", str(tmp_path / "empty.git"))
    empty = Remote(tmp_path / "empty.git")
    http = client(script({"write": {"path": "a", "content": "b"}}))
    body = creation(empty, repos=[{"url": empty.url}])
    done = ended(http, http.post("/v1/agents", json=body).json()["run"])
    assert done["status"] == "FINISHED", done
    assert empty.git("log", "--format=%s", done["git"]["branches"][0]["branch"]) == "Done."


@pytest.mark.parametrize("form", ["tag", "commit", "file url"])
def test_it_starts_from_any_ref_and_url(client: Start, remote: Remote, form: str) -> None:
    remote.git("tag", "v1", "main")
    repo = {
        "tag": {"url": remote.url, "startingRef": "v1"},
        "commit": {"url": remote.url, "startingRef": remote.git("rev-parse", "main")},
        "file url": {"url": remote.path.as_uri(), "startingRef": "main"},
    }[form]
    http = client(script({"write": {"path": "a", "content": "b"}}))
    body = creation(remote, repos=[repo])
    done = ended(http, http.post("/v1/agents", json=body).json()["run"])
    assert done["status"] == "FINISHED", done


def test_a_follow_up_goes_on_after_the_last_say(client: Start, remote: Remote) -> None:
    http = client(
        script(
            {"write": {"path": "a", "content": "1"}},
            {"say": "First."},
            {"write": {"path": "a", "content": "2"}},
            {"say": "Second."},
        )
    )
    first = ended(http, http.post("/v1/agents", json=creation(remote)).json()["run"])
    path = f"/v1/agents/{first['agentId']}/runs"
    second = http.post(path, json={"prompt": {"text": "Again."}})
    assert second.status_code == 201
    done = ended(http, second.json()["run"])
    assert (first["result"], done["result"]) == ("First.", "Second.")
    branch = done["git"]["branches"][0]["branch"]
    assert remote.git("show", f"{branch}:a") == "2"
    assert remote.git("log", "--format=%s", branch).splitlines() == ["Second.", "First.", "Begin"]
    listed = http.get(path).json()["items"]
    assert [item["id"] for item in listed] == [done["id"], first["id"]]
    assert "result" not in listed[0]


def test_ids_are_taken_once(client: Start, remote: Remote) -> None:
    http = client(script({"fail": {"how": "hang"}}))
    body = creation(remote)
    run = http.post("/v1/agents", json=body).json()["run"]
    again = http.post("/v1/agents", json=body)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "agent_id_conflict")
    busy = http.post(f"/v1/agents/{run['agentId']}/runs", json={"prompt": {"text": "x"}})
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "agent_busy")


def test_a_hanging_run_is_cancelled_once_and_its_follow_up_goes_on(
    client: Start, remote: Remote
) -> None:
    http = client(
        script(
            {"write": {"path": "kept", "content": "x"}},
            {"fail": {"how": "hang"}},
            {"say": "At last."},
        )
    )
    run = http.post("/v1/agents", json=creation(remote)).json()["run"]
    path = f"/v1/agents/{run['agentId']}/runs"
    eventually(lambda: http.get(f"{path}/{run['id']}").json()["status"] == "RUNNING")
    assert http.post(f"{path}/{run['id']}/cancel").status_code == 200
    assert http.get(f"{path}/{run['id']}").json()["status"] == "CANCELLED"
    refused = http.post(f"{path}/{run['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "run_not_cancellable")
    done = ended(http, http.post(path, json={"prompt": {"text": "Go on."}}).json()["run"])
    assert done["result"] == "At last."
    assert remote.git("show", f"{done['git']['branches'][0]['branch']}:kept") == "x"


def test_a_cancelled_run_leaves_no_process(client: Start, remote: Remote, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    http = client(script({"run": f"sleep 600 & echo $! > {pid_file}; wait"}))
    run = http.post("/v1/agents", json=creation(remote)).json()["run"]
    pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text().strip()))
    http.post(f"/v1/agents/{run['agentId']}/runs/{run['id']}/cancel")
    eventually(lambda: not _alive(pid))


def test_a_command_leaves_no_process(client: Start, remote: Remote, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    http = client(script({"run": f"sleep 600 & echo $! > {pid_file}"}, {"say": "Done it."}))
    run = http.post("/v1/agents", json=creation(remote)).json()["run"]
    assert ended(http, run)["result"] == "Done it."
    assert not _alive(int(pid_file.read_text()))


def test_stop_ends_runs_and_removes_clones(remote: Remote, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"pwd > {tmp_path}/where; echo $$ > {pid_file}; sleep 600"
    server = CursorServer(script({"run": command})).start()
    httpx.post(f"{server.url}/v1/agents", json=creation(remote), auth=("k", ""))
    pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text().strip()))
    server.stop()
    assert not _alive(pid)
    assert not Path((tmp_path / "where").read_text().strip()).exists()


def _alive(pid: int) -> bool:
    try:
        # A zombie has no command line.
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def test_refusals_are_answered_as_often_as_the_script_says(client: Start, remote: Remote) -> None:
    fail = {"status": 429, "retry_after": 7, "code": "slow_down", "message": "Wait.", "times": 2}
    http = client(script({"fail": fail}, {"say": "Ok."}))
    body = creation(remote)
    for _ in range(2):
        refused = http.post("/v1/agents", json=body)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "7"
        assert refused.json() == {"error": {"code": "slow_down", "message": "Wait."}}
    created = http.post("/v1/agents", json=body)
    assert created.status_code == 201
    assert ended(http, created.json()["run"])["result"] == "Ok."


def test_a_failure_in_the_middle_answers_those_who_look(client: Start, remote: Remote) -> None:
    http = client(script({"run": "true"}, {"fail": 503}, {"say": "Ok."}))
    run = http.post("/v1/agents", json=creation(remote)).json()["run"]
    path = f"/v1/agents/{run['agentId']}/runs/{run['id']}"
    assert eventually(lambda: http.get(path).status_code == 503)
    assert ended(http, run)["result"] == "Ok."


def test_a_dropped_answer_is_dropped_after_the_deed(client: Start, remote: Remote) -> None:
    http = client(script({"fail": {"how": "drop"}}, {"say": "Ok."}))
    body = creation(remote)
    with pytest.raises(httpx.RemoteProtocolError):
        http.post("/v1/agents", json=body)
    assert http.post("/v1/agents", json=body).status_code == 409
    agent = http.get(f"/v1/agents/{body['agentId']}").json()
    run = {"agentId": agent["id"], "id": agent["latestRunId"]}
    assert ended(http, run)["result"] == "Ok."


def test_a_run_can_end_as_an_error(client: Start, remote: Remote) -> None:
    fail = {"how": "error", "code": "model_error", "message": "No model."}
    http = client(script({"fail": fail}))
    done = ended(http, http.post("/v1/agents", json=creation(remote)).json()["run"])
    assert done["status"] == "ERROR"
    assert done["error"] == {"code": "model_error", "message": "No model."}


def test_writing_outside_the_repository_ends_the_run(client: Start, remote: Remote) -> None:
    http = client(script({"write": {"path": "../../x", "content": ""}}))
    done = ended(http, http.post("/v1/agents", json=creation(remote)).json()["run"])
    assert done["status"] == "ERROR"
    assert "../../x" in done["error"]["message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"repos": [{"url": "/nowhere.git", "startingRef": "main"}]}, "/nowhere.git"),
        ({"repos": []}, "repos[0].url"),
        ({"prompt": {}}, "prompt.text"),
        ({"model": {"id": "invalid-model"}}, "invalid-model"),
        ({"agentId": "bc-1"}, "bc-<uuid>"),
        ({"envVars": {"A": "b"}}, "exclude each other"),
    ],
)
def test_bad_requests_are_told_apart(
    client: Start, remote: Remote, change: dict[str, Any], says: str
) -> None:
    answer = client(script()).post("/v1/agents", json=creation(remote, **change))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "validation_error"
    assert says in answer.json()["error"]["message"]


def test_an_unknown_ref_is_named(client: Start, remote: Remote) -> None:
    repos = [{"url": remote.url, "startingRef": "no-such"}]
    answer = client(script()).post("/v1/agents", json=creation(remote, repos=repos))
    assert answer.status_code == 400
    assert "no-such" in answer.json()["error"]["message"]


def test_keys(client: Start) -> None:
    http = client(script())
    assert http.get("/v1/me").json()["apiKeyName"] == "rehearsal"
    bearer = {"Authorization": "Bearer key_2"}
    assert httpx.get(_url(http, "/v1/me"), headers=bearer).status_code == 200
    assert httpx.get(_url(http, "/v1/me")).status_code == 401
    assert httpx.get(_url(http, "/v1/me"), auth=("invalid_key", "")).status_code == 401
    assert http.get("/v1/models").json()["items"]
    assert http.get("/v1/nonsense").status_code == 404


def test_agents_are_listed_newest_first_in_pages(client: Start, remote: Remote) -> None:
    http = client(script())
    ids = []
    for _ in range(3):
        body = creation(remote)
        ids.append(body["agentId"])
        http.post("/v1/agents", json=body)
    first = http.get("/v1/agents?limit=2").json()
    # One that is new does not move the pages behind it.
    http.post("/v1/agents", json=creation(remote))
    second = http.get(f"/v1/agents?limit=2&cursor={first['nextCursor']}").json()
    assert [item["id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert "nextCursor" not in second
    assert "repos" not in first["items"][0]
    assert http.get("/v1/agents?cursor=bc-no").status_code == 400
    assert http.delete(f"/v1/agents/{ids[0]}").status_code == 200
    assert http.get(f"/v1/agents/{ids[0]}").status_code == 404


def test_agents_are_idle_after_their_run_and_can_be_archived(client: Start, remote: Remote) -> None:
    http = client(script({"run": "sleep 0.5"}, {"say": "Done it."}))
    created = http.post("/v1/agents", json=creation(remote)).json()
    agent, path = created["agent"], f"/v1/agents/{created['agent']['id']}"
    assert agent["status"] == "ACTIVE"
    done = ended(http, created["run"])
    (listed,) = http.get("/v1/agents").json()["items"]
    assert (listed["status"], listed["updatedAt"]) == ("IDLE", done["updatedAt"])
    for _ in range(2):
        assert http.post(f"{path}/archive").json() == {"id": agent["id"]}
    assert http.get(path).json()["status"] == "ARCHIVED"
    assert http.get("/v1/agents?includeArchived=false").json()["items"] == []
    assert len(http.get("/v1/agents").json()["items"]) == 1
    http.post(f"{path}/unarchive")
    assert http.get(path).json()["status"] == "IDLE"


def test_an_agent_without_a_repository(client: Start, remote: Remote) -> None:
    http = client(
        script({"write": {"path": "a", "content": "b"}}, {"run": "cat a"}, {"say": "Ok."})
    )
    body = creation(remote)
    del body["repos"]
    done = ended(http, http.post("/v1/agents", json=body).json()["run"])
    assert (done["status"], done["result"], done["git"]) == ("FINISHED", "Ok.", {"branches": []})
    assert http.get(f"/v1/agents/{done['agentId']}").json()["repos"] == []


def test_the_rate_of_each_key_is_limited() -> None:
    with CursorServer(script(), limit=RateLimit(3, 60.0)) as server:
        answers = [httpx.get(f"{server.url}/v1/me", auth=("key_1", "")) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert 50 < int(answers[-1].headers["Retry-After"]) <= 60
        assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
        for _ in range(5):
            unlimited = httpx.get(f"{server.url}/v1/me", auth=("unlimited_1", ""))
            assert unlimited.status_code == 200
        assert httpx.get(f"{server.url}/v1/me", auth=("key_2", "")).status_code == 200


def test_usage_is_told_by_run_and_in_sum(client: Start, remote: Remote) -> None:
    http = client(script({"say": "One."}, {"say": "Two."}))
    first = ended(http, http.post("/v1/agents", json=creation(remote)).json()["run"])
    path = f"/v1/agents/{first['agentId']}"
    ended(http, http.post(f"{path}/runs", json={"prompt": {"text": "x"}}).json()["run"])
    usage = http.get(f"{path}/usage").json()
    tokens = [run["usage"]["totalTokens"] for run in usage["runs"]]
    assert len(tokens) == 2
    assert usage["totalUsage"]["totalTokens"] == sum(tokens)
    one = http.get(f"{path}/usage?runId={first['id']}").json()
    assert [run["id"] for run in one["runs"]] == [first["id"]]


def test_the_stream_resumes_after_the_last_event(client: Start, remote: Remote) -> None:
    http = client(script({"run": "true"}, {"say": "Done it."}))
    run = http.post("/v1/agents", json=creation(remote)).json()["run"]
    ended(http, run)
    path = f"/v1/agents/{run['agentId']}/runs/{run['id']}/stream"
    text = http.get(path).text
    ids = [line[4:] for line in text.splitlines() if line.startswith("id: ")]
    assert "event: done" in text
    assert "Done it." in text
    rest = http.get(path, headers={"Last-Event-ID": ids[0]}).text
    assert [line[4:] for line in rest.splitlines() if line.startswith("id: ")] == ids[1:]
    assert http.get(path, headers={"Last-Event-ID": "no"}).status_code == 400


def test_the_journal_tells_what_was_asked(client: Start, remote: Remote) -> None:
    http = client(script())
    http.post("/v1/agents", json=creation(remote))
    (entry,) = httpx.get(_url(http, "/_rehearsal/requests")).json()
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/agents", 201)
    assert entry["body"]["prompt"]["text"] == PLAN_PROMPT
    assert time.time() - 60 < entry["at"] <= time.time()


def test_two_agents_of_one_step_play_their_own_script(
    client: Start, remote: Remote, tmp_path: Path
) -> None:
    other = make_remote(tmp_path / "other")
    http = client(script({"write": {"path": "a", "content": "1"}}, {"say": "Done it."}))
    runs = [http.post("/v1/agents", json=creation(r)).json()["run"] for r in (remote, other)]
    assert [ended(http, run)["result"] for run in runs] == ["Done it.", "Done it."]
    assert len(remote.branches()) == len(other.branches()) == 2


@pytest.mark.parametrize(
    ("prompt", "name", "step"),
    [
        ("Step: plan of workflow w, run r\n", "w/r/other", "plan"),
        ("> Step: quoted of workflow w\nStep: a of workflow w\nStep: b of workflow w", "", "b"),
        ("Step: one thing at a time", "w/manual__2026-01-01T00:00:00+00:00/test", "test"),
        ("", "w/r/test[3]", "test"),
        ("", "Agent", ""),
    ],
)
def test_the_step_is_found(prompt: str, name: str, step: str) -> None:
    assert step_of(prompt, name) == step
