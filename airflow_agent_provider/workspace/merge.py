"""Merges that every worker makes alike: the same parents give the same commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.workspace.git import Git, split_names
from airflow_agent_provider.workspace.repository import commit_tree

_SHOWN_FILES = 10


@dataclass(frozen=True)
class Side:
    """One side of a merge.

    :param name: what it is, for the message and for conflicts: ``step 'plan'``.
    :param commit: its commit.
    """

    name: str
    commit: str


class MergeConflict(InvalidDefinition):
    """Steps that ran side by side changed the same lines; counts as InvalidDefinition.

    :param sides: the names of the sides that changed the files.
    :param files: the files in conflict.
    """

    def __init__(self, sides: Sequence[str], files: Sequence[str]) -> None:
        shown = ", ".join(files[:_SHOWN_FILES])
        more = f" and {len(files) - _SHOWN_FILES} more" if len(files) > _SHOWN_FILES else ""
        super().__init__(
            f"{' and '.join(sides)} changed the same lines of: {shown}{more}; let one depend on "
            f"the other, or have them change different files"
        )
        self.sides = tuple(sides)
        self.files = tuple(files)


def merge(git: Git, sides: Sequence[Side]) -> str:
    """Return the commit that holds the work of all ``sides``.

    Sides that another side contains are left out; a single one that remains is returned itself.
    The order of ``sides`` does not matter. Author, date and message follow from the sides alone.

    :raises MergeConflict: if two sides changed the same lines.
    """
    # Without a working tree, no .gitattributes of the moment takes part.
    git = replace(git, work_tree=None)
    independent = set(git.run("merge-base", "--independent", *(s.commit for s in sides)).split())
    chosen: list[Side] = []
    for side in sorted(sides, key=lambda side: (side.name, side.commit)):
        if side.commit.encode() in independent:
            independent.remove(side.commit.encode())
            chosen.append(side)
    merged = chosen[0].commit
    for count, side in enumerate(chosen[1:], 1):
        merged = _merge_two(git, merged, chosen[:count], side)
    return merged


def _merge_two(git: Git, merged: str, before: Sequence[Side], side: Side) -> str:
    done = git.complete(
        "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", merged, side.commit,
        accept=(0, 1),
    )  # fmt: skip
    tree, *files = split_names(done.stdout)
    if done.returncode:
        raise MergeConflict(_culprits(git, before, side, files), files)
    names = [*(other.name for other in before), side.name]
    dates = git.run("show", "--no-patch", "--format=%ct", merged, side.commit).split()
    return commit_tree(
        git,
        tree,
        (merged, side.commit),
        f"Merge {', '.join(names[:-1])} and {names[-1]}\n",
        date=f"{max(map(int, dates))} +0000",
    )


def _culprits(git: Git, before: Sequence[Side], side: Side, files: Sequence[str]) -> list[str]:
    def touches(other: Side) -> bool:
        origin = git.line("merge-base", other.commit, side.commit)
        changed = git.names("diff-tree", "-r", "-z", "--name-only", origin, other.commit)
        return not set(changed).isdisjoint(files)

    return [other.name for other in before if touches(other)] + [side.name]
