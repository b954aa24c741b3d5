"""Whose a run is where several machines have taken it up in turn: what the others log goes to runs of their own.

An attempt on a run says so by a *fence*: "from this moment on I write, and found the run in the hands of that one". The run's tag
on the server names the attempt that has it. A fence that finds its forerunner there takes the run; one that finds somebody else
came too late, though it could not know: an outage had kept it apart. Nothing of it is lost, and nothing merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fence:
    """From `time` (ms since 1970) on the process `owner` writes as the attempt `name`. Until then `before` had the run.

    The processes that an attempt has started, and that log into its run, have a fence of its name each.
    """

    name: str
    before: str
    tag: str
    owner: str
    time: int


def in_order(fences: Sequence[Fence]) -> list[Fence]:
    """Each behind the one that it found in possession, if that stands here; else by their times.

    Not by their times alone: the clock may have been set back between two attempts, and two machines have two.
    """
    rest = sorted(fences, key=lambda fence: fence.time)
    ordered: list[Fence] = []
    while rest:
        to_come = {fence.name for fence in rest}
        # A line that bites its own tail is none that an attempt has drawn: by its times then.
        following = next((fence for fence in rest if fence.before not in to_come - {fence.name}), rest[0])
        ordered.append(following)
        rest.remove(following)
    return ordered


# By a fence's name: '' where the run is, or was, in its hands; else the key of the run that takes what it logs.
Verdicts = Mapping[str, str]


def judge(fences: Sequence[Fence], verdicts: Verdicts, holder: str, key: str) -> tuple[dict[str, str], str]:
    """What becomes of each fence, in their order (`in_order`), and who has the run then, which the tag on the server has to say.

    `holder`: what the tag says now, `key`: the run's own key. A fence that has lost stays lost, so that what it logs stays in one
    place; one that had the run has lost what is not delivered yet, once somebody else has taken it, unless that was done here.
    """
    result = dict(verdicts)
    ancestors = _line(fences, holder)
    for fence in fences:
        if result.get(fence.name):
            continue
        if holder in ("", fence.before, fence.name):
            result[fence.name], holder = "", fence.name
        elif fence.name in ancestors:
            result[fence.name] = ""
        elif fence.name in result and any(later.before == fence.name for later in fences):
            continue
        else:
            result[fence.name] = result.get(fence.before) or f"{key}-{fence.name[:12]}"
    return result, holder


def _line(fences: Sequence[Fence], name: str) -> set[str]:
    """The fence of this name and its forerunners, as far as they stand here: the run was theirs in turn."""
    before = {fence.name: fence.before for fence in fences}
    line: set[str] = set()
    while name in before and name not in line:
        line.add(name)
        name = before[name]
    return line


def destination(fences: Sequence[Fence], verdicts: Verdicts, owner: str, time: int) -> str:
    """Where a record goes that `owner` wrote at `time`: '' for the run itself, else the key of another."""
    own = [fence for fence in fences if fence.owner == owner and fence.time <= time]
    return verdicts.get(own[-1].name, "") if own else ""
