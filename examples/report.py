"""The demo's picture: one HTML file, readable offline, of what the student learned."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arwkv_store.format.statistics import ENTROPY_BIN_NATS

TEACHER_COLOUR, STUDENT_COLOUR = "#8a6d3b", "#1f6feb"
Record = Mapping[str, Any]

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>ARWKV: {title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8882; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
p.lead {{ color: #777; margin-top: .2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ border-bottom: 1px solid var(--line); padding: .3rem .9rem .3rem 0; text-align: left; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }}
.figures img {{ width: 100%; background: white; border-radius: 6px; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; margin-bottom: 1rem; }}
pre {{ background: var(--soft); padding: .8rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
       margin: .2rem 0; font-size: .85rem; }}
.prompt {{ opacity: .55; }}
</style>
<h1>{title}</h1><p class="lead">{lead}</p>
<h2>Figures</h2><table>{rows}</table>
<h2>Training</h2><div class="figures">{charts}</div>
<h2>The same prompts, continued with the same random numbers (temperature 0.7)</h2>{samples}
</html>
"""


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    table: Sequence[tuple[str, str]],
    metrics: Sequence[Record],
    summary: Record,
    stats: Record,
    continuations: Sequence[tuple[str, str, str]],
) -> None:
    """Write the report.

    `metrics` are the lines of metrics.jsonl, `stats` the dataset statistics as the service gives them, `continuations`
    triples of a prompt, the teacher's text and the student's.
    """
    charts = [
        _chart(lambda axes: _plot_loss(axes, metrics, "align"), "Stage 1: distance to the attention outputs"),
        _chart(lambda axes: _plot_loss(axes, metrics, "distill"), "Stage 2: KL to the teacher, training batches"),
        _chart(lambda axes: _plot_kl(axes, summary), "Held-out KL to the teacher"),
        _chart(lambda axes: _plot_histogram(axes, stats), "Entropy of the teacher's distributions"),
    ]
    path.write_text(
        PAGE.format(
            title=html.escape(title),
            lead=html.escape(lead),
            rows="".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in table),
            charts="".join(charts),
            samples="".join(_pair(*texts) for texts in continuations),
        )
    )


def _chart(plot: Any, title: str) -> str:
    figure = Figure(figsize=(5.2, 3.3), layout="constrained")
    axes = figure.subplots()
    plot(axes)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    encoded = base64.b64encode(picture.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{encoded}">'


def _plot_loss(axes: Axes, metrics: Sequence[Record], stage: str) -> None:
    points = [(m["tokens"], m["loss"]) for m in metrics if m.get("stage") == stage and "loss" in m]
    if points:
        axes.plot(*zip(*points, strict=True), color=STUDENT_COLOUR, linewidth=1.4)
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss" if stage == "align" else "nats per token")
    axes.set_ylim(bottom=0)


def _plot_kl(axes: Axes, summary: Record) -> None:
    names = {"kl_untrained": "untrained", "kl_align": "after align", "kl_distill": "after distill"}
    bars = axes.bar(list(names.values()), [summary[key] for key in names], color=STUDENT_COLOUR)
    axes.bar_label(bars, fmt="%.3f", padding=2)
    axes.set_yscale("log")
    axes.set_ylabel("nats per token")
    axes.margins(y=0.2)


def _plot_histogram(axes: Axes, stats: Record) -> None:
    counts = stats["entropy_histogram"]
    axes.stairs(counts, [bin * ENTROPY_BIN_NATS for bin in range(len(counts) + 1)], fill=True, color=TEACHER_COLOUR)
    axes.set_xlabel("entropy, nats")
    axes.set_ylabel("tokens")


def _pair(prompt: str, teacher: str, student: str) -> str:
    def side(name: str, text: str) -> str:
        return f'<div>{name}<pre><span class="prompt">{html.escape(prompt)}</span>{html.escape(text)}</pre></div>'

    return f'<div class="pair">{side("Teacher", teacher)}{side("Student", student)}</div>'
