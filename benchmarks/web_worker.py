"""Our side of `benchmarks.web`: one worker that downloads a links version, as it is on a cluster and with nothing else.

    python -m benchmarks.web_worker LAKE SETTINGS [--parts]

SETTINGS is JSON for DownloadConfig. Prints how many images came, and where the CPU went (`web_profile`).
"""

from __future__ import annotations

import json
import sys

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.download.download_work import DownloadWork, plan_download
from altdiffusion.storage.dataset import Lake
from benchmarks import web_profile


def main() -> None:
    lake, settings, *parts = sys.argv[1:]
    given = json.loads(settings)
    config = DownloadConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    with web_profile.profiled(parts=bool(parts)) as report:
        job = DownloadWork(lake=lake, dataset="images", download=config)
        job.setup()
        report.started()
        records = [job.run(unit) for unit in plan_download(Lake(lake).version("links"), config.rows_per_unit)]
        job.close()
    print(sum(record.rows_out for record in records))
    print(report.line())


if __name__ == "__main__":
    main()
