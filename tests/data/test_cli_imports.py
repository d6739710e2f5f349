from __future__ import annotations

import subprocess
import sys


def test_help_needs_no_torch():
    code = "import sys, graftlm.cli.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
