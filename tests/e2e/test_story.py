"""A run read three ways tells one story, also after a failure, a clear and what nobody hears of."""

from __future__ import annotations

from tests.e2e.live import Live, git
from tests.e2e.story import assert_one_story


def test_the_seed_workflow(live_airflow: Live) -> None:
    live = live_airflow
    remote = live.repository("seed")
    dag_id = "feature-implementation"
    live.api.wait_for_dag(dag_id)
    run_id = live.api.trigger(dag_id, {"repository": str(remote)})
    assert live.api.wait_for_run(dag_id, run_id, within=300)["state"] == "success"
    story = assert_one_story(live, dag_id, run_id, remote)
    assert story.steps == dict.fromkeys(["plan", "implement", "test", "review"], "success")
    plan = live.api.xcom(dag_id, run_id, "plan")
    assert plan["output"].startswith("# Plan")
    assert plan["output_path"] == "docs/plan.md"
    assert plan["cost"] > 0
    review = live.api.xcom(dag_id, run_id, "review")
    # Codex's vendor does not say it; the price list does.
    assert 0 < review["cost"] < 1
    assert review["usage"]["total_tokens"] > 0
    # The prompt that the agent got, with the plan in it, instead of the template's name.
    rendered = live.api.rendered_fields(dag_id, run_id, "review")
    assert "# Plan" in rendered["prompt"]
    prompt = live.store().get(live.store().key(review["artifacts"]["prompt.md"])).decode()
    assert plan["output"].strip() in prompt
    assert git(remote, "rev-parse", "main") != git(remote, "rev-parse", review["branch"])


def test_a_failure_what_waits_for_it_and_a_clear(live_airflow: Live) -> None:
    live = live_airflow
    remote = live.repository("one-fails")
    dag_id = "one-fails"
    live.api.wait_for_dag(dag_id)
    run_id = live.api.trigger(dag_id, {"repository": str(remote)})
    assert live.api.wait_for_run(dag_id, run_id)["state"] == "failed"
    failed = assert_one_story(live, dag_id, run_id, remote)
    assert failed.steps == {
        "fails-never": "success",
        "fails-once": "failed",
        "fails-after": "upstream_failed",
    }
    failure = live.api.xcom(dag_id, run_id, "fails-once", key="failure")
    assert failure["failure_class"] == "AgentFailed"
    assert "out of luck" in failure["raw"]

    live.api.clear(dag_id, run_id, only_failed=True)
    assert live.api.wait_for_run(dag_id, run_id)["state"] == "success"
    cleared = assert_one_story(live, dag_id, run_id, remote)
    assert set(cleared.steps.values()) == {"success"}
    assert cleared.attempts["fails-once", 1] == "failed"
    assert cleared.attempts["fails-once", 2] == "success"
    # The second attempt went on from the first one's work and session: it was tried once.
    branch = live.api.xcom(dag_id, run_id, "fails-after")["branch"]
    done = git(remote, "show", f"{branch}:done.txt").split()
    assert done == ["first", "tried", "lucky", "last"]

    # A step that succeeded and is cleared is done anew, and so is what depends on it.
    live.api.clear(dag_id, run_id, ["fails-once"])
    assert live.api.wait_for_run(dag_id, run_id)["state"] == "success"
    again = assert_one_story(live, dag_id, run_id, remote)
    assert again.commits["fails-never"] == cleared.commits["fails-never"]
    assert again.commits["fails-once"] != cleared.commits["fails-once"]
    assert git(remote, "show", f"{branch}:done.txt").split() == done
