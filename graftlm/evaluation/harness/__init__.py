"""lm-evaluation-harness, the library ``lm_eval``: its tasks for all adapters in one pass, and our tasks as its own.

Nothing here imports it before it is used: it is an optional extra, and takes a second.
"""

from graftlm.evaluation.harness.run import HarnessLine, HarnessSettings, harness_lines, require_lm_eval, run_harness
from graftlm.evaluation.harness.tasks import Written, write_harness_tasks

__all__ = [
    "HarnessLine",
    "HarnessSettings",
    "Written",
    "harness_lines",
    "require_lm_eval",
    "run_harness",
    "write_harness_tasks",
]
