"""What visitors will ask for next: at the app's start what pages show first, and after a page its other layers."""

from contextlib import suppress
from functools import partial
from typing import Any

from workbench.errors import AnalysisError
from workbench.recordings.recording import Recording

from . import charts, prefetch, results
from .choices import TOKENS_SHOWN


def ready(recording: Recording) -> None:
    """Asks at the app's start what the pages first show of a recording, and draws it."""
    layers, documents = recording.moe_layers, recording.documents().nsmallest(1, "document")["id"].tolist()
    if not layers:
        return
    middle, document = {"layer": layers[len(layers) // 2]}, {"document": documents[0], "first": 0, "last": TOKENS_SHOWN}
    first = [("token_routing", {**middle, **document}), ("token_routing", document), ("expert_load", {})]
    first += [("expert_card", {**middle, "min_count": 5}), ("load_balance", {}), ("domain_load", middle)]
    for name, settings in [*first, ("coactivation", middle)]:
        with suppress(AnalysisError):
            results.make(recording, name, dark=False, **settings)


def other_layers(recording: Recording, name: str, layer: int, **settings: Any) -> None:
    """Has the other layers made as this one was, the nearest first, while no page is."""
    others = sorted((each for each in recording.moe_layers if each != layer), key=lambda each: abs(each - layer))
    dark = charts.is_dark()
    prefetch.outlook.likely(
        partial(results.make, recording, name, dark=dark, layer=each, **settings) for each in others
    )
