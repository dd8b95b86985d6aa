"""`shmcache monitoring`: the files that come with shmcache for Prometheus and Grafana, printed."""

from __future__ import annotations

from importlib.resources import files

import click


@click.group()
def monitoring() -> None:
    """Print alert rules for Prometheus, and a dashboard for Grafana."""


@monitoring.command("alerts")
def monitoring_alerts() -> None:
    """Print alert rules: a file for rule_files of Prometheus."""
    click.echo(_text("alerts.yml"), nl=False)


@monitoring.command("dashboard")
def monitoring_dashboard() -> None:
    """Print a dashboard: JSON to import in Grafana."""
    click.echo(_text("dashboard.json"), nl=False)


def _text(name: str) -> str:
    return files("tools.monitoring").joinpath(name).read_text(encoding="utf-8")
