"""One completion with each token coloured by its dense reward: an HTML fragment that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from densepath.records.completion import Span
from densepath.report.elements import asset
from densepath.report.text import minus, visible
from densepath.report.words import nats, number

LEVELS = 10
"""Steps of colour on either side of zero; level 0 has no colour."""

_NICE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)


def color_level(reward: float, scale: float) -> int:
    """The colour step of a reward: -LEVELS .. LEVELS, odd in the reward and monotone.

        level = sign(r) * floor(LEVELS * min(|r| / scale, 1) + 1/2)

    Args:
        reward: nats.
        scale: nats, positive; a reward of this size or more has the full colour.
    """
    if not math.isfinite(reward):
        return 0
    level = math.floor(LEVELS * min(abs(reward) / scale, 1.0) + 0.5)
    return level if reward > 0 else -level


def heat_scale(spans: Iterable[Span]) -> float:
    """The 98th percentile of |reward| over the spans, rounded up to a round number (nats); 1 where all are zero.

    A few extreme tokens therefore share the full colour instead of bleaching all others.
    """
    sizes = sorted(abs(span.reward) for span in spans)
    size = sizes[math.ceil(0.98 * len(sizes)) - 1] if sizes else 0.0
    if size <= 0 or not math.isfinite(size):
        return 1.0
    power = 10.0 ** math.floor(math.log10(size))
    return next(round(step * power, 9) for step in (*_NICE, 20.0) if step * power >= size * (1 - 1e-9))


def heatmap_css() -> str:
    """The style of the heat map: colours for light, dark and print."""
    return asset("heatmap.css")


def legend_html(scale: float) -> str:
    """Swatches with their rewards in nats, and how to read the underlines."""
    swatches = []
    for level in (-10, -7, -5, -2, 0, 2, 5, 7, 10):
        number = minus(f"{level / LEVELS * scale:+.2g}") if level else "0"
        bound = {-10: "≤ ", 10: "≥ "}.get(level, "")
        swatches.append(Markup('<b class="{}">{}</b>').format(_level_class(level), bound + number))
    legend = Markup(
        '<p class="dp-legend"><span>dense reward of a token, nats:</span> <span class="dp-heat dp-scale">{}</span> '
        "<span>solid underline: positive, dotted: negative</span></p>"
    ).format(Markup("").join(swatches))
    return str(legend)


def heatmap_html(
    spans: Sequence[Span],
    *,
    scale: float | None = None,
    label: str = "completion",
    standalone: bool = True,
    marks: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """The coloured completion as an HTML fragment; all text is escaped.

    Args:
        spans: runs of tokens decoded together, in order. A run is coloured by the sum of its rewards; its tooltip
            lists each token, and the sum of rewards up to and including the run.
        scale: nats at full colour; by default from these spans. Give one scale to maps that are compared.
        label: what a screen reader announces.
        standalone: with the style and the legend; without them for a page that holds many.
        marks: (start, end) of runs that a link leads to -> the id of that place in the page; they do not overlap.
    """
    scale = heat_scale(spans) if scale is None else scale
    total = 0.0
    parts = []
    for item in spans:
        total += item.reward
        parts.append(span_html(item, total, scale))
    for (start, end), name in (marks or {}).items():
        parts[start] = Markup('<span class="dp-run" id="{}">').format(name) + parts[start]
        parts[end - 1] += Markup("</span>")
    body = Markup('<div class="dp-heat" dir="auto" role="group" aria-label="{}">{}</div>').format(
        visible(label), Markup("").join(parts)
    )
    if not standalone:
        return str(body)
    page = Markup('<div class="dp-alone"><style>{}</style>{}{}</div>').format(
        Markup(heatmap_css()), Markup(legend_html(scale)), body
    )
    return str(page)  # not Markup, whose + would escape the caller's own HTML


def _level_class(level: int) -> str:
    return f"p{level}" if level > 0 else f"n{-level}" if level < 0 else "z"


def span_html(span: Span, total: float, scale: float, text: str | None = None) -> Markup:
    """One run of tokens, coloured and with its numbers as a tooltip.

    Args:
        span: the run.
        total: nats, the sum of rewards up to and including the run.
        scale: nats at full colour.
        text: what to show in place of the run's own text.
    """
    level = color_level(span.reward, scale)
    sign = "" if level else (" s" if span.reward > 0 else "")
    return Markup('<b class="{}" title="{}">{}</b>').format(
        _level_class(level) + sign, _tooltip(span, total), _marked(span.text if text is None else text)
    )


def shown(text: str) -> str:
    """Text on one line, with its spaces, tabs and line ends drawn."""
    return visible(text).replace("\n", "↵").replace("\t", "→").replace(" ", "␣")


def quoted(text: str, longest: int) -> str:
    """As `shown`, cut after so many characters; ∅ where there is nothing to see."""
    quote = shown(text) or "∅"
    return quote if len(quote) <= longest else quote[: longest - 1] + "…"


def _tooltip(span: Span, total: float) -> str:
    lines = [f"“{shown(span.text)}”"]
    for index, (token, reward) in enumerate(zip(span.token_ids, span.rewards, strict=True)):
        words = [f"id {token}", f"reward {nats(reward, '+.3f')}"]
        words += [f"logprob {number(span.logprobs[index])}"] if span.logprobs else []
        lines.append(" · ".join(words))
    if len(span.rewards) > 1:
        lines.append(f"together {nats(span.reward, '+.3f')}")
    return "\n".join([*lines, f"sum so far {nats(total, '+.3f')} nats"])


def _marked(text: str) -> Markup:
    """The text with marks at newlines, tabs and lone spaces; the marks are drawn, so the text itself is untouched."""
    if not text:
        return Markup('<i data-m="∅"></i>')
    marked = escape(visible(text))
    if not text.strip(" "):
        return Markup('<i data-m="␣"></i>') + marked
    marked = marked.replace("\n", Markup('<i data-m="↵"></i>\n'))
    return marked.replace("\t", Markup('<i data-m="→"></i>\t'))
