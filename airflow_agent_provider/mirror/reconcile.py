"""Makes the mirror equal to what Airflow says, through its public API.

Per run it first reads the mirror, then asks Airflow, then replaces what differs, each item only if
it is still as it was read. So of two reconciles the one that asked Airflow later wins; one that was
overtaken, or cannot be sure that it was not, looks again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airflow_agent_provider.agents.failures import AgentFailure
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.airflow_api import (
    NOT_BEGUN,
    AirflowApiError,
    AirflowApiHook,
    RunTruth,
    TryTruth,
)
from airflow_agent_provider.hooks.artifacts import ArtifactStore
from airflow_agent_provider.hooks.mirror_table import (
    Item,
    MirroredRun,
    MirrorError,
    MirrorTable,
    Phase,
    Version,
    as_stored,
    attempt_item,
    run_item,
    step_item,
    utc_text,
)
from airflow_agent_provider.mirror.records import (
    attempt_values,
    is_live,
    read_outcome,
    run_values,
    step_values,
)

#: How often a run is looked at again, because something else wrote to the mirror meanwhile.
LOOKS = 4
#: Seconds for which a try may have ended by its own account before Airflow's API says so.
REPORTING = 60.0
#: How many runs may fail before a reconcile that mended nothing ends.
GIVE_UP = 3
_HINTED = (Phase.ENDED, Phase.DECIDED)
_TIMES = frozenset({"time", "queued", "started", "ended", "state", "clear_number"})


@dataclass(frozen=True)
class Mended:
    """What was wrong in the mirror.

    :param sk: the item: ``RUN``, ``STEP#<step>#<map>`` or ``ATTEMPT#<step>#<map>#<try>``.
    :param before: the state that the mirror had, None if it had no such item.
    :param after: the state that it has now.
    :param changed: names of the other values that were wrong.
    :param missing: whether Airflow no longer has what the item tells of.
    """

    dag_id: str
    run_id: str
    sk: str
    before: str | None
    after: str
    changed: tuple[str, ...] = ()
    missing: bool = False

    def __str__(self) -> str:
        name = f"{self.dag_id} {self.run_id} {self.sk}"
        if self.missing:
            return f"{name}: Airflow no longer has it (was {self.before or 'no state'})"
        if self.before is None:
            return f"{name}: was missing, is {self.after or 'no state'}"
        parts = []
        if self.before != self.after:
            parts.append(f"{self.before or 'no state'} -> {self.after or 'no state'}")
        if self.changed:
            parts.append(f"mended {', '.join(self.changed)}")
        return f"{name}: {'; '.join(parts)}"


class ReconcileError(Exception):
    """Some runs could not be mended; the text names them and why.

    :param mended: what was mended all the same.
    """

    def __init__(self, text: str, mended: list[Mended]) -> None:
        super().__init__(text)
        self.mended = mended


def reconcile(
    api: AirflowApiHook,
    table: MirrorTable,
    store: ArtifactStore,
    *,
    dag_id: str | None = None,
    run_id: str | None = None,
    since: datetime | None = None,
    thorough: bool = True,
) -> list[Mended]:
    """Make the mirror equal to Airflow's truth, and return what was wrong.

    Nothing is removed; what Airflow no longer has is marked ``missing``. A second reconcile of the
    same truth writes nothing.

    :param api: Airflow's public API.
    :param table: the mirror.
    :param store: the artifacts, with each attempt's ``outcome.json``.
    :param dag_id: only this workflow.
    :param run_id: only this run; needs ``dag_id``.
    :param since: only runs that changed since, and those that the mirror holds for unfinished.
    :param thorough: whether runs are looked at whose steps look right in Airflow's lists, and
        outcomes are read again that were settled before.
    :raises ReconcileError: if runs could not be mended; the others are.
    :raises AirflowApiError, MirrorError: if Airflow or the table cannot be used at all.
    """
    if run_id and not dag_id:
        raise ValueError("a run id needs its dag id")
    mended: list[Mended] = []
    failed: list[str] = []
    for key, glimpse in sorted(_glimpses(api, table, dag_id, run_id, since).items()):
        try:
            if thorough or not glimpse.equals(table.read_run(*key)):
                mended += _mend(api, table, store, *key, thorough=thorough)
        except (AirflowApiError, MirrorError, AgentFailure) as error:
            # The store's own errors are agent failures. One run's trouble is not another's, but
            # where nothing works, the rest is spared.
            failed.append(f"{key[0]} {key[1]}: {error}")
            if len(failed) == GIVE_UP and not mended:
                break
    if failed:
        raise ReconcileError("not mended: " + "; ".join(failed[:GIVE_UP]), mended)
    return mended


@dataclass
class _Glimpse:
    """What Airflow's lists say of a run: enough to see whether it must be looked at."""

    run: RunTruth | None = None
    steps: list[TryTruth] = field(default_factory=list)

    def equals(self, seen: MirroredRun) -> bool:
        known = seen.by_key()
        return (
            bool(self.run or self.steps)
            and self._run_equals(seen.run)
            and all(
                self._step_equals(step, known.get(f"STEP#{step.step}#{step.map_index}"))
                for step in self.steps
            )
        )

    def _run_equals(self, item: Item | None) -> bool:
        if self.run is None:
            return True
        return (
            item is not None
            and item.version.phase not in _HINTED
            and item.version.clear == (utc_text(self.run.queued) or "")
            and item.state == self.run.state
        )

    @staticmethod
    def _step_equals(step: TryTruth, item: Item | None) -> bool:
        return (
            item is not None
            and item.version.phase not in _HINTED
            and item.version.try_number == step.try_number
            and item.state == step.state
        )


def _glimpses(
    api: AirflowApiHook,
    table: MirrorTable,
    dag_id: str | None,
    run_id: str | None,
    since: datetime | None,
) -> dict[tuple[str, str], _Glimpse]:
    if dag_id and run_id:
        return {(dag_id, run_id): _Glimpse()}
    # First, so that a missing table is told before Airflow is asked for much.
    found: defaultdict[tuple[str, str], _Glimpse] = defaultdict(_Glimpse)
    for key in _mirrored(table, dag_id, everything=since is None):
        found[key] = _Glimpse()
    for step in api.steps(dag_id, since=since):
        found[step.dag_id, step.run_id].steps.append(step)
    ours = {dag for dag, _ in found}
    others: set[str] = set()
    for run in api.runs(dag_id, since=since):
        if run.dag_id not in ours | others:
            (ours if api.has_steps(run.dag_id) else others).add(run.dag_id)
        if run.dag_id in ours:
            found[run.dag_id, run.run_id].run = run
    return found


def _mirrored(
    table: MirrorTable, dag_id: str | None, *, everything: bool
) -> Iterator[tuple[str, str]]:
    # A run that was deleted in Airflow shows up in none of its lists.
    if everything and dag_id:
        yield from ((run.dag_id, run.run_id) for run in table.runs(dag_id))
    for state in ("queued", "running"):
        for run in table.of_status("RUN", state):
            if dag_id in (None, run.dag_id):
                yield run.dag_id, run.run_id


def _mend(
    api: AirflowApiHook,
    table: MirrorTable,
    store: ArtifactStore,
    dag_id: str,
    run_id: str,
    *,
    thorough: bool,
) -> list[Mended]:
    mended: list[Mended] = []
    for look in range(LOOKS):
        # The order matters: see the module's description.
        seen = table.read_run(dag_id, run_id)
        read_at = time.time()
        truth = _truth(api, store, dag_id, run_id, seen, thorough=thorough)
        known = seen.by_key()
        done = True
        for item in truth:
            old = known.get(item.sk)
            if old is not None and (_same(old, item) or _not_reported(old, item, read_at)):
                continue
            written = table.settle(item, old)
            mended += _difference(old, item) if written else []
            done = done and written and (old is None or _past(old.version, item.version))
        if done:
            return mended
        time.sleep(0.05 * 2**look)
    raise MirrorError(f"it changed at each of {LOOKS} looks; the next reconcile looks again")


def _truth(
    api: AirflowApiHook,
    store: ArtifactStore,
    dag_id: str,
    run_id: str,
    seen: MirroredRun,
    *,
    thorough: bool,
) -> list[Item]:
    run = api.run(dag_id, run_id)
    steps = list(api.steps(dag_id, run_id)) if run else []
    items: list[Item] = []
    if run and (steps or seen.run):
        items.append(_run_truth(run, seen.run))
    known = seen.by_key()
    for step in steps:
        items += _step_truth(api, store, step, known, thorough=thorough)
    there = {item.sk for item in items}
    return items + [_missing(item) for sk, item in known.items() if sk not in there]


def _run_truth(run: RunTruth, seen: Item | None) -> Item:
    queued = utc_text(run.queued) or ""
    ended = run.ended is not None and run.state in ("success", "failed")
    live = Phase.RUNNING if run.state == "running" else Phase.WAITING
    # Airflow's API does not tell the clear number; the scheduler's hint of the same clear did.
    number = seen.values.get("clear_number") if seen and seen.version.clear == queued else None
    values = run_values(
        run.dag_id,
        run.run_id,
        state=run.state,
        conf=run.conf,
        times={
            "time": utc_text(run.time),
            "queued": utc_text(run.queued),
            "started": utc_text(run.started),
            "ended": utc_text(run.ended),
        },
        clear_number=number,
    )
    version = Version(queued, 0, Phase.SETTLED if ended else live)
    return run_item(run.dag_id, run.run_id, version, values)


def _step_truth(
    api: AirflowApiHook,
    store: ArtifactStore,
    step: TryTruth,
    known: Mapping[str, Item],
    *,
    thorough: bool,
) -> list[Item]:
    place = (step.dag_id, step.run_id, step.step, step.map_index)
    attempts = [
        attempt_item(
            *place,
            Version(try_number=row.try_number, phase=_attempt_phase(row)),
            _attempt_values(store, row, known, thorough=thorough),
        )
        for row in _tries(api, step)
    ]
    # After a clear the step still has the number of its archived try, but not its results.
    current = [
        item
        for item in attempts
        if item.version.try_number == step.try_number
        and (item.state == step.state or step.state == "up_for_retry")
    ]
    version = Version(try_number=step.try_number, phase=_step_phase(step, bool(attempts)))
    values = step_values(step.state, step.try_number, current[0].values if current else {})
    if not current:
        values |= {"started": utc_text(step.started), "ended": utc_text(step.ended)}
    return [step_item(*place, version, values), *attempts]


def _tries(api: AirflowApiHook, step: TryTruth) -> list[TryTruth]:
    if step.try_number == 0:
        return []
    if step.try_number == 1 and is_live(step.state):
        return [step]
    return api.tries(step)


def _attempt_phase(row: TryTruth) -> Phase:
    return Phase.RUNNING if is_live(row.state) else Phase.SETTLED


def _step_phase(step: TryTruth, begun: bool) -> Phase:
    if is_live(step.state):
        return Phase.RUNNING
    if step.state in ("scheduled", "queued"):
        return Phase.WAITING
    if step.state in NOT_BEGUN - {"up_for_retry"}:
        # After a clear the try number is still that of the archived try, whose hints may be late.
        return Phase.CLEARED if begun else Phase.WAITING
    return Phase.SETTLED


def _attempt_values(
    store: ArtifactStore, row: TryTruth, known: Mapping[str, Item], *, thorough: bool
) -> dict[str, Any]:
    times = {"started": utc_text(row.started), "ended": utc_text(row.ended)}
    if is_live(row.state):
        return attempt_values(row.state, times, None)
    key = AttemptKey(StepKey(row.dag_id, row.run_id, row.step, row.map_index), row.try_number)
    old = known.get(f"ATTEMPT#{row.step}#{row.map_index}#{row.try_number}")
    told = old is not None and old.version.phase is Phase.SETTLED and old.values.get("agent")
    if old is not None and told and not thorough and old.state == row.state:
        # Artifacts are create-only: what was read once stays as it is.
        return {**old.values, **times}
    return attempt_values(row.state, times, read_outcome(store, key), settled=True)


def _past(old: Version, new: Version) -> bool:
    """Return whether Airflow's truth cannot come back to ``old``.

    Where it can, another reconcile may have read it later than we did and have found ``old`` right,
    which leaves no trace in the table.
    """
    grown = (new.clear, new.try_number) > (old.clear, old.try_number)
    return grown or (Phase.RUNNING <= old.phase <= Phase.DECIDED and new.phase is Phase.SETTLED)


def _missing(item: Item) -> Item:
    return Item(item.dag_id, item.run_id, item.sk, item.version, {**item.values, "missing": True})


def _same(old: Item, new: Item) -> bool:
    return old.version == new.version and old.values == as_stored(new.values)


def _not_reported(old: Item, new: Item, read_at: float) -> bool:
    """Return whether a try has just ended by its own account, which Airflow reports later.

    A step's process calls the listener shortly before its supervisor tells Airflow of a failure.
    Going back to ``running`` for a minute would be no truth.
    """
    ended = old.version.phase in _HINTED and new.version.phase <= Phase.RUNNING
    same_try = (old.version.clear, old.version.try_number) == (
        new.version.clear,
        new.version.try_number,
    )
    written = datetime.fromisoformat(old.changed).timestamp() if ended and same_try else 0.0
    return read_at - written < REPORTING


def _difference(old: Item | None, new: Item) -> list[Mended]:
    values = as_stored(new.values)
    before = dict(old.values) if old else {}
    changed = sorted(
        name
        for name in (values.keys() | before.keys()) - _TIMES - {"missing"}
        if old and values.get(name) != before.get(name)
    )
    missing = bool(values.get("missing"))
    mended = Mended(
        new.dag_id,
        new.run_id,
        new.sk,
        old.state if old else None,
        new.state,
        tuple(changed),
        missing,
    )
    # A truth that only confirms a hint, with Airflow's own times, mends nothing.
    wrong = old is None or old.state != new.state or changed or missing
    return [mended] if wrong else []
