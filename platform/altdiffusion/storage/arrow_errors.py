"""What pyarrow raises for a file that is damaged or hostile."""

from __future__ import annotations

import pyarrow as pa

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""The last one is what the name of a column raises that is not UTF-8, where a file is opened."""
