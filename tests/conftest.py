"""Fixtures that all tests share; they are made in :mod:`tests.stacks`."""

from tests.stacks import git_server, ministack, s3_bucket

__all__ = ["git_server", "ministack", "s3_bucket"]
