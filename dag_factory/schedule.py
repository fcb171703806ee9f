"""Schedules and parameters as Airflow will take them, checked before it does."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dag_factory.errors import Fault, Path, nearest, one_line, show
from dag_factory.files import schema_fault

#: What ``schedule`` may say besides a cron expression; Airflow's own presets.
PRESETS = (
    "@once",
    "@continuous",
    "@hourly",
    "@daily",
    "@weekly",
    "@monthly",
    "@quarterly",
    "@yearly",
)
#: Parameters that every workflow has.
OWN_PARAMS = ("repository", "ref")

# Of these, a schema needs no validator to be known as good.
_SIMPLE_KEYS = frozenset(("type", "default", "description", "title"))
_SIMPLE_TYPES = {"string": str, "boolean": bool}


def is_scheduled(schedule: Any) -> bool:
    """Return whether Airflow starts runs by itself."""
    return schedule is not None and schedule != "none"


@lru_cache(maxsize=4096)
def schedule_fault(schedule: str) -> str | None:
    """Return what is wrong with a schedule, None if Airflow can use it."""
    if schedule == "none" or schedule in PRESETS:
        return None
    if schedule.startswith("@"):
        return f"unknown schedule {show(schedule)}; {nearest(schedule, [*PRESETS, 'none'])}"
    if len(schedule.split()) != 5:
        return (
            f"{show(schedule)} is no cron expression; five fields, minute hour day month weekday, "
            "such as '0 6 * * 1-5'"
        )
    return _cron_fault(schedule)


def _cron_fault(expression: str) -> str | None:
    from airflow.timetables.base import TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable

    # What the scheduler does, where a failure would show in its log alone: there are expressions
    # that parse, but whose time never comes. The parsers of cron expressions raise what they like.
    try:
        timetable = CronTriggerTimetable(expression, timezone="UTC")
        timetable.validate()
        timetable.next_dagrun_info(
            last_automated_data_interval=None,
            restriction=TimeRestriction(earliest=None, latest=None, catchup=False),
        )
    except Exception as error:
        said = one_line(error)
        return f"{show(expression)} is no cron expression: {said}; such as '0 6 * * 1-5'"
    return None


def param_faults(params: dict[str, Any], *, scheduled: bool) -> list[Fault]:
    """Return what is wrong with a workflow's parameters.

    :param params: JSON schemas by name; what is not a mapping is passed over.
    :param scheduled: whether runs start without anybody who could fill in what has no default.
    """
    faults: list[Fault] = []
    for name, schema in params.items():
        path: Path = ("params", name)
        if name in OWN_PARAMS:
            text = f"every workflow has the parameter {name!r}; set its default by 'repository'"
            faults.append(Fault(path, text, at_key=True))
        elif isinstance(schema, dict):
            faults += _param_faults(path, schema, scheduled=scheduled)
    return faults


def _param_faults(path: Path, schema: dict[str, Any], *, scheduled: bool) -> list[Fault]:
    faults = []
    if "default" not in schema and scheduled:
        text = f"the parameter {path[-1]!r} has no default, but runs start by schedule; add one"
        faults.append(Fault(path, text, at_key=True))
    if _is_simple(schema):
        return faults
    if fault := schema_fault(schema):
        text = f"no JSON schema: {fault[1]}; see json-schema.org"
        faults.append(Fault((*path, *fault[0]), text))
    elif "default" in schema and (message := _mismatch(schema)):
        text = f"the default does not fit the schema: {message}; change either"
        faults.append(Fault((*path, "default"), text))
    return faults


def _is_simple(schema: dict[str, Any]) -> bool:
    kind = _SIMPLE_TYPES.get(schema["type"]) if isinstance(schema.get("type"), str) else None
    return (
        kind is not None
        and schema.keys() <= _SIMPLE_KEYS
        and isinstance(schema.get("default", kind()), kind)
        and isinstance(schema.get("description", ""), str)
        and isinstance(schema.get("title", ""), str)
    )


def _mismatch(schema: dict[str, Any]) -> str | None:
    from jsonschema import FormatChecker
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry

    # A schema may hold what its own check lets pass: a pattern that is no regular expression, a
    # reference to itself. The empty registry keeps references from being fetched over the network.
    try:
        validator = validator_for(schema)(
            schema, registry=Registry(), format_checker=FormatChecker()
        )
        error = best_match(validator.iter_errors(schema["default"]))
    except RecursionError:
        return "it refers to itself without end"
    except Exception as failure:
        return one_line(failure) or type(failure).__name__
    return one_line(error.message) if error else None
