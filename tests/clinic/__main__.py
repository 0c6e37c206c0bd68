"""`make clinic`: every pair, then recall and precision; ends with 1 where they are too low."""

from rich.console import Console
from rich.table import Table

from clinic.pair import LEAST_PRECISION, LEAST_RECALL, Diagnosis, admitted, precision, recall

console = Console(highlight=False)
diagnoses = [Diagnosis.of(pair) for pair in admitted()]
table = Table(box=None, padding=(0, 1, 0, 0))
for heading in ("code", "found", "script", "after"):
    table.add_column(heading, overflow="fold")
for d in diagnoses:
    script = d.pair.script.__name__.replace("_", " ")
    table.add_row(d.pair.code, "yes" if d.found else "NO", script, d.pair.thread.removeprefix("https://"))
console.print(table)
for d in diagnoses:
    for alarm in d.false_alarms:
        console.print(f"false alarm, {d.pair.name}, {alarm}", style="red")
found, right = recall(diagnoses), precision(diagnoses)
console.print(f"{len(diagnoses)} pairs, recall {found:.1%}, precision {right:.1%}")
raise SystemExit(found < LEAST_RECALL or right < LEAST_PRECISION)
