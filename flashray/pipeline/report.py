"""The page and the contact sheet of a run, made again from its records, and its summary as text."""

from __future__ import annotations

import dataclasses

from flashray.build import strict
from flashray.pipeline import budget
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_folder import page_uri, run_uri
from flashray.pipeline.run_page import write_pages
from flashray.pipeline.run_record import with_choices
from flashray.pipeline.summary import read_summary, summarise, table
from flashray.pipeline.verify import read_run
from flashray.pipeline.worker_settings import WorkerSettings


def report_output(output: str) -> str:
    """Make the page and the contact sheet again; returns the summary as text.

    Of a run that is not finished they show what is there. ConfigError when the output holds no run with a plan, or its
    models are no longer there; FlashrayError when they are no longer what they were.
    """
    record, status = read_run(output)
    output = status.output
    written = strict(RunConfig, record["config"], f"{run_uri(output, 'run.json')}, config")
    config = budget.effective(with_choices(written, record), record.get("budget"))
    config = config.replaced("io", output=output)  # it may have been moved
    if "registered" in record:  # the run folder has a copy of what the registry gave
        start = dataclasses.replace(config.recipe.start, severity_encoder=run_uri(output, "severity_encoder"))
        config = config.replaced("recipe", start=start)
    weights = {name: record["fingerprint"].get(f"weights.{name}") for name in ("prior", "severity_encoder")}
    work = WorkerSettings.of(config, "cpu", record.get("threads", 1), lpips=False, weights=weights)
    restorer = work.restorer()
    found = read_summary(output) or summarise(status, config.recipe.solver.steps, {})
    write_pages(restorer, config, status, found)
    lines = [
        f"{found['restored']:,} of {found['images']:,} images restored, {found['failed']:,} failed, "
        f"{found['mean_nfe'] or 0:.1f} NFE an image",
        table(found),
        f"page: {page_uri(output)}",
    ]
    return "\n".join(line for line in lines if line)
