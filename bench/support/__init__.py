"""What the benchmarks share. Importing it lets them import mixjax and configs.

A benchmark is started as a script, so that its own folder is on the path of imports but
the checkout is not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
