"""Prompt templates in S3."""

from __future__ import annotations

from airflow_agent_provider.agents.failures import InvalidDefinition, Unavailable
from airflow_agent_provider.hooks.aws import aws_client

#: Longest template, in bytes.
MOST_BYTES = 1_000_000


def read_s3_text(url: str, aws_conn_id: str) -> tuple[str, str | None]:
    """Return the text at ``url`` and the version that was read.

    :param url: ``s3://bucket/key``; ``?versionId=…`` at its end asks for that version.
    :param aws_conn_id: connection for S3.
    :returns: the text, and the version id, or the ETag where the bucket keeps no versions.
    :raises InvalidDefinition: if there is no such object, or it is no text.
    :raises Unavailable: if S3 cannot be reached.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    plain, _, version = url.partition("?versionId=")
    bucket, key = S3Hook.parse_s3_url(plain)
    wanted = {"VersionId": version} if version else {}
    try:
        client = aws_client("s3", aws_conn_id, Config())
        answer = client.get_object(Bucket=bucket, Key=key, **wanted)
        content = answer["Body"].read(MOST_BYTES + 1)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status >= 500:
            raise Unavailable(f"{url}: S3 answered {status}", raw=str(error)) from error
        raise InvalidDefinition(
            f"{url}: the prompt cannot be read ({code}); check the URL and the rights of the "
            f"connection {aws_conn_id!r}",
            raw=str(error),
        ) from error
    except BotoCoreError as error:
        raise Unavailable(f"{url}: S3 cannot be reached", raw=str(error)) from error
    if len(content) > MOST_BYTES:
        raise InvalidDefinition(f"{url}: the prompt is longer than {MOST_BYTES} bytes")
    try:
        return content.decode(), answer.get("VersionId") or answer.get("ETag", "").strip('"')
    except UnicodeDecodeError as error:
        raise InvalidDefinition(f"{url}: the prompt is not UTF-8 text") from error
