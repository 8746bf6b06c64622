"""The results as Markdown, JSON and a plot."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write(folder: Path, machine: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    """Write NAME.md, NAME.json and NAME.svg, named after the device."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower()).strip("-")
    tables = _merged(tables)
    record = {"machine": machine, "tables": tables}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(_markdown(name, machine, tables))
    _plot(folder / f"{name}.svg", machine, {table["title"]: table["rows"] for table in tables})


def _merged(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables of one title as one table."""
    merged: dict[str, dict[str, Any]] = {}
    for table in tables:
        known = merged.setdefault(table["title"], {**table, "rows": []})
        known["rows"] = [*known["rows"], *table["rows"]]
    return list(merged.values())


def _markdown(name: str, machine: dict[str, Any], tables: list[dict[str, Any]]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [f"# Speed and memory: {machine['device']}", "", f"`make bench`: {facts}.", ""]
    lines += [f"![what grows how]({name}.svg)", ""]
    for table in tables:
        lines += [f"## {table['title']}", "", table["note"], "", markdown_table(table["rows"]), ""]
    return "\n".join(lines)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table; the columns are those of the first one."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) >= 10:
        value = int(value)
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _plot(path: Path, machine: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> None:
    """The rule's speed-up over plain autodiff, and the growth of a meta-iteration."""
    growth = rows.get("Growth", [])
    quantities = list(dict.fromkeys(row["quantity"] for row in growth))
    figure, axes = plt.subplots(1, 1 + max(len(quantities), 1), figsize=(15, 3.4))
    _plot_rule(axes[0], rows.get("The rule", []))
    for axis, quantity in zip(axes[1:], quantities, strict=False):
        points = [(r["value"], r["ms an iteration"]) for r in growth if r["quantity"] == quantity]
        values, times = zip(*points, strict=True)
        axis.plot(values, times, "o-", color="tab:blue")
        axis.plot(values, [times[0] * v / values[0] for v in values], ":", color="gray")
        axis.set(xscale="log", yscale="log", xlabel=quantity.replace("_", " "))
        axis.set_xticks(values, [str(v) for v in values])
        axis.minorticks_off()
        axis.set_title("ms an iteration (dotted: proportional)", fontsize=8)
    figure.suptitle(f"{machine['device']}, JAX {machine['jax']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _plot_rule(axis: Any, rows: list[dict[str, Any]]) -> None:
    bars = [
        r for r in rows if isinstance(r.get("replay, x"), float) and r["implementation"] != "plain"
    ]
    labels = [f"{row['rule']}, {row['implementation']}" for row in bars]
    axis.barh(labels, [row["replay, x"] for row in bars], color="tab:blue")
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.set_title("meta-gradient, x plain autodiff", fontsize=8)
