"""`make clinic`: every pair, then recall and precision."""

from rich.console import Console
from rich.table import Table

from clinic.pair import Diagnosis, admitted, precision, recall

console = Console()
diagnoses = [Diagnosis.of(pair) for pair in admitted()]
table = Table("pair", "found", "false alarms", "after", box=None)
for d in diagnoses:
    table.add_row(d.pair.name, "yes" if d.found else "no", "\n".join(d.false_alarms), d.pair.thread)
console.print(table)
console.print(
    f"{len(diagnoses)} pairs, recall {recall(diagnoses):.1%}, precision {precision(diagnoses):.1%}", highlight=False
)
