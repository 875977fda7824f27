"""What `flashray --help` and `flashray VERB --help` print; each fits a screen. A test checks that the options exist."""

from __future__ import annotations

OVERVIEW = """\
flashray restores archives of degraded images; each image costs what its damage needs.

usage: flashray VERB …

  restore IN OUT    restore the images of a folder, a file or an s3:// prefix
  plan IN OUT       print what a restoration will cost, and stop
  verify OUT        check every restored image against the run's records
  report OUT        make report.html again, and print the summary
  compare OUT …     print a table of runs
  replay OUT        send to MLflow what it lacks of a run
  train WHAT …      train a prior or a severity encoder on photos
  register FOLDER   put a severity encoder into MLflow's model registry

  flashray VERB --help shows a verb's options and examples; flashray --version.
  Exit codes: 0 done; 1 failed images remain or the work stopped; 2 bad arguments.
"""

_RESTORE = """\
usage: flashray {verb} IN OUT [options]

IN is a folder, an s3:// prefix, an image or a shard; OUT is a new folder or prefix. A
restored image keeps its name below OUT; the run's records go to OUT/_flashray. The same
command again does what is missing, and nothing else.

  --recipe NAME             a shipped recipe or a YAML file; default: photo, unknown damage
  --strength X              factor on σ̂: below 1 changes less, 0 uses no denoiser
  --manifest FILE           CSV or Parquet: key, parameters of the images, noise_std
  --references URI          clean images of the same keys, to score against
  --measurement simulated   IN holds clean images: degrade each by its key, and score
  --fit whole|resize|crop|error   default: whole, every photo at its own size
  --format png|jpeg|webp|tiff   of the restored images; default: as in IN
  --shards tar|parquet      write shards of --images-per-shard N, not a file an image
  --quality N               of JPEG and WebP, 1 to 100; default: 95
  --samples N               restore each image N times, and map what differs; default: 1
  --strict                  fail images whose format cannot hold all that was in the file
  --no-provenance           leave the note of recipe, σ̂, NFE and run out of the metadata
  --max-megapixels N        larger images fail; default: 100
  --copy-others             copy IN's files that are no images, too
  --skip-unreadable         leave out folders that cannot be read, instead of stopping
  --limit N                 only the first N images
  --prior SOURCE            another prior: a folder, hf://owner/name or s3://bucket/folder
  --device cpu|cuda         default: cuda where the cluster has GPUs
  --budget-seconds N        fit the run into N seconds: all starts become milder
  --plan-only               print the quote, and stop
  --retry-failed            try the images again that failed before
  --overwrite NAME          delete the run in OUT first; NAME is OUT's last component
  --tracking-uri URI        MLflow server or database; --tracking.enabled false: none
  --solver.steps N, --degradation.settings.std '[1, 1]', --fusion.name none …
                            any key of the recipe; --help-all lists everything

examples:
  flashray {verb} photos restored
  flashray {verb} old.png out --recipe gaussian_blur_flash_proximal --degradation.settings.std '[1.5, 1.5]'
  flashray {verb} s3://bucket/in s3://bucket/out --recipe gaussian_blur_flash_latent_dps --device cuda
"""

HELP = {
    "restore": _RESTORE.format(verb="restore"),
    "plan": _RESTORE.format(verb="plan"),
    "verify": """\
usage: flashray verify OUT [--clean]

Reads every restored image and checks that each planned image is there once, with the
bytes that its commit records. Exit code 0: every image is restored; 1: some failed or
are pending, or a file contradicts its commit.

  --clean   first delete what killed writers left behind: restored images of the plan
            that no commit names, and half-written files. Other files are not touched.

example:
  flashray verify restored
""",
    "report": """\
usage: flashray report OUT

Makes OUT/report.html and the contact sheet of a run again, from its records, and
prints the run's summary. Of a run that is not finished they show what is there.

example:
  flashray report restored
""",
    "compare": """\
usage: flashray compare OUT OUT … [options]
       flashray compare --experiment NAME [--filter "metrics.psnr > 25"]

Prints a Markdown table: one row a run, the settings that differ, then the numbers.

  --metrics '[psnr, lpips]'   what to show
  --sort METRIC               the highest first; with --ascending the lowest first
  --experiment NAME           read runs from MLflow, where no output is named
  --filter TEXT               which of its runs, in MLflow's filter syntax
  --limit N                   at most N runs, the newest
  --tracking-uri URI          default MLFLOW_TRACKING_URI, else mlflow.db here

example:
  flashray compare run1 run2 --sort psnr
""",
    "replay": """\
usage: flashray replay OUT [--tracking-uri URI]

Sends to MLflow what the run's records hold and MLflow lacks. Running it again adds
nothing. With another URI the whole run is created there.

example:
  flashray replay restored --tracking-uri http://127.0.0.1:5000
""",
    "train": """\
usage: flashray train prior --photos FOLDER --val-photos FOLDER --output FOLDER [options]
       flashray train severity --photos … --val-photos … --output … --prior FOLDER [options]

Trains a diffusion prior, or a severity encoder for one. The same command resumes from
the last checkpoint.

  --launch.launcher local|ray   in this process (Ray is not needed), or on Ray Train
  --launch.storage URI          where checkpoints go
  --launch.device cpu|cuda
  --init FOLDER                 start from these weights
  --degradation.name NAME       what a severity encoder is trained for
  --degradation.noise-std '[0.01, 0.2]'   noise of a severity encoder's training
  --help-all                    lists everything

example:
  flashray train severity --photos photos/train --val-photos photos/val --output encoder
""",
    "register": """\
usage: flashray register FOLDER NAME [--alias champion] [--tracking-uri URI]

Registers a severity encoder as a new version of the model NAME. Recipes can then use it
as models:/NAME@champion.

  --alias NAME         the alias that points to this version from now on
  --tracking-uri URI   default MLFLOW_TRACKING_URI, else mlflow.db beside the folder

example:
  flashray register encoder blur --alias champion
""",
}
