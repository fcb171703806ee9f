"""``python -m airflow_agent_provider.rehearsal``: see the module ``server``."""

from __future__ import annotations

import sys

from airflow_agent_provider.rehearsal.server import main

if __name__ == "__main__":
    sys.exit(main())
