"""The results of the lab as a page: a table of claims and verdicts, and a section for each experiment."""

from __future__ import annotations

import platform
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from evenorm.lab.curves import figures
from evenorm.lab.evidence import command
from evenorm.lab.experiment import VERDICTS, Finding, Result, Verdict
from evenorm.lab.report.document import Plots, document, plural, prose, save

# A sign beside the word, so that no verdict is told by color alone.
SIGNS: dict[Verdict, str] = {
    "holds": "✓",
    "does not hold": "✗",
    "reversed": "⇄",
    "undecided": "?",
    "not testable here": "–",
}


def write(results: Sequence[Result], output: Path) -> None:
    """Write the page of results that have at least one seed each."""
    save(page(results), output)


def page(results: Sequence[Result]) -> str:
    """Return the whole page."""
    plots = Plots()
    body = "".join(
        [
            header(results),
            "<main>",
            introduction(results),
            table(results),
            *(section(result, plots) for result in results),
            "</main>",
            footer(results),
        ]
    )
    return document("evenorm lab: claims about normalization, measured", body, plots)


def header(results: Sequence[Result]) -> str:
    """Return the title and the tally."""
    verdicts = [finding.verdict for result in results for finding in result.findings]
    tally = " · ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts)
    return (
        "<header><h1>Claims about normalization, measured</h1>"
        f"<p class='quiet'>{plural(len(results), 'experiment')}, {plural(len(verdicts), 'claim')}: {tally}</p></header>"
    )


def introduction(results: Sequence[Result]) -> str:
    """Return how to read the page."""
    provisional = ""
    if any(result.setting.scale == "quick" for result in results):
        provisional = (
            "<p class='stopped'><strong>Provisional.</strong> These are quick runs of three seeds, whose interval is "
            "their range.</p>"
        )
    return (
        "<p>Articles and papers say much about what normalization layers do to a neural network. Here each claim is an "
        "experiment that runs in minutes: small networks, trained with and without, the same seeds for both. "
        "A claim’s rule was written down before its run, and its verdict is where the whole 95&nbsp;% bootstrap "
        "interval over seeds lies. It speaks of these networks and these data, and of nothing else.</p>" + provisional
    )


def badge(verdict: Verdict) -> str:
    """Return a verdict, told by sign, word and color."""
    return (
        f"<span class='verdict {verdict.split()[0]}'><span aria-hidden='true'>{SIGNS[verdict]}</span> {verdict}</span>"
    )


def table(results: Sequence[Result]) -> str:
    """Return every claim with its effect and its verdict, and buttons to pick verdicts."""
    lines = []
    for result in results:
        slug = result.experiment.slug
        for place, finding in enumerate(result.findings):
            name = f"<a href='#{slug}'>{slug}</a>" if not place else f"<span class='again'>{slug}</span>"
            lines.append(
                f"<tr data-verdict='{finding.verdict}'{' class=more' * bool(place)}><th scope='row'>{name}</th>"
                f"<td class='words'>{escape(finding.claim.text)}</td>"
                f"<td class='number'>{effect(finding)}</td><td>{badge(finding.verdict)}</td></tr>"
            )
    present = {finding.verdict for result in results for finding in result.findings}
    buttons = "".join(
        f"<button type='button' aria-pressed='true' data-verdict='{verdict}'>{SIGNS[verdict]} {verdict}</button>"
        for verdict in VERDICTS
        if verdict in present
    )
    return (
        "<h2 id='claims'>Claims and verdicts</h2>"
        f"<div class='filters' role='group' aria-label='Verdicts shown; press to hide'>{buttons}</div>"
        "<table class='claims'><thead><tr><th scope='col'>experiment</th><th scope='col'>claim</th>"
        "<th scope='col'>effect [95&nbsp;% interval]</th><th scope='col'>verdict</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def effect(finding: Finding) -> str:
    """Return an effect whose number stays with its unit, and whose interval may go to the next line."""
    if not finding.values:
        return escape(finding.text)
    value, _, interval = finding.text.partition(" [")
    return f"<span class='kept'>{escape(value)}</span> <span class='kept'>[{escape(interval)}</span>"


def section(result: Result, plots: Plots) -> str:
    """Return one experiment: question, protocol, claims, plots, numbers, settings, command."""
    experiment = result.experiment
    failed = "".join(
        f"<p class='note'>Seed {seed} failed: {escape(reason)}</p>" for seed, reason in sorted(result.failures.items())
    )
    return (
        f"<section id='{experiment.slug}'><h2><span class='slug'>{experiment.slug}</span> "
        f"{escape(experiment.question)}</h2><div class='findings'>{''.join(map(claim, result.findings))}</div>{failed}"
        f"<h3>What was seen</h3>{plots.grid(figures(result))}{pictures(result)}"
        f"<h3>How it was measured</h3><p>{prose(experiment.protocol)}</p>"
        f"<p><strong>What would change it:</strong> {escape(experiment.changes)}</p>"
        f"{numbers(result)}{settings(result)}"
        "<p class='back'><a href='#claims'>All claims</a></p></section>"
    )


def claim(finding: Finding) -> str:
    """Return one claim: who says it, what was measured, the rule, the interval drawn, the verdict."""
    about = finding.claim
    return (
        f"<article><p class='said'>{badge(finding.verdict)} {escape(about.text)}</p>"
        f"<p class='note'>{escape(about.source)}</p>{ruler(finding)}"
        f"<p class='note'>Measured: {escape(about.effect)}. <strong>{effect(finding)}</strong><br>"
        f"{prose(about.rule.text(about.unit))}</p></article>"
    )


def ruler(finding: Finding) -> str:
    """Draw the seeds, the interval and the rule's marks on one line."""
    if not finding.values:
        return ""
    rule = finding.claim.rule
    points = np.array([*finding.values, rule.holds, rule.reverses])
    scale = np.log if finding.claim.unit == "×" else np.asarray
    ends = scale(points)
    low, width = float(ends.min()), float(ends.max() - ends.min())

    def at(value: float) -> float:
        return 6 + 88 * (float(scale(value)) - low) / width

    up = rule.holds > rule.reverses
    sides = ("against", "wanted") if up else ("wanted", "against")
    first, last = sorted((at(rule.holds), at(rule.reverses)))
    marks = (("reversed", rule.reverses), ("holds", rule.holds))
    words = [f"{word} from {value:.3g}".replace("-", "−") for word, value in marks]
    seeds = "".join(f"<i class='seed' style='left:{at(value):.1f}%'></i>" for value in finding.values)
    return (
        f"<div class='ruler' role='img' aria-label='{escape(finding.text)}; {'; '.join(words)}'><div class='bar'>"
        f"<i class='{sides[0]}' style='left:0;width:{first:.1f}%'></i>"
        f"<i class='{sides[1]}' style='left:{last:.1f}%;right:0'></i>"
        f"<i class='interval' style='left:{at(finding.low):.1f}%;width:{at(finding.high) - at(finding.low):.1f}%'></i>"
        f"{seeds}</div><div class='marks' aria-hidden='true'>"
        f"{''.join(f'<span>{word}</span>' for word in (words if up else words[::-1]))}</div></div>"
    )


def pictures(result: Result) -> str:
    """Return the experiment's pictures, of the first seed."""
    first = result.observations[result.seeds[0]]
    places = [
        f"<figure><h4>{escape(plot.title)}</h4><div class='pictures'>"
        + "".join(picture(name, values[0]) for name, values in first.curves.get(plot.key, {}).items())
        + "</div></figure>"
        for plot in result.experiment.plots
        if plot.kind == "pictures"
    ]
    return "".join(places)


def picture(name: str, rows: Sequence[Sequence[float]]) -> str:
    """Return one gray picture with its name."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray((255 * np.clip(np.asarray(rows), 0, 1)).astype(np.uint8)).save(file, "PNG")
    source = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
    return f"<figure><img src='{source}' alt='{escape(name)}'><figcaption>{escape(name)}</figcaption></figure>"


def numbers(result: Result) -> str:
    """Return the numbers behind the effects, by seed."""
    names = list(dict.fromkeys(name for seed in result.seeds for name in result.observations[seed].figures))
    if not names:
        return ""
    heads = "".join(f"<th scope='col'>seed {seed}</th>" for seed in result.seeds)
    lines = []
    for name in names:
        values = [result.observations[seed].figures.get(name) for seed in result.seeds]
        cells = "".join(f"<td>{'–' if value is None else f'{value:.4g}'}</td>" for value in values)
        lines.append(f"<tr><th scope='row'>{escape(name)}</th>{cells}</tr>")
    return (
        "<details><summary>The numbers, by seed</summary><div class='wide' tabindex='0' role='region' "
        f"aria-label='Numbers of {result.experiment.slug}'><table><thead><tr><th scope='col'>figure</th>{heads}</tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def settings(result: Result) -> str:
    """Return scale, seeds and data, and the command that measures it again."""
    record = result.setting.record(result.experiment.data)
    data = ", ".join(record[kind][0] for kind in result.experiment.data) or "made by the experiment"
    seeds = f"{plural(len(result.seeds), 'seed')} ({', '.join(map(str, result.seeds))})"
    return (
        f"<p class='note'>Scale {result.setting.scale}, {seeds}; data: {escape(data)}.</p>"
        f"<pre>{escape(command(result))}</pre>"
    )


def footer(results: Sequence[Result]) -> str:
    """Return what makes all of it again."""
    setting = results[0].setting
    words = ["evenorm lab run --all", f"--scale {setting.scale}", *(f"--data {path}" for path in setting.data)]
    return (
        f"<footer><h2>Make it again</h2><pre>{escape(' '.join(words))}</pre>"
        f"<p>The same seeds give the same numbers, times apart. evenorm on torch {escape(torch.__version__)}, "
        f"Python {platform.python_version()}, {escape(platform.machine())}.</p></footer>"
    )
