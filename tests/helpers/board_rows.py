"""What TensorBoard itself shows of a folder of runs: its plugins' answers, without its server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format  # type: ignore[import-untyped]
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups


@dataclass
class Row:
    """A row of HParams: how the run ended, its settings, its numbers with their iterations."""

    status: int
    settings: dict[str, Any]
    numbers: dict[str, tuple[int, float]]


def _tensorboard(logdir: Path) -> TBContext:
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(logdir))
    runs.Reload()
    return TBContext(data_provider=MultiplexerDataProvider(runs, str(logdir)))


def hparams_rows(logdir: Path) -> dict[str, Row]:
    """The rows of the HParams page, by the run's name."""
    asked = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=list(api_pb2.Status.values()),
    )
    backend = backend_context.Context(_tensorboard(logdir))
    answer = list_session_groups.Handler(context.RequestContext(), backend, "", asked).run()
    rows = {}
    for group in answer.session_groups:
        (session,) = group.sessions
        settings = {k: json_format.MessageToDict(v) for k, v in group.hparams.items()}
        numbers = {v.name.tag: (v.training_step, v.value) for v in session.metric_values}
        rows[group.name] = Row(session.status, settings, numbers)
    return rows


def custom_layout(logdir: Path) -> Any:
    """The charts of the page of custom scalars."""
    plugin = CustomScalarsPlugin(_tensorboard(logdir))
    return json_format.Parse(plugin.layout_impl(context.RequestContext(), ""), Layout())
