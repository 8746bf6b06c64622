"""The page on PyTorch does what it says."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "torch.md"


def test_its_program_runs(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, check=True)
