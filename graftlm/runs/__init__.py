"""A run from its recipe to its results: data, training, adapters on disk, report."""

from graftlm.runs.execute import RunResult, execute
from graftlm.runs.folder import RunFolder, choose_folder, locked
from graftlm.runs.setup import PreparedRun, set_up

__all__ = ["PreparedRun", "RunFolder", "RunResult", "choose_folder", "execute", "locked", "set_up"]
