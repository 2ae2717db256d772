"""Panels and variables in the one style of all dashboards."""

from __future__ import annotations

from typing import Any, Final, Self

from grafana_foundation_sdk.builders import (
    bargauge,
    dashboard,
    heatmap,
    logs,
    loki,
    prometheus,
    stat,
    table,
    tempo,
    timeseries,
)
from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model_of
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

from corevital import semconv
from corevital.assess.risk import USUAL_LEVELS
from dashboards.names import metric
from dashboards.queries import MODEL

Panel = Builder[model_of.Panel]

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${prometheus}")
TEMPO: Final = DataSourceRef(type_val="tempo", uid="${tempo}")
LOKI: Final = DataSourceRef(type_val="loki", uid="${loki}")
TAG: Final = "corevital"
WIDTH: Final = 24
HEIGHT: Final = 8
# Loki wants a matcher that demands something, and every service has a name.
ANY_SERVICE: Final = ".+"
ANYTHING: Final = ".*"
GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"


class Row:
    """A heading with panels below it; ``with_panel`` adds one."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.panels: list[Panel] = []

    def with_panel(self, panel: Panel) -> Self:
        """Add a panel to the right of the one before, or below where there is no room."""
        self.panels.append(panel)
        return self


class Dashboard(dashboard.Dashboard):
    """The builder, with rows that are open at first: those that it fills itself are closed."""

    def with_section(self, section: Row) -> Self:
        """Add a heading and its panels."""
        self.with_row(dashboard.Row(section.title))
        for panel in section.panels:
            self.with_panel(panel)
        return self


def new(title: str, uid: str, description: str) -> Dashboard:
    """A dashboard without panels, with links to the others."""
    others = (
        dashboard.DashboardLink("CoreVital")
        .type(DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time("now-6h", "now")
        .refresh("1m")
        .editable()
        .link(others)
    )


# Variables


def source(name: str) -> dashboard.DatasourceVariable:
    """The variable ``name``: which data source of the type of that name is asked."""
    return dashboard.DatasourceVariable(name).label(name.capitalize()).type(name)


def services() -> dashboard.QueryVariable:
    """The variable ``service``: one, several or all."""
    values = f"label_values({metric(semconv.METRIC_GENERATIONS)}, job)"
    return _several("service", "Service", values, ANY_SERVICE)


def models() -> dashboard.QueryVariable:
    """The variable ``model``: one, several or all of the services'."""
    return _several("model", "Model", _MODELS, ANYTHING)


def model(name: str, title: str) -> dashboard.QueryVariable:
    """A variable that names one model of the services."""
    return _values(name, title, _MODELS)


_MODELS: Final = f'label_values({metric(semconv.METRIC_GENERATIONS)}{{job=~"$service"}}, {MODEL})'


def _several(name: str, title: str, values: str, every_value: str) -> dashboard.QueryVariable:
    every = VariableOption(selected=True, text="All", value="$__all")
    return (
        _values(name, title, values)
        .multi(True)
        .include_all(True)
        .all_value(every_value)
        .current(every)
    )


def _values(name: str, title: str, values: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(title)
        .datasource(PROMETHEUS)
        .query({"query": values, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def choice(name: str, title: str, description: str, *values: str) -> dashboard.CustomVariable:
    """A variable with fixed values, of which the first is chosen at first."""
    first = VariableOption(selected=True, text=values[0], value=values[0])
    return (
        dashboard.CustomVariable(name)
        .label(title)
        .description(description)
        .values(",".join(values))
        .current(first)
    )


def text(name: str, title: str, description: str, value: str) -> dashboard.TextBoxVariable:
    """A variable to type into."""
    given = VariableOption(selected=True, text=value, value=value)
    return (
        dashboard.TextBoxVariable(name)
        .label(title)
        .description(description)
        .default_value(value)
        .current(given)
    )


# Thresholds


def steps(*above: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Green, and from each value on the colour that it names."""
    found = [Threshold(value=None, color=GREEN)]
    found += [Threshold(value=value, color=color) for value, color in above]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def risk_levels() -> dashboard.ThresholdsConfig:
    """The scores from which on a risk is moderate, high and critical, by default."""
    usual = USUAL_LEVELS
    return steps((usual.moderate, YELLOW), (usual.high, ORANGE), (usual.critical, RED))


# Panels


def number(
    title: str,
    description: str,
    expression: str,
    unit: str = "short",
    thresholds: dashboard.ThresholdsConfig | None = None,
    width: int = 4,
) -> stat.Panel:
    """One number for the whole time range; 0 where nothing was counted."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .span(width)
        .height(4)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(_newest())
        .thresholds(thresholds or steps())
        .with_target(prometheus.Dataquery().expr(expression).instant().ref_id("A"))
    )
    return panel.decimals(2) if unit == "percentunit" else panel


def lines(
    title: str,
    description: str,
    queries: dict[str, str],
    unit: str = "short",
    thresholds: dashboard.ThresholdsConfig | None = None,
    width: int = 12,
) -> timeseries.Panel:
    """Lines over time; ``queries`` are expressions by the format of their legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .span(width)
        .height(HEIGHT)
        .min(0)
        .show_points(common.VisibilityMode.AUTO)
        .legend(
            options.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .calcs([])
        )
        .tooltip(options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    if thresholds is not None:
        style = options.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(thresholds).thresholds_style(style)
    for place, (legend, expression) in enumerate(queries.items()):
        panel = panel.with_target(
            prometheus.Dataquery()
            .expr(expression)
            .legend_format(legend)
            .range()
            .exemplar("_bucket" in expression)
            .ref_id(chr(ord("A") + place))
        )
    return panel


def heat_map(
    title: str,
    description: str,
    expression: str,
    unit: str = "short",
    legend: str = "{{le}}",
    width: int = 12,
) -> heatmap.Panel:
    """Counts by bucket over time, or by any label that ``legend`` names."""
    buckets = legend == "{{le}}"
    query = (
        prometheus.Dataquery()
        .expr(expression)
        .legend_format(legend)
        .range()
        .format(PromQueryFormat.HEATMAP if buckets else PromQueryFormat.TIME_SERIES)
        .exemplar(buckets)
        .ref_id("A")
    )
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .span(width)
        .height(HEIGHT)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .show_legend()
        .cell_gap(1)
        .with_target(query)
    )


def bars(
    title: str, description: str, expression: str, legend: str, width: int = 12
) -> bargauge.Panel:
    """A bar for each label value, over the whole time range."""
    query = prometheus.Dataquery().expr(expression).legend_format(legend).instant().ref_id("A")
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit("percentunit")
        .min(0)
        .max(1)
        .span(width)
        .height(HEIGHT)
        .thresholds(steps())
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(_newest())
        .with_target(query)
    )


def _newest() -> options.ReduceDataOptions:
    return options.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def rows(
    title: str, description: str, columns: dict[str, tuple[str, str]], width: int = WIDTH
) -> table.Panel:
    """A table by labels; ``columns`` are the expression and unit of each column."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .span(width)
        .height(HEIGHT)
        .with_transformation(_transformation("merge", {}))
    )
    renamed = {"Time": "", "__name__": ""}
    for place, (name, (expression, unit)) in enumerate(columns.items()):
        letter = chr(ord("A") + place)
        renamed[f"Value #{letter}"] = name
        panel = panel.with_target(
            prometheus.Dataquery()
            .expr(expression)
            .instant()
            .format(PromQueryFormat.TABLE)
            .ref_id(letter)
        ).override_by_name(name, [DynamicConfigValue(id_val="unit", value=unit)])
    shown = {old: new for old, new in renamed.items() if new}
    hidden = {old: True for old, new in renamed.items() if not new}
    organize = {"excludeByName": hidden, "renameByName": shown, "indexByName": {}}
    return panel.with_transformation(_transformation("organize", organize))


def _transformation(kind: str, settings: dict[str, Any]) -> DataTransformerConfig:
    return DataTransformerConfig(id_val=kind, options=settings)


def found_traces(
    title: str, description: str, query: str, sort_by: str, width: int = WIDTH
) -> table.Panel:
    """The spans that TraceQL finds, each with a link to its trace; sorted by a selected column."""
    descending = options.TableSortByFieldState().display_name(sort_by).desc(True)
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(TEMPO)
        .span(width)
        .height(10)
        .sort_by([descending])
        .override_by_name(
            semconv.RISK_SCORE,
            [
                DynamicConfigValue(id_val="decimals", value=2),
                DynamicConfigValue(id_val="thresholds", value=_plain(risk_levels())),
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"}),
            ],
        )
        .with_target(
            tempo.TempoQuery()
            .query_type("traceql")
            .query(query)
            .table_type(SearchTableType.SPANS)
            .limit(200)
            .spss(10)
            .filters([])
            .ref_id("A")
        )
    )


def _plain(thresholds: dashboard.ThresholdsConfig) -> dict[str, Any]:
    built = thresholds.build()
    return {"mode": built.mode, "steps": [step.to_json() for step in built.steps]}


def records(title: str, description: str, query: str, width: int = WIDTH) -> logs.Panel:
    """Log records, the newest first, with their attributes."""
    return (
        logs.Panel()
        .title(title)
        .description(description)
        .datasource(LOKI)
        .span(width)
        .height(10)
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common.LogsSortOrder.DESCENDING)
        .with_target(loki.Dataquery().expr(query).query_type("range").max_lines(200).ref_id("A"))
    )


def counted_records(
    title: str, description: str, query: str, legend: str, width: int = 12
) -> timeseries.Panel:
    """How many log records there are over time, as lines."""
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(LOKI)
        .span(width)
        .height(HEIGHT)
        .min(0)
        .with_target(
            loki.Dataquery().expr(query).legend_format(legend).query_type("range").ref_id("A")
        )
    )
