"""The mirror's DynamoDB table: versioned conditional writes, and reads of whole runs.

One table holds runs, steps and attempts::

    pk                  sk
    RUN#<dag>#<run>     RUN
    RUN#<dag>#<run>     STEP#<step>#<map index>
    RUN#<dag>#<run>     ATTEMPT#<step>#<map index>#<try>

There are two kinds of writes. A *hint* comes from a listener, may be late, repeated or out of
order, and replaces only an item of a smaller :class:`Version`. A *truth* comes from the reconcile,
which looked at the item before it asked Airflow: it replaces exactly the item that it saw (by the
item's ``stamp``), so that truths are ordered by the time they were read, whatever the clocks say,
and one that was overtaken is refused. A refused write is no error.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from airflow_agent_provider.hooks.aws import aws_client

BY_STATUS = "by_status"
BY_WORKFLOW = "by_workflow"
#: Seconds after its last write at which DynamoDB may delete an item.
RETENTION = 180 * 24 * 3600
#: Item states that are looked for across runs; the sparse status index holds no others.
UNREMARKABLE = frozenset({"", "success", "skipped", "removed"})
_CUT = "… [cut: {} more characters]"
# DynamoDB's limit is 400 KB per item, names included; the rest is room for the two indexes' keys.
_ITEM_BYTES = 300_000


class MirrorError(Exception):
    """The mirror cannot be used as it is; the text says what is wrong and what mends it."""


class MirrorUnavailable(MirrorError):
    """DynamoDB does not answer, or not in time."""


class Phase(IntEnum):
    """How far a try is, and by whose account; a hint never goes back in it."""

    WAITING = 0
    RUNNING = 1
    #: Ended by its own account, which an older try may give too late.
    ENDED = 2
    #: Ended by the account of the scheduler or of a user.
    DECIDED = 3
    #: Ended as the reconcile read it.
    SETTLED = 4
    #: Cleared, or skipped after a clear: no hint of this try counts any more.
    CLEARED = 9


@dataclass(frozen=True, order=True)
class Version:
    """What orders the writes of one item; never Airflow's task instance id, which retries change.

    :param clear: which clear of the run this is: the time at which the run was last queued, which
        every clear renews. It stands in for Airflow's clear number, which the public API does not
        tell. Empty for steps and attempts, whose try number grows over clears.
    :param try_number: Airflow's try number; 0 for runs.
    :param phase: how far the try is.
    """

    clear: str = ""
    try_number: int = 0
    phase: Phase = Phase.WAITING

    def __str__(self) -> str:
        # Compared as text by DynamoDB, hence the fixed widths.
        return f"{self.clear}/{self.try_number:06d}/{self.phase:d}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """Return the version that ``str`` wrote."""
        clear, number, phase = text.split("/")
        return cls(clear, int(number), Phase(int(phase)))


@dataclass(frozen=True)
class Item:
    """One run, step or attempt of the mirror.

    :param dag_id: the workflow.
    :param run_id: Airflow's run id.
    :param sk: the sort key; see :func:`run_item`, :func:`step_item`, :func:`attempt_item`.
    :param version: orders the writes.
    :param values: what is known; None means unknown, and is not stored.
    :param stamp: marks this very write of the item; empty until it was stored.
    :param changed: when it was written, ISO 8601 in UTC; empty until it was stored.
    """

    dag_id: str
    run_id: str
    sk: str
    version: Version
    values: Mapping[str, Any] = field(default_factory=dict)
    stamp: str = ""
    changed: str = ""

    @property
    def kind(self) -> str:
        """``RUN``, ``STEP`` or ``ATTEMPT``."""
        return self.sk.partition("#")[0]

    @property
    def step(self) -> tuple[str, int, int]:
        """Step id, map index and (of attempts, else 0) try number."""
        parts = self.sk.split("#")
        return parts[1], int(parts[2]), int(parts[3]) if self.kind == "ATTEMPT" else 0

    @property
    def state(self) -> str:
        """Airflow's state; empty for none."""
        return str(self.values.get("state") or "")


def run_item(dag_id: str, run_id: str, version: Version, values: Mapping[str, Any]) -> Item:
    """Return the item of a workflow run."""
    return Item(dag_id, run_id, "RUN", version, values)


def step_item(
    dag_id: str,
    run_id: str,
    step: str,
    map_index: int,
    version: Version,
    values: Mapping[str, Any],
) -> Item:
    """Return the item of a step."""
    return Item(dag_id, run_id, f"STEP#{step}#{map_index}", version, values)


def attempt_item(
    dag_id: str,
    run_id: str,
    step: str,
    map_index: int,
    version: Version,
    values: Mapping[str, Any],
) -> Item:
    """Return the item of the attempt that ``version`` numbers."""
    sk = f"ATTEMPT#{step}#{map_index}#{version.try_number}"
    return Item(dag_id, run_id, sk, version, values)


@dataclass(frozen=True)
class MirroredRun:
    """A run as the mirror has it.

    :param run: the run's own item; None where the mirror has none.
    :param steps: its steps, by step id and map index.
    :param attempts: its attempts, by step id, map index and try number.
    """

    run: Item | None
    steps: tuple[Item, ...]
    attempts: tuple[Item, ...]

    def by_key(self) -> dict[str, Item]:
        """Return all items by their sort key."""
        items = [*self.steps, *self.attempts, *([self.run] if self.run else [])]
        return {item.sk: item for item in items}


@dataclass(frozen=True)
class Patience:
    """How long DynamoDB may take.

    :param connect: seconds for a connection.
    :param read: seconds for an answer.
    :param attempts: tries of one request in all.
    :param cooldown: seconds for which no hint is tried after a failure.
    """

    connect: float
    read: float
    attempts: int
    cooldown: float


#: Beside a step, which must not wait: the reconcile repairs what is lost.
FOR_HINTS = Patience(connect=0.3, read=0.5, attempts=1, cooldown=30.0)
#: For the reconcile and the command line.
FOR_TRUTHS = Patience(connect=3.0, read=10.0, attempts=4, cooldown=0.0)


class MirrorTable:
    """The mirror's table; safe to share between threads.

    :param name: the table's name.
    :param aws_conn_id: connection for DynamoDB; its extra ``endpoint_url`` leads to a stand-in.
    :param patience: how long DynamoDB may take.
    """

    def __init__(
        self, name: str, aws_conn_id: str = "aws_default", *, patience: Patience = FOR_TRUTHS
    ) -> None:
        self.name = name
        self.aws_conn_id = aws_conn_id
        self.patience = patience
        self._client: Any = None
        self._lock = threading.Lock()
        self._closed_until = 0.0

    def warm(self) -> None:
        """Make the client now: boto3 and the client cost 0.4 s CPU in a fresh process.

        :raises MirrorError: if the connection cannot be used.
        """
        with self._lock:
            if self._client is None:
                self._client = self._new_client()

    def hint(self, item: Item) -> bool:
        """Store ``item`` unless the table knows better; return whether it was stored.

        After a failure nothing is tried for the patience's ``cooldown``, so that the hints of a
        step do not wait for a dead table one after the other.

        :raises MirrorError: if the table cannot be used.
        """
        if time.monotonic() < self._closed_until:
            return False
        condition = {
            "ConditionExpression": "attribute_not_exists(pk) OR #v < :v",
            "ExpressionAttributeNames": {"#v": "version"},
            "ExpressionAttributeValues": {":v": {"S": str(item.version)}},
        }
        return self._put(item, condition)

    def settle(self, item: Item, seen: Item | None) -> bool:
        """Store ``item``, the truth, in place of exactly ``seen``; return whether it was stored.

        :param item: the truth, read from Airflow after ``seen`` was read from the table.
        :param seen: what the table held; None for nothing.
        :raises MirrorError: if the table cannot be used.
        """
        if seen is None:
            return self._put(item, {"ConditionExpression": "attribute_not_exists(pk)"})
        condition = {
            "ConditionExpression": "stamp = :seen",
            "ExpressionAttributeValues": {":seen": {"S": seen.stamp}},
        }
        return self._put(item, condition)

    def read_run(self, dag_id: str, run_id: str) -> MirroredRun:
        """Return all that the mirror has of a run, strongly consistent.

        :raises MirrorError: if the table cannot be used.
        """
        items = [
            _from_attributes(attributes)
            for attributes in self._query(
                ConsistentRead=True,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": _pk(dag_id, run_id)}},
            )
        ]
        return MirroredRun(
            next((item for item in items if item.kind == "RUN"), None),
            tuple(sorted((i for i in items if i.kind == "STEP"), key=lambda i: i.step)),
            tuple(sorted((i for i in items if i.kind == "ATTEMPT"), key=lambda i: i.step)),
        )

    def runs(self, dag_id: str) -> Iterator[Item]:
        """Yield the runs of a workflow, newest first; as of a moment ago."""
        for attributes in self._query(
            IndexName=BY_WORKFLOW,
            ScanIndexForward=False,
            KeyConditionExpression="workflow = :dag",
            ExpressionAttributeValues={":dag": {"S": dag_id}},
        ):
            yield _from_attributes(attributes)

    def of_status(self, kind: str, state: str) -> Iterator[Item]:
        """Yield the runs or steps in a state that is worth finding, oldest change first.

        :param kind: ``RUN`` or ``STEP``.
        :param state: any of Airflow's states but success, skipped and removed.
        """
        for attributes in self._query(
            IndexName=BY_STATUS,
            KeyConditionExpression="#s = :status",
            ExpressionAttributeNames={"#s": "status"},
            ExpressionAttributeValues={":status": {"S": f"{kind}#{state}"}},
        ):
            yield _from_attributes(attributes)

    def ensure_table(self) -> None:
        """Create the table where it is missing, in a stand-in; it is never created in AWS itself.

        :raises MirrorError: if it is missing in AWS; the text says how to create it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        self.warm()
        try:
            if not self._exists():
                self._create()
        except (BotoCoreError, ClientError) as error:
            raise self._unusable(error) from error

    def _new_client(self) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        ours = Config(
            connect_timeout=self.patience.connect,
            read_timeout=self.patience.read,
            retries={"total_max_attempts": self.patience.attempts, "mode": "standard"},
        )
        try:
            return aws_client("dynamodb", self.aws_conn_id, ours)
        except (BotoCoreError, ClientError) as error:
            raise MirrorError(
                f"mirror table {self.name!r}: the connection {self.aws_conn_id!r} makes no DynamoDB"
                f" client: {error}; check it in Airflow under Admin > Connections"
            ) from error

    def _put(self, item: Item, condition: Mapping[str, Any]) -> bool:
        request = {"TableName": self.name, "Item": _to_attributes(item), **condition}
        return self._call("put_item", **request) is not None

    def _query(self, **request: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._call("query", TableName=self.name, **request)
            yield from page["Items"]
            if not page.get("LastEvaluatedKey"):
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _call(self, operation: str, **request: Any) -> Any:
        """Send a request; None if its condition was not met."""
        self.warm()
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._request(operation, request)
        except (BotoCoreError, ClientError) as error:
            if _code(error) == "ConditionalCheckFailedException":
                return None
            self._closed_until = time.monotonic() + self.patience.cooldown
            raise self._unusable(error) from error
        except MirrorError:
            self._closed_until = time.monotonic() + self.patience.cooldown
            raise

    def _request(self, operation: str, request: Mapping[str, Any]) -> Any:
        from botocore.exceptions import ClientError

        send = getattr(self._client, operation)
        try:
            return send(**request)
        except ClientError as error:
            if _code(error) != "ResourceNotFoundException":
                raise
        self.ensure_table()
        return send(**request)

    def _exists(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.describe_table(TableName=self.name)
        except ClientError as error:
            if _code(error) != "ResourceNotFoundException":
                raise
            return False
        return True

    def _create(self) -> None:
        from botocore.exceptions import ClientError

        endpoint = self._client.meta.endpoint_url
        if _is_aws(endpoint):
            raise MirrorError(
                f"mirror table {self.name!r} does not exist at {endpoint}; create it with: "
                f"aws cloudformation deploy --template-file infra/mirror-table.yaml "
                f"--stack-name {self.name} --parameter-overrides TableName={self.name}"
            )
        try:
            self._client.create_table(TableName=self.name, **TABLE)
        except ClientError as error:
            # Another process was quicker.
            if _code(error) != "ResourceInUseException":
                raise
        wait = {"Delay": 1, "MaxAttempts": 10}
        self._client.get_waiter("table_exists").wait(TableName=self.name, WaiterConfig=wait)
        try:
            self._client.update_time_to_live(
                TableName=self.name,
                TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"},
            )
        except ClientError as error:
            # "TimeToLive is already enabled", if another process was quicker.
            if _code(error) != "ValidationException":
                raise

    def _unusable(self, error: Exception) -> MirrorError:
        where = self._client.meta.endpoint_url if self._client is not None else "DynamoDB"
        answered = _code(error) not in ("", "InternalServerError", "ServiceUnavailable")
        kind = MirrorError if answered else MirrorUnavailable
        return kind(
            f"mirror table {self.name!r} at {where}: {error}; "
            f"check the connection {self.aws_conn_id!r} and [agents] mirror_table"
        )


#: The table, as CreateTable takes it; infra/mirror-table.yaml says the same for CloudFormation.
TABLE: dict[str, Any] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [
        {"AttributeName": name, "AttributeType": "S"}
        for name in ("pk", "sk", "status", "changed", "workflow", "time")
    ],
    "KeySchema": [
        {"AttributeName": "pk", "KeyType": "HASH"},
        {"AttributeName": "sk", "KeyType": "RANGE"},
    ],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": index,
            "KeySchema": [
                {"AttributeName": key, "KeyType": "HASH"},
                {"AttributeName": order, "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "ALL"},
        }
        for index, key, order in (
            (BY_STATUS, "status", "changed"),
            (BY_WORKFLOW, "workflow", "time"),
        )
    ],
}

_OWN = frozenset(
    {"pk", "sk", "dag_id", "run_id", "version", "stamp", "changed", "expires", "status", "workflow"}
)


def utc_text(moment: datetime | None) -> str | None:
    """Return ``moment`` as the mirror writes times: ISO 8601 in UTC, which sorts as text."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def fit(values: Mapping[str, Any], limit: int = _ITEM_BYTES) -> dict[str, Any]:
    """Return ``values`` cut down to ``limit`` bytes, without what is None.

    Long texts are cut first, then long lists and mappings; each cut leaves a marker.

    :param values: JSON values.
    :param limit: bytes of their JSON.
    """
    for text, entries in ((8_000, 200), (1_000, 100), (200, 40), (100, 10)):
        cut = {k: _cut(v, text, entries) for k, v in values.items() if v is not None}
        if len(json.dumps(cut, default=str).encode()) <= limit:
            return cut
    return {name: value for name, value in cut.items() if not isinstance(value, dict | list)}


def as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` as they come back from the table."""
    return {name: _number(value) for name, value in _storable(values).items()}


def _storable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in fit(values).items() if value is not None and name not in _OWN
    }


def _cut(value: Any, text: int, entries: int) -> Any:
    if isinstance(value, str) and len(value) > text:
        return value[:text] + _CUT.format(len(value) - text)
    if isinstance(value, Mapping):
        known = [(str(k), _cut(v, text, entries)) for k, v in value.items() if v is not None]
        more = {"…": f"{len(known) - entries} more"} if len(known) > entries else {}
        return dict(known[:entries]) | more
    if isinstance(value, list | tuple):
        left = [f"… {len(value) - entries} more"] if len(value) > entries else []
        return [_cut(entry, text, entries) for entry in value[:entries]] + left
    if isinstance(value, float):
        # DynamoDB knows no infinity; what has no number is unknown.
        return Decimal(repr(value)) if math.isfinite(value) else None
    return value


def _pk(dag_id: str, run_id: str) -> str:
    return f"RUN#{dag_id}#{run_id}"


def _to_attributes(item: Item) -> dict[str, Any]:
    from boto3.dynamodb.types import TypeSerializer

    values = _storable(item.values)
    own: dict[str, Any] = {
        "pk": _pk(item.dag_id, item.run_id),
        "sk": item.sk,
        "dag_id": item.dag_id,
        "run_id": item.run_id,
        "version": str(item.version),
        "stamp": uuid.uuid4().hex,
        "changed": utc_text(datetime.now(UTC)),
        "expires": int(time.time()) + RETENTION,
    }
    if item.kind != "ATTEMPT" and item.state not in UNREMARKABLE and not values.get("missing"):
        own["status"] = f"{item.kind}#{item.state}"
    if item.kind == "RUN" and values.get("time"):
        own["workflow"] = item.dag_id
    serialize = TypeSerializer().serialize
    return {name: serialize(value) for name, value in {**values, **own}.items()}


def _from_attributes(attributes: Mapping[str, Any]) -> Item:
    from boto3.dynamodb.types import TypeDeserializer

    deserialize = TypeDeserializer().deserialize
    plain = {name: _number(deserialize(value)) for name, value in attributes.items()}
    return Item(
        plain["dag_id"],
        plain["run_id"],
        plain["sk"],
        Version.parse(plain["version"]),
        {name: value for name, value in plain.items() if name not in _OWN},
        plain["stamp"],
        plain["changed"],
    )


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {name: _number(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    return value


def _code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))
