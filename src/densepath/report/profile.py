"""Where the time of a step goes, in a terminal and as a page."""

from __future__ import annotations

from densepath.records.profile import StepProfile
from densepath.report.document import Column, Document, Figure, Part, Row, Section, Table
from densepath.report.drawings import Bars
from densepath.report.next_step import after_profile
from densepath.report.words import number


def profile_parts(profile: StepProfile) -> tuple[Part, ...]:
    """A table of the phases, and a plot of them."""
    units = {"CPU": "s", "wall": "s", "share": ""}
    columns = (Column("phase"), *(Column(name, unit, numeric=True) for name, unit in units.items()))
    rows = [
        Row((each.phase, _seconds(each.cpu_seconds), _seconds(each.wall_seconds), f"{each.share:.0%}"))
        for each in profile.phases
    ]
    whole = Row(("step", _seconds(profile.cpu_seconds), _seconds(profile.wall_seconds), "100%"), chosen=True)
    caption = (
        f"medians of {profile.steps} steps of {profile.tokens:.0f} completion tokens: "
        f"{profile.tokens_per_cpu_second:.0f} a CPU second; at most {profile.peak_bytes / 2**30:.2f} GiB resident"
    )
    names = tuple(each.phase for each in profile.phases)
    series = {
        "CPU": tuple(each.cpu_seconds for each in profile.phases),
        "wall": tuple(each.wall_seconds for each in profile.phases),
    }
    figure = Figure("Seconds of a step", Bars(names, series, "seconds, median over the steps"))
    return Table(columns, (*rows, whole), "a step by phase", caption), figure


def _seconds(value: float) -> str:
    return number(value, ".2f")


def profile_page(profile: StepProfile, facts: tuple[tuple[str, str], ...], folder: str) -> Document:
    """The page of a training that lies in `folder`."""
    return Document(
        brand="densepath dpr --profile",
        title="a step by phase",
        facts=facts,
        sections=(Section("phases", "Phases", profile_parts(profile)),),
        footer="Written by densepath dpr --profile; profile.json beside it holds the same data.",
        next=after_profile(folder),
    )
