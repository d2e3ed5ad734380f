"""How long a test waits for another process: long enough for any machine, so that only what hangs fails."""

from __future__ import annotations

HANG_SECONDS = 1800
