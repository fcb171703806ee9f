"""A graph as text: a row per node, below all that come before it, and a lane per edge.

As version control draws its history: ``├─╮`` is where lanes part, ``├─╯`` where they meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

#: What stands for the signs of lanes where the output knows no others than ASCII's.
ASCII = str.maketrans("●│─├╮╯┬┴┼→…", "*|-++++++>~")

_GAP, _LANE = " ", "│"


def draw(upstream: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str | None]]:
    """Yield the rows of a graph: the signs, and the node of a row that has one.

    :param upstream: by node, the nodes that come right before it; each before those that follow it.
    """
    downstream: dict[str, list[str]] = {node: [] for node in upstream}
    for node, before in upstream.items():
        for other in before:
            downstream[other].append(node)
    lanes: list[str | None] = []
    connected = True
    for node in upstream:
        mine = [index for index, target in enumerate(lanes) if target == node]
        if len(mine) > 1:
            yield _row(lanes, mine, "┴", "╯"), None
        elif not connected:
            # Also before one that follows none: right below another, it would seem to follow it.
            yield _row(lanes), None
        at = mine[0] if mine else _free(lanes)
        for index in mine:
            lanes[index] = None
        signs = [_LANE if target else _GAP for target in lanes]
        signs[at] = "●"
        yield _joined(signs), node
        ends = [at]
        for number, target in enumerate(downstream[node]):
            end = at if number == 0 else _free(lanes, after=at)
            lanes[end] = target
            ends.append(end)
        connected = len(downstream[node]) > 1
        if connected:
            yield _row(lanes, sorted(set(ends)), "┬", "╮"), None


def in_order(upstream: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return a graph with each node after those before it, otherwise in the order given."""
    waiting, ordered = list(upstream), {}
    while waiting:
        node = next(node for node in waiting if all(before in ordered for before in upstream[node]))
        waiting.remove(node)
        ordered[node] = list(upstream[node])
    return ordered


def _free(lanes: list[str | None], after: int = -1) -> int:
    """Return the first free lane beyond ``after``, a new one if there is none."""
    for index in range(after + 1, len(lanes)):
        if lanes[index] is None:
            return index
    lanes.append(None)
    return len(lanes) - 1


def _row(
    lanes: Sequence[str | None], joined: Sequence[int] = (), middle: str = "", end: str = ""
) -> str:
    """Return a row without a node, in which some lanes part from the first of them or meet it."""
    signs = [_LANE if target else _GAP for target in lanes]
    if not joined:
        return _joined(signs)
    first, last = joined[0], joined[-1]
    for index in range(first + 1, last):
        signs[index] = middle if index in joined else "┼" if signs[index] == _LANE else "─"
    signs[first], signs[last] = "├", end
    return "".join(
        sign + ("─" if first <= index < last else " ") for index, sign in enumerate(signs)
    ).rstrip()


def _joined(signs: Sequence[str]) -> str:
    return " ".join(signs).rstrip()
