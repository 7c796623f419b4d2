"""The tables of docs/gallery.md out of benchmarks/results/gallery.json: ``python -m benchmarks.gallery_tables`` writes
them into the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.results_file import recorded

PAGE = Path(__file__).parents[1] / "docs" / "gallery.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def sizes(found: dict[str, Any]) -> list[str]:
    """One column per size: loading, opening, memory, recall."""
    rows = [
        ("added per second, durably, 256 at a time", lambda one: f"{one['added_per_s']:,}"),
        ("making the index from the database, s", lambda one: f"{one['index_s']:.1f}"),
        ("opening and first answer, s", lambda one: f"{one['open_s']:.2f}"),
        (
            "memory, MB (allowed: 1.2 × vectors + 200)",
            lambda one: f"{one['memory_mb']:,} ({one['memory_allowed_mb']:,})",
        ),
        (
            "memory after making it anew, MB",
            lambda one: f"{one['made_memory_mb']:,}" if "made_memory_mb" in one else "–",
        ),
        ("disk, MB", lambda one: f"{one['disk_bytes'] / 2**20:,.0f}"),
        ("lists; looked at", lambda one: f"{one['lists']['lists']}; {one['lists']['probes']}" if one["lists"] else "–"),
        ("recall@10 as `info` reports it", lambda one: f"{one['lists']['recall']:.3f}" if one["lists"] else "1"),
        ("recall@10 of new queries", lambda one: f"{one['recall_of_new_queries']:.3f}"),
        ("erasing one entry, bytes and all, s", lambda one: f"{one['forget_s']:.1f}"),
        (
            "searches meanwhile: median, longest, ms",
            lambda one: "; ".join(f"{value:,.0f}" for value in one["search_while_forgetting_ms"]),
        ),
        ("its bytes are still in the folder", lambda one: "yes" if one["erased_remains"] else "no"),
    ]
    return table(
        ["", *(f"{int(size):,} entries" for size in found)],
        [[name, *(show(one) for one in found.values())] for name, show in rows],
    )


def searches(found: dict[str, Any]) -> list[str]:
    """One row per size and filter: bare FAISS and the gallery."""
    rows = [
        [
            f"{int(size):,}",
            name,
            f"{row['candidates']:,}",
            "yes" if row["exact"] else "no",
            f"{row['faiss_ms']:.2f}",
            f"{row['gallery_ms']:.2f}",
            f"{row['gallery_ms'] - row['faiss_ms']:+.2f}",
            f"{row['ratio']:.2f}",
            f"{row['cpu_ratio']:.2f}",
        ]
        for size, one in found.items()
        for name, row in one["searches"].items()
    ]
    head = [
        "entries",
        "search",
        "candidates",
        "exact",
        "FAISS, ms",
        "gallery, ms",
        "more, ms",
        "ratio",
        "ratio of CPU time",
    ]
    return table(head, rows)


def peers(found: dict[str, Any]) -> list[str]:
    """One row per size and store."""
    rows = []
    for size, stores in found.items():
        for one in stores.values():
            if "search_ms" not in one:
                rows.append(
                    [f"{int(size):,}", one.get("name", "?"), one.get("gave_up") or one.get("failed", "?"), *[""] * 8]
                )
                continue
            erased = "yes" if one["remains_after_erasing"] else "no"
            cleaned = "yes" if one["remains_after_cleaning"] else "no"
            rows.append(
                [
                    f"{int(size):,}",
                    one["name"],
                    f"{one['load_s']:.0f} + {one['index_s']:.0f}",
                    f"{one['search_ms']:.1f}",
                    f"{one['filtered_ms']:.1f}",
                    f"{one['recall']:.3f}",
                    f"{one['recall_filtered']:.3f}",
                    f"{one['disk_mb']:,}",
                    f"{one['memory_mb']:,}",
                    erased,
                    cleaned,
                ]
            )
    head = [
        "entries",
        "store",
        "load + index, s",
        "search, ms",
        "one camera, ms",
        "recall@10",
        "recall@10, one camera",
        "disk, MB",
        "memory, MB",
        "bytes there after erasing",
        "and after cleaning up",
    ]
    return table(head, rows)


def main() -> None:
    """Write the tables between the page's marks."""
    found = recorded("gallery")
    parts = [*sizes(found["faiss"]), "", *searches(found["faiss"]), "", *peers(found["peers"])]
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(parts)}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
