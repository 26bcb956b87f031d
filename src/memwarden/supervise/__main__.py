"""The lean process that `memwarden run` becomes; started by path, without site-packages (see entry.py)."""

from __future__ import annotations

import os
import sys

# Behind the standard library, as site-packages is: nothing installed there may stand in for one of its modules.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from memwarden.supervise.entry import main

sys.exit(main(sys.argv[1:]))
