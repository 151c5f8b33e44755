"""Which command when, as a figure: `python docs/images/commands.py` writes commands.svg beside this file."""

from __future__ import annotations

import textwrap
from pathlib import Path

from markupsafe import Markup

from densepath.report.elements import element

LANES = (
    (
        "You have demonstrations and a model to start from",
        (
            ("plan", "Does it fit into memory?"),
            ("run", "The whole job, with its control and a report"),
            ("experiment", "Does it hold over seeds, against every control?"),
            ("report", "The page again, from the files alone"),
        ),
        True,
    ),
    (
        "You want the same in single steps",
        (
            ("sft", "Fine-tune, and keep checkpoints on the way"),
            ("diagnose", "Will DPR help, and with which reference?"),
            ("dpr", "Train on the reward that was found"),
            ("purify", "Sort the demonstrations with it, and train again"),
        ),
        True,
    ),
    (
        "You have models, and prompts to ask them",
        (
            ("generate", "What do they answer?"),
            ("judge", "Whose answers are better?"),
            ("judge-eval", "Can a judge tell which is better?"),
            ("eval", "How many answers are right?"),
        ),
        False,
    ),
    (
        "You have an SFT model and an earlier checkpoint of it: use the reward itself",
        (
            ("score", "What did each token earn?"),
            ("view", "Look at it, token by token"),
            ("audit", "Which rows of the data look wrong?"),
            ("rank", "Which of n answers is best?"),
            ("reward-eval", "Does it tell right from wrong?"),
            ("serve", "The reward over HTTP"),
        ),
        False,
    ),
    (
        "You want to be sure",
        (("theory", "Do the statements behind it hold?"), ("env", "Versions and devices, for a bug report")),
        False,
    ),
)
"""(what the reader has, (command, question that it answers), whether one leads to the next)."""

WIDTH, EDGE, GAP = 1000, 16, 22
"""Units of the drawing."""
LANE, HEAD, BOX = 132, 34, 78
STYLE = """
svg { --ink: #1b2027; --muted: #5b6571; --line: #c9ced5; --card: #ffffff; --back: #f1f3f5; --link: #1769b5; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6e9ed; --muted: #a2abb6; --line: #4a525c; --card: #191d23; --back: #20252c; --link: #5fa8f0; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  fill: var(--muted); }
.lane { fill: var(--back); } .have { font-weight: 600; fill: var(--ink); }
.box { fill: var(--card); stroke: var(--line); } .name { font-weight: 700; font-size: 15px; fill: var(--link); }
.arrow { fill: none; stroke: var(--muted); stroke-width: 1.6; }
"""


def figure() -> str:
    """The figure as SVG."""
    lanes = [_lane(number, *lane) for number, lane in enumerate(LANES)]
    height = len(LANES) * (LANE + EDGE) + EDGE
    return str(
        element(
            "svg",
            element("style", Markup(STYLE)),
            *lanes,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {height}",
            role="img",
            aria_label="Which command answers which question",
        )
        + Markup("\n")
    )


def _lane(number: int, have: str, commands: tuple[tuple[str, str], ...], leads_on: bool) -> Markup:
    top = EDGE + number * (LANE + EDGE)
    width = (WIDTH - 4 * EDGE - 5 * GAP) / 6 if len(commands) > 4 else (WIDTH - 4 * EDGE - 3 * GAP) / 4
    parts = [
        element("rect", x=EDGE, y=top, width=WIDTH - 2 * EDGE, height=LANE, rx=10, class_="lane"),
        element("text", have, x=2 * EDGE, y=top + 23, class_="have"),
    ]
    for place, (name, question) in enumerate(commands):
        left = 2 * EDGE + place * (width + GAP)
        parts += _box(left, top + HEAD, width, name, question)
        if leads_on and place:
            end, middle = left - 3, top + HEAD + BOX / 2
            line = f"M{end - GAP + 6:g} {middle:g}H{end:g}m-5 -4l5 4l-5 4"
            parts.append(element("path", d=line, class_="arrow"))
    return element("g", *parts)


def _box(left: float, top: float, width: float, name: str, question: str) -> list[Markup]:
    lines = textwrap.wrap(question, int((width - 20) / 6.6))
    texts = [element("text", line, x=f"{left + 12:g}", y=top + 45 + 17 * index) for index, line in enumerate(lines)]
    box = element("rect", x=f"{left:g}", y=top, width=f"{width:g}", height=BOX + 6, rx=7, class_="box")
    return [box, element("text", name, x=f"{left + 12:g}", y=top + 24, class_="name"), *texts]


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(figure(), encoding="utf-8")
