"""One self-contained HTML page over one or several runs: figures, curves, behaviours, what the model wrote.

Nothing is fetched when the page is opened: pictures are inside, there is no script.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment

from trl_r1.data.rollouts import Rollout
from trl_r1.evaluation.behaviours import length_by_difficulty
from trl_r1.evaluation.plots import is_share
from trl_r1.responses import parse

# Metrics of the stage table, and of the cards at the top.
_STAGE_METRICS = ("pass@1", "well_formed", "truncated", "mean_tokens")
# More is better, or worse; of the others a change is just a change.
_GOOD = ("pass@1", "cons@", "pass@", "well_formed", "check_precision", "language_share")
_BAD = ("no_answer", "truncated", "repetition", "gave_up")
_QUESTION_CHARACTERS, _TEXT_CHARACTERS = 2_000, 20_000


@dataclass(frozen=True)
class ReportRun:
    """What the page shows of one run.

    Args:
        name (`str`): Heading.
        report (`Mapping`): Content of `report.json`; may be empty for a run that goes on.
        curves (`Path`, *optional*): PNG of its curves.
        behaviours (`Path`, *optional*): PNG of its behaviours.
        rollouts (`Sequence[Rollout]`): Completions of training, to choose samples from.
    """

    name: str
    report: Mapping[str, Any] = field(default_factory=dict)
    curves: Path | None = None
    behaviours: Path | None = None
    rollouts: Sequence[Rollout] = ()


def render_report(runs: Sequence[ReportRun], shared_curves: Path | None = None, footer: str = "") -> str:
    """Render the page.

    Args:
        runs (`Sequence[ReportRun]`): In the order of the stages, or of interest.
        shared_curves (`Path`, *optional*): PNG of the curves that all runs share.
        footer (`str`, defaults to `""`): Last line.

    Returns:
        `str`: The HTML.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8"))
    several = len(runs) > 1
    page = {
        "title": "What training did: " + ", ".join(run.name for run in runs) if several else _title(runs[0]),
        "lead": f"{len(runs)} runs" if several else _lead(runs[0].report),
        "runs": [_run(run) for run in runs],
        "stages": [_stage(run) for run in runs if run.report] if several else [],
        "stage_metrics": _STAGE_METRICS,
        "shared_curves": _embedded(shared_curves),
        "footer": footer,
    }
    return template.render(page=page)


def _title(run: ReportRun) -> str:
    return f"{run.report['stage']} on {run.report.get('dataset', '?')}" if run.report.get("stage") else run.name


def _lead(report: Mapping[str, Any]) -> str:
    if not report:
        return "This run has not ended: there is no report.json yet."
    known = [
        f"from {report['model']}" if report.get("model") else "",
        f"{report['steps']} steps" if report.get("steps") else "",
        _duration(report["seconds"]) if report.get("seconds") else "",
        str(report.get("device") or ""),
        f"{report['world_size']} processes" if (report.get("world_size") or 1) > 1 else "",
    ]
    return " · ".join(part for part in known if part)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _run(run: ReportRun) -> dict[str, Any]:
    report = run.report
    return {
        "name": run.name,
        "lead": _lead(report),
        "cards": _cards(report),
        "table": _table(report),
        "table_note": _table_note(report),
        "breakdowns": [*_breakdowns(report), *_by_difficulty(run.rollouts)],
        "curves": _embedded(run.curves),
        "behaviours": _embedded(run.behaviours),
        "samples": [_sample(one) for one in choose_samples(run.rollouts)],
        "settings": _settings(report),
    }


def _embedded(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _number(value: Any, share: bool, sign: bool = False) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{100 * value if share else value:{'+' if sign else ''}.1f}" + (" %" if share and not sign else "")


def _interval(bounds: Any, share: bool) -> str:
    if not bounds:
        return ""
    scale = 100 if share else 1
    return f"[{bounds[0] * scale:.1f}, {bounds[1] * scale:.1f}]"


def _trend(name: str, change: Sequence[float] | None) -> str:
    """Whether a change is an improvement: only where its interval excludes zero."""
    if not change or change[1] <= 0 <= change[2]:
        return ""
    if not name.startswith(_GOOD + _BAD):
        return ""
    return "up" if (change[0] > 0) == name.startswith(_GOOD) else "down"


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    before, after, change = (report.get(side) or {} for side in ("before", "after", "change"))
    names = [
        name for name in after.get("intervals", {}) if name in ("pass@1", "well_formed", "truncated", "mean_tokens")
    ]
    names += [name for name in after.get("intervals", {}) if name.startswith("cons@")]
    return [
        {
            "value": _number(after[name], is_share(name)),
            "label": f"{name.replace('_', ' ')}, was {_number(before.get(name), is_share(name))}",
            "trend": _trend(name, change.get(name)),
        }
        for name in names
        if name in after
    ]


def _table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, after, change = (report.get(side) or {} for side in ("before", "after", "change"))
    rows = []
    for name in after.get("intervals", {}):
        share, moved = is_share(name), change.get(name)
        cells: list[dict[str, str]] = [
            {
                "value": _number(side.get(name), share),
                "interval": _interval(side.get("intervals", {}).get(name), share),
                "trend": "",
            }
            for side in (before, after)
        ]
        cells.append(
            {
                "value": _number(moved[0], share, sign=True) if moved else "",
                "interval": _interval(moved[1:], share) if moved else "",
                "trend": _trend(name, moved),
            }
        )
        rows.append({"name": name.replace("_", " "), "cells": cells})
    return rows


def _table_note(report: Mapping[str, Any]) -> str:
    held, after = report.get("held_out") or {}, report.get("after") or {}
    parts = [
        f"{after.get('problems', '?')} questions × {held.get('samples', '?')} samples, temperature {held.get('temperature', '?')}, top-p "
        f"{held.get('top_p', '?')}, at most {held.get('max_tokens', '?')} tokens; 95 % intervals over questions, changes paired."
    ]
    if after.get("unverifiable"):
        parts.append(f"{after['unverifiable']} gold answers could not be read and are left out.")
    return " ".join(parts)


def _breakdowns(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, after = report.get("before") or {}, report.get("after") or {}
    found = []
    for key, title in (("by_depth", "By difficulty"), ("by_domain", "By domain"), ("by_language", "By language")):
        parts = after.get(key) or {}
        if parts:
            rows = [
                [
                    name,
                    str(part.get("problems", "")),
                    *(_number((side.get(key) or {}).get(name, {}).get("pass@1"), True) for side in (before, after)),
                    *(
                        _number((side.get(key) or {}).get(name, {}).get("mean_tokens_correct"), False)
                        for side in (before, after)
                        if key == "by_depth"
                    ),
                ]
                for name, part in parts.items()
            ]
            header = ["", "questions", "pass@1 before", "pass@1 after"]
            header += ["tokens of right answers before", "after"] if key == "by_depth" else []
            found.append({"title": title, "header": header, "rows": rows})
    return found


def _by_difficulty(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    found = length_by_difficulty(rollouts)
    if not found:
        return []
    rows = [
        [
            name,
            str(one["questions"]),
            _number(one["tokens_right"], False),
            _number(one["tokens_wrong"], False),
            _number(one["truncated"], True),
        ]
        for name, one in found.items()
    ]
    return [
        {
            "title": "Length of training answers by difficulty",
            "header": ["", "questions", "tokens of right answers", "of wrong answers", "cut off"],
            "rows": rows,
            "note": "Difficulty by the policy's own share of right answers in the group: hard below a third, easy above two thirds.",
        }
    ]


def _stage(run: ReportRun) -> dict[str, Any]:
    after = run.report.get("after") or {}
    return {
        "name": run.name,
        "stage": run.report.get("stage", "–"),
        "model": run.report.get("model", "–"),
        "cells": [
            {
                "value": _number(after.get(name), is_share(name)),
                "interval": _interval(after.get("intervals", {}).get(name), is_share(name)),
            }
            for name in _STAGE_METRICS
        ],
    }


def choose_samples(rollouts: Sequence[Rollout], each: int = 3) -> list[Rollout]:
    """Completions worth reading: right and wrong ones from the first and from the last rollout.

    Args:
        rollouts (`Sequence[Rollout]`): Of one run, in the order of training.
        each (`int`, defaults to 3): Of every kind, from different questions where there are enough.

    Returns:
        `list[Rollout]`: At most `4 * each`.
    """
    if not rollouts:
        return []
    chosen: list[Rollout] = []
    for step in sorted({rollouts[0].step, rollouts[-1].step}):
        for right in (True, False):
            kind = [one for one in rollouts if one.step == step and _is_right(one) == right]
            firsts = {one.group: one for one in reversed(kind)}
            chosen += list(reversed(firsts.values()))[:each]
    return chosen


def _is_right(rollout: Rollout) -> bool:
    return float(rollout.rewards.get("accuracy_reward") or 0) > 0.5


def _sample(rollout: Rollout) -> dict[str, Any]:
    response = parse(rollout.completion, prefill=rollout.prefill, truncated=rollout.truncated)
    prompt = rollout.row.prompt
    question = prompt if isinstance(prompt, str) else "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    right = _is_right(rollout)
    return {
        "verdict": "right" if right else "wrong",
        "trend": "up" if right else "down",
        "step": rollout.step,
        "tokens": rollout.tokens,
        "truncated": rollout.truncated,
        "title": _title_of(question),
        "question": _cut(question, _QUESTION_CHARACTERS),
        "thinking": _cut(response.reasoning, _TEXT_CHARACTERS) or "(none)",
        "answer": _cut(response.summary.strip() or rollout.completion, _TEXT_CHARACTERS),
        "reference": _cut(rollout.row.reference, _QUESTION_CHARACTERS),
        "rewards": [(name, "–" if value is None else f"{value:g}") for name, value in rollout.rewards.items()],
    }


def _title_of(question: str) -> str:
    """The question without the plain-text template around it (trl_r1/r1_zero.jinja), on one line."""
    asked = question.rpartition("User: ")[2].rpartition("Assistant:")[0] or question
    line = " ".join(asked.split())
    return line if len(line) <= 100 else line[:99] + "…"


def _cut(text: str, most: int) -> str:
    return (
        text
        if len(text) <= most
        else f"{text[: most // 2]}\n… {len(text) - most} characters left out …\n{text[-most // 2 :]}"
    )


def _settings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [*(report.get("settings") or {}).items(), *(report.get("versions") or {}).items()]
    return [(str(name), str(value)) for name, value in pairs]
