"""The verbs of the command line: each reads its arguments and calls one function of the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flashray.build import nearest
from flashray.errors import ConfigError
from flashray.option_parser import parse_as
from flashray.shown import shown


def restore(argv: Sequence[str], *more: str) -> int:
    """`flashray restore IN OUT …`"""
    from flashray.pipeline.options import parse_run, parser_of

    if "--help-all" in argv:
        parser_of().print_help()
        return 0
    config = parse_run([*argv, *more])
    from flashray.pipeline.run import restore_archive

    return restore_archive(config)


def plan(argv: Sequence[str]) -> int:
    """`flashray plan IN OUT …`"""
    return restore(argv, "--plan-only")


@dataclass(frozen=True)
class VerifyConfig:
    """Which output.

    Args:
        output: the output of flashray restore, a folder or s3:// prefix.
        clean: first delete files that killed writers left behind.
    """

    output: str
    clean: bool = False


def verify(argv: Sequence[str]) -> int:
    """`flashray verify OUT [--clean]`"""
    config = parse_as(VerifyConfig, "flashray verify", argv, ["output"])
    from flashray.pipeline.clean import clean
    from flashray.pipeline.verify import verify as verify_output
    from flashray.storage.working_folder import refuse_relative

    refuse_relative(output=config.output)
    if config.clean:
        orphans = clean(config.output)
        print("\n".join([f"{len(orphans):,} files were deleted that no commit names", *map(shown, orphans)]))
    found = verify_output(config.output)
    print("\n".join(map(shown, found.lines())))
    print("complete" if found.complete else "sound, not complete" if found.sound else "NOT SOUND")
    return 0 if found.complete else 1


@dataclass(frozen=True)
class ReportConfig:
    """Which output.

    Args:
        output: the output of flashray restore, a folder or s3:// prefix.
    """

    output: str


def report(argv: Sequence[str]) -> int:
    """`flashray report OUT`"""
    config = parse_as(ReportConfig, "flashray report", argv, ["output"])
    from flashray.pipeline.report import report_output

    print(report_output(config.output))
    return 0


@dataclass(frozen=True)
class CompareConfig:
    """Which runs, and what to show of them.

    Args:
        outputs: outputs of flashray restore; where none is named, the runs are read from MLflow.
        experiment: the experiment's name in MLflow.
        filter: which of its runs, in MLflow's syntax: "metrics.psnr > 25 and params.`recipe.solver.steps` = '1000'".
        sort: a metric; the highest comes first.
        ascending: the lowest comes first.
        metrics: what to show; default the usual ones.
        limit: at most so many of MLflow's runs, the newest.
        tracking_uri: an MLflow server or database; default MLFLOW_TRACKING_URI, else mlflow.db in the working folder.
    """

    outputs: list[str] = field(default_factory=list)
    experiment: str = "flashray"
    filter: str = ""
    sort: str = ""
    ascending: bool = False
    metrics: list[str] = field(default_factory=list)
    limit: int = 50
    tracking_uri: str | None = None


def compare(argv: Sequence[str]) -> int:
    """`flashray compare OUT OUT …`"""
    config = parse_as(CompareConfig, "flashray compare", argv, rest="outputs")
    from flashray.pipeline.compare_runs import SHOWN, Row, by_metric, row_of_output
    from flashray.pipeline.compare_runs import compare as compared
    from flashray.tracking import default_uri
    from flashray.tracking.client import find_runs

    if config.outputs:
        for name in ("experiment", "filter", "limit"):
            if getattr(config, name) != getattr(CompareConfig, name):
                raise ConfigError(f"--{name} chooses among MLflow's runs; leave it out, or the outputs")
        rows = [row_of_output(output) for output in config.outputs]
    else:
        uri = config.tracking_uri or default_uri("run")
        rows = [
            Row(f"{one.info.run_name} {one.info.run_id[:8]}", one.info.status, one.data.params, one.data.metrics)
            for one in find_runs(uri, config.experiment, config.filter, config.limit)
        ]
    if not rows:
        raise ConfigError(f"experiment {config.experiment}: no run passes the filter {config.filter!r}")
    print(compared(by_metric(rows, config.sort, config.ascending) if config.sort else rows, config.metrics or SHOWN))
    return 0


@dataclass(frozen=True)
class ReplayConfig:
    """What to send where.

    Args:
        output: the output of flashray restore or of an experiment, a folder or s3:// prefix.
        tracking_uri: an MLflow server or database; default the one that the run named.
    """

    output: str
    tracking_uri: str | None = None


def replay(argv: Sequence[str]) -> int:
    """`flashray replay OUT [--tracking-uri URI]`"""
    config = parse_as(ReplayConfig, "flashray replay", argv, ["output"])
    from flashray.pipeline.replay import replay_output

    print(replay_output(config.output, config.tracking_uri))
    return 0


@dataclass(frozen=True)
class RegisterConfig:
    """What to register as what.

    Args:
        encoder: a severity encoder: a folder, bundled:NAME, a hub id or a URI.
        name: the registered model, which gets a new version.
        alias: points to that version from now on.
        tracking_uri: an MLflow server or database; default MLFLOW_TRACKING_URI, else mlflow.db beside the folder, or in
            the working folder.
    """

    encoder: str
    name: str
    alias: str = "champion"
    tracking_uri: str | None = None


def register(argv: Sequence[str]) -> int:
    """`flashray register FOLDER NAME`"""
    config = parse_as(RegisterConfig, "flashray register", argv, ["encoder", "name"])
    from flashray.prior import bundled
    from flashray.severity import load_severity_encoder
    from flashray.sources import local_folder
    from flashray.tracking import default_uri, model_registry

    encoder = load_severity_encoder(config.encoder)
    source, kind = config.encoder, "severity encoder"
    inside = source.startswith("bundled:")
    folder = bundled("severity", source.removeprefix("bundled:")) if inside else local_folder(source, kind)
    uri = config.tracking_uri or default_uri(source if Path(source).is_dir() else "encoder")
    model_registry.check_registry(config.name, config.alias, uri)
    figures = _figures(folder / "card.json")
    made = model_registry.register(encoder, folder, config.name, config.alias, uri, figures)
    print(f"{made}, models:/{config.name}@{config.alias}")
    return 0


def _figures(card: Path) -> dict[str, float]:
    """A model's figures by its card, if there is one; ConfigError where it is damaged."""
    try:
        found = json.loads(card.read_bytes()) if card.is_file() else {}
        return {name: float(value) for name, value in found.get("figures", {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{card} is damaged ({error}); put it back, or delete it: no model needs it") from error


def train(argv: Sequence[str]) -> int:
    """`flashray train prior|severity …`"""
    what = argv[0] if argv else ""
    if what == "prior":
        from flashray.training.train_prior import TrainPriorConfig as Config
        from flashray.training.train_prior import train_prior as work
    elif what == "severity":
        from flashray.training.train_severity import TrainSeverityConfig as Config  # type: ignore[assignment]
        from flashray.training.train_severity import train_severity as work  # type: ignore[assignment]
    else:
        known = ("prior", "severity")
        raise ConfigError(f"flashray train {what or '(nothing)'}{nearest(what, known)}: give prior or severity")
    work(parse_as(Config, f"flashray train {what}", argv[1:]))
    return 0
