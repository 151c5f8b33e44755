"""The record of an experiment as Markdown, for docs/results.md: a table a setting, with what made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath.report.text import minus, visible


def results_markdown(record: Mapping[str, Any], *, level: int = 2) -> str:
    """A heading, a table, the verdicts and the warnings of each setting, and the commit and command.

    Args:
        record: what `assemble` made.
        level: of the headings.
    """
    info = record["info"]
    made = [f"`{info['command']}`"] if info.get("command") else []
    made += [f"at commit {info['commit']}"] if info.get("commit") else []
    parts = []
    for setting in record["settings"]:
        seeds = len(setting["seeds"])
        parts += [
            f"{'#' * level} {_text(setting['name'])}",
            f"{seeds} seed{'' if seeds == 1 else 's'}, {setting['prompts']['test'] or 'no'} test prompts; "
            + record["metric"]
            + (f"; made by {' '.join(made)}" if made else "")
            + ".",
            _table(setting),
            _list(one["text"] for one in setting["statements"] if one["own_decoding"]),
            _list(f"*{_text(line)}*" for line in setting["warnings"]) if setting["warnings"] else "",
            _sweeps([one for one in record.get("sweeps", ()) if one["setting"] == setting["name"]]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sweeps(sweeps: Sequence[Mapping[str, Any]]) -> str:
    """What validation chose among, bold."""
    if not sweeps:
        return ""
    lines = ["| tuned on validation | value | decoding | mean on validation |", "|---|---|---|---|"]
    for one in sweeps:
        value = "–" if one["value"] is None else _interval(one["value"])
        value = f"**{value}**" if one["chosen"] else value
        lines.append(f"| {_text(one['method'])} | {_text(one['variant'])} | {one['decoding']} | {value} |")
    return "\n".join(lines)


def _list(lines: Any) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(setting: Mapping[str, Any]) -> str:
    """A row a method: the metric at each decoding (bold: chosen on validation), then its own decoding's figures.

    The KL is that of the first decoding where it is measured.
    """
    decodings = setting["decodings"]
    header = ["method", *decodings, "less SFT", "less best control", "length", "KL", "samples", "FLOPs", "seconds"]
    lines = [header, ["---"] * len(header)]
    roles = {(one["method"], one["role"]): one for one in setting["comparisons"] if one["own_decoding"]}
    for method in dict.fromkeys(row["method"] for row in setting["rows"]):
        rows = {row["decoding"]: row for row in setting["rows"] if row["method"] == method}
        own = next((row for row in rows.values() if row["chosen"]), None)
        first = own or next(iter(rows.values()))
        budget = first["budget"]
        kl = next((row["kl"] for row in rows.values() if row["kl"] is not None), None)
        lines.append(
            [
                _text(first["label"]) + (" (control)" if first["control"] and method != "sft" else ""),
                *(_value(rows.get(decoding)) for decoding in decodings),
                _difference(roles.get((method, "sft"))),
                _difference(roles.get((method, "best control")), name=True),
                "–" if first["length"] is None else f"{first['length']:.1f}" + (" ⚠" if first["length_flag"] else ""),
                "–" if kl is None else minus(f"{kl:.2f}"),
                *(
                    "–" if budget[name] is None else format(budget[name], form)
                    for name, form in (("samples", ",.0f"), ("flops", ".3g"), ("seconds", ",.0f"))
                ),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _value(row: Mapping[str, Any] | None) -> str:
    """`.359 ± .043`; the ends where the interval is not symmetric, and how many seeds where some are missing."""
    if row is None:
        return ""
    if row["value"] is None:
        return str(row["status"])
    text = _interval(row["value"])
    text = f"**{text}**" if row["chosen"] else text
    return text + (f" (seed {', '.join(map(str, row['missing_seeds']))} missing)" if row["missing_seeds"] else "")


def _difference(one: Mapping[str, Any] | None, *, name: bool = False) -> str:
    if one is None or one["difference"] is None:
        return "–"
    against = f" ({_text(one['against_label'])}, {one['against_decoding']})" if name else ""
    return f"{_interval(one['difference'], signed=True)} {one['verdict']}{against}"


def _interval(value: Mapping[str, float], *, signed: bool = False) -> str:
    mean, low, high = (value[name] for name in ("mean", "low", "high"))
    text = f"{mean:{'+' if signed else ''}.3f}"
    if abs((high - mean) - (mean - low)) < 1e-9:
        return minus(f"{text} ± {high - mean:.3f}")
    return minus(f"{text} [{low:.3f}, {high:.3f}]")


def _text(text: str) -> str:
    """Text that cannot leave its cell or start markup."""
    for sign in "\\`*_<>|[]":
        text = text.replace(sign, "\\" + sign)
    return " ".join(visible(text).split())
