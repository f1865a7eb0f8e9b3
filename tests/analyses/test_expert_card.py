"""One expert's card, against plain loops over the recording's tokens."""

from collections import Counter

import numpy as np
import pytest

from analyses import expert_card
from workbench.errors import AnalysisError


def test_shares_of_tokens_and_domains_by_counting(recording):
    result = expert_card.run(recording, expert_card.Settings(layer=2, expert=4, min_count=3))
    domain_of = dict(zip(recording.documents()["document"], recording.documents()["domain"], strict=True))
    seen, chosen, in_domain, domain_tokens = Counter(), Counter(), Counter(), Counter()
    frame = recording.tokens()
    for document, token, ids in zip(frame["document"], frame["token"], recording.ids(2), strict=True):
        hit = 4 in ids
        seen[f"<{token}>"] += 1
        chosen[f"<{token}>"] += hit
        in_domain[domain_of[document]] += hit
        domain_tokens[domain_of[document]] += 1
    assert len(result.tokens) > 5
    for row in result.tokens.itertuples():
        assert (row.count, row.chosen) == (seen[row.text], chosen[row.text])
        assert row.share == pytest.approx(chosen[row.text] / seen[row.text])
        assert row.count >= 3
    for row in result.domains.itertuples():
        assert row.rate == pytest.approx(in_domain[row.domain] / domain_tokens[row.domain])
        assert row.low <= row.rate <= row.high


def test_without_settings_it_is_the_busiest_expert_of_the_middle_layer(recording):
    result = expert_card.run(recording)
    assert (result.layer, result.expert) == (2, int(recording.counts(2).sum(0).argmax()))


def test_contexts_hold_the_expert_where_they_say(recording):
    result = expert_card.run(recording, expert_card.Settings(layer=0, expert=1, n_contexts=5, window=3))
    assert len(result.contexts) == 5
    assert (result.contexts["weight"] > 0).all()
    assert np.isfinite(result.context_tokens["weight"]).sum() >= 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (expert_card.Settings(layer=1), r"expert_card: layer 1 has no router; set layer to one of \[0, 2\]"),
        (expert_card.Settings(layer=0, expert=8), "layer 0 has no expert 8; set expert to one of 0 to 7"),
        (expert_card.Settings(n_tokens=0), "expert_card: n_tokens is 0; 1 or more was wanted"),
        (expert_card.Settings(window=0), "expert_card: window is 0; 1 or more was wanted"),
    ],
)
def test_it_refuses_what_is_not_there(recording, settings, message):
    with pytest.raises(AnalysisError, match=message):
        expert_card.run(recording, settings)
