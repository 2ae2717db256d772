"""From real generations to a message: the Collector counts, Prometheus fires, Alertmanager tells.

The files are those of ``collector-config``; only their times are shortened, and their receivers
replaced by a webhook.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from transformers import LogitsProcessor, LogitsProcessorList

from tests.forcing import forcing
from tests.instrumentation import attributes
from tests.integration import servers
from tests.integration.application import Application, application
from tests.integration.overlays import BASE, only
from tests.integration.queries import get, get_text, promql
from tests.integration.running import LOOPBACK, free_port
from tests.integration.servers import COLLECTOR_CONFIG, Alertmanager, Prometheus
from tests.integration.waiting import eventually
from tests.integration.webhook import Webhook, webhook
from tests.models import GenerativeModel, tiny_model, tiny_prompt

SERVICE = "alerts-test"
BROKEN, LOOPING, RAISING = "broken-model", "looping-model", "raising-model"
PERIOD = [5, 9, 30]
# So many that the text alone is a loop, whatever the model's states.
TOKENS = 200
SERIES = re.compile(r"^generation_alert_(\w+)_total\{(.*)\} (\S+)$", re.M)


class Stack(NamedTuple):
    """The whole chain."""

    app: Application
    alert_metrics: str
    prometheus: Prometheus
    alertmanager: Alertmanager
    webhook: Webhook


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("alerts")
    metrics = f"{LOOPBACK}:{free_port()}"
    with ExitStack() as starting:
        start = starting.enter_context
        hook = start(webhook())
        alertmanager = start(servers.alertmanager(folder, quick_alertmanager(folder, hook.url)))
        prometheus = start(servers.prometheus(folder, scraping(folder, metrics, alertmanager)))
        collector = start(
            servers.collector(
                [BASE, COLLECTOR_CONFIG / "alerts.yaml", only(folder, "metrics")],
                folder,
                environment={
                    "ALERT_METRICS_ENDPOINT": metrics,
                    "PROMETHEUS_OTLP_ENDPOINT": prometheus.otlp,
                },
            )
        )
        app = start(application(collector.grpc, SERVICE))
        yield Stack(app, f"http://{metrics}/metrics", prometheus, alertmanager, hook)


def quick_alertmanager(folder: Path, url: str) -> Path:
    """The Alertmanager's configuration, without its waits, and with a webhook for each receiver."""
    configuration = yaml.safe_load((COLLECTOR_CONFIG / "alertmanager.yaml").read_text())
    configuration["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    configuration["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": f"{url}/{receiver['name']}"}]}
        for receiver in configuration["receivers"]
    ]
    path = folder / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return path


def scraping(folder: Path, metrics: str, alertmanager: Alertmanager) -> dict[str, Any]:
    """Prometheus as the README sets it up, but every half second, with rules that do not wait."""
    rules = yaml.safe_load((COLLECTOR_CONFIG / "prometheus-rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    return {
        "global": {
            "scrape_interval": "500ms",
            "scrape_timeout": "500ms",
            "evaluation_interval": "500ms",
            "external_labels": {"grafana_url": "https://grafana.test"},
        },
        "rule_files": ["rules.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]},
        "scrape_configs": [
            {
                "job_name": "corevital-collector",
                "honor_labels": True,
                "static_configs": [{"targets": [metrics]}],
            }
        ],
    }


class Raises(LogitsProcessor):
    """Fails, as a faulty application would."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError


def named(name: str) -> GenerativeModel:
    model = tiny_model("llama")
    model.config._name_or_path = model.name_or_path = name
    return model


def generate(model: GenerativeModel, count: int, **arguments: Any) -> None:
    for _ in range(count):
        model.generate(tiny_prompt(), do_sample=False, pad_token_id=0, **arguments)


@pytest.fixture(scope="module")
def generated(stack: Stack) -> Counter[tuple[str, str]]:
    """Two waves of generations, and how often each alert should have been counted for each model.

    Two, because Prometheus has to see a counter before it sees it grow.
    """
    broken, looping = named(BROKEN), named(LOOPING)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    raising = named(RAISING)
    for wave in range(2):
        generate(broken, 22, max_new_tokens=4, min_new_tokens=4)
        generate(looping, 20, max_new_tokens=4, min_new_tokens=4)
        for _ in range(2):
            loop = forcing((PERIOD * TOKENS)[:TOKENS])
            generate(looping, 1, max_new_tokens=TOKENS, logits_processor=loop)
        with pytest.raises(ZeroDivisionError):
            generate(raising, 1, max_new_tokens=4, logits_processor=LogitsProcessorList([Raises()]))
        stack.app.flush()
        if wave == 0:
            eventually(lambda: scraped(stack, "generation_alert_repetition_total"))
            eventually(lambda: scraped(stack, "corevital_risk_score_count"))
    return expected(stack.app)


def scraped(stack: Stack, metric: str) -> list[Any]:
    return promql(stack.prometheus.url, f'{metric}{{job="{SERVICE}"}}')


def expected(app: Application) -> Counter[tuple[str, str]]:
    """What the spans say, counted anew."""
    counts: Counter[tuple[str, str]] = Counter()
    for span in app.spans():
        of = attributes(span)
        names = list(of.get("corevital.signal.names", ()))
        names += ["assessed"] * ("corevital.risk.score" in of)
        names += ["high_risk"] * (of.get("corevital.risk.level") in ("high", "critical"))
        names += ["failed"] * (not span.status.is_unset and not span.status.is_ok)
        for flag in ("nan_or_inf", "mid_layer_anomaly", "attention_collapse"):
            names += [flag] * bool(of.get(f"corevital.health.{flag}"))
        repeats = of.get("corevital.health.repetition_loop") or of.get(
            "corevital.repetition.detected"
        )
        names += ["repetition"] * bool(repeats)
        counts.update((name, of["gen_ai.request.model"]) for name in names)
    return counts


def counted(url: str) -> Counter[tuple[str, str]]:
    """What the Collector has counted."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, labels, value in SERIES.findall(get_text(url)):
        of = dict(re.findall(r'(\w+)="(.*?)"', labels))
        assert of.keys() == {"job", "gen_ai_request_model"}, labels
        assert of["job"] == SERVICE
        counts[name, of["gen_ai_request_model"]] += round(float(value))
    return counts


def test_the_collector_counts_each_alert_by_model(
    stack: Stack, generated: Counter[tuple[str, str]]
) -> None:
    assert generated["assessed", BROKEN] == generated["nan_or_inf", BROKEN] == 44
    assert generated["repetition", LOOPING] == 4
    assert generated["failed", RAISING] == 2

    eventually(lambda: counted(stack.alert_metrics) == generated)


def test_the_distribution_of_the_risk_is_that_of_the_spans(
    stack: Stack, generated: Counter[tuple[str, str]]
) -> None:
    def count() -> float:
        series = promql(
            stack.prometheus.url, f'generation_alert_risk_count{{gen_ai_request_model="{BROKEN}"}}'
        )
        return sum(value for _, value in series)

    eventually(lambda: count() == generated["assessed", BROKEN])


def test_alerts_fire_for_the_models_that_they_are_about(
    stack: Stack, generated: Counter[tuple[str, str]]
) -> None:
    def firing() -> set[tuple[str, str]]:
        series = promql(stack.prometheus.url, 'ALERTS{alertstate="firing"}')
        return {
            (labels["alertname"], labels.get("gen_ai_request_model", "")) for labels, _ in series
        }

    due = {
        ("CoreVitalNanOrInf", BROKEN),
        ("CoreVitalHighRiskShare", BROKEN),
        ("CoreVitalRiskP95High", BROKEN),
        ("CoreVitalRepetition", LOOPING),
    }
    eventually(lambda: due <= firing())
    assert not firing() & {
        ("CoreVitalNanOrInf", LOOPING),
        ("CoreVitalRepetition", RAISING),
        ("CoreVitalCollectorDown", ""),
        ("CoreVitalCaptureFailure", BROKEN),
        ("CoreVitalNothingObserved", BROKEN),
    }


def test_each_reaches_whom_it_is_for_with_all_that_helps(
    stack: Stack, generated: Counter[tuple[str, str]]
) -> None:
    def told(path: str, name: str) -> list[Any]:
        return [each for each in stack.webhook.posted() if (each.path, each.name) == (path, name)]

    pages = eventually(lambda: told("/pager", "CoreVitalNanOrInf"))
    assert {page.labels["gen_ai_request_model"] for page in pages} == {BROKEN}
    assert pages[0].annotations["summary"] == f"NaN or Inf inside {BROKEN} of {SERVICE}"
    assert (
        f"https://grafana.test/d/corevital-explorer?var-service={SERVICE}&var-model={BROKEN}"
        in pages[0].annotations["description"]
    )
    assert pages[0].annotations["runbook_url"] == "docs/runbooks.md#corevitalnanorinf"

    loops = eventually(lambda: told("/channel", "CoreVitalRepetition"))
    assert {loop.labels["gen_ai_request_model"] for loop in loops} == {LOOPING}


def test_what_only_follows_from_nan_is_held_back(
    stack: Stack, generated: Counter[tuple[str, str]]
) -> None:
    def held_back() -> set[str]:
        alerts = get(f"{stack.alertmanager.url}/api/v2/alerts")
        return {
            alert["labels"]["alertname"]
            for alert in alerts
            if alert["status"]["state"] == "suppressed"
            and alert["labels"].get("gen_ai_request_model") == BROKEN
        }

    eventually(lambda: {"CoreVitalHighRiskShare", "CoreVitalRiskP95High"} <= held_back())
    told = {
        each.name
        for each in stack.webhook.posted()
        if each.labels.get("gen_ai_request_model") == BROKEN
    }
    assert told == {"CoreVitalNanOrInf"}
