"""Every analysis over imported recordings: it works, or says in a sentence what the source did not have."""

import numpy as np
import pytest

from analyses import catalogue
from analyses.question import Question
from tests.importers import sources
from workbench.errors import AnalysisError, RecordingError
from workbench.recordings.importers.build import import_trace

NAMES = catalogue.of_recordings()
_RECORD = "Record the model itself"
_GATE = f"which has no gate of the shared expert. {_RECORD}"
_TEXT = "which has no token ids, so no text"
_COUNTS = "which has no experts of single tokens, only counts"
# What each analysis says, by source; None where it works.
_MODEL = {
    **dict.fromkeys(
        ("attention_heads", "attention_profile", "attention_groups", "attention_routing"),
        f"which has no statistics of attention heads. {_RECORD}",
    ),
    "contribution": f"which has no norms of what the experts put out. {_RECORD}",
    "expert_similarity": f"which has no parameters of the experts. {_RECORD}",
    "upcycling_lineage": f"which has no parameters of the experts. {_RECORD}",
}
SAYS = {
    "tokens and ranked ids": {
        **_MODEL,
        "router_confidence": f"which has no router scores, only what they chose. {_RECORD}",
        "shared_expert": _GATE,
    },
    "tokens and weights": {
        **_MODEL,
        "router_confidence": f"which has no router scores, only what they chose. {_RECORD}",
        "shared_expert": _GATE,
    },
    "tokens alone": {
        **_MODEL,
        "shared_expert": _GATE,
        "router_confidence": "which has no router scores",
        "token_routing": f"its ids are not ranked, and .* has no routing weights. {_RECORD}",
    },
    "ids alone": {
        **_MODEL,
        "context": _TEXT,
        "same_token": _TEXT,
        "shared_expert": _GATE,
        "specialization": _TEXT,
        "router_confidence": "which has no router scores",
        "token_routing": "which has no token ids, so no text. Import it again with --documents FILE",
        "expert_card": "which has no token ids, so no text",
    },
    "counts alone": {
        **_MODEL,
        **dict.fromkeys(("balance_scope", "capacity", "context", "coverage"), _COUNTS),
        **dict.fromkeys(("position", "shared_expert", "specialization"), _COUNTS),
        **dict.fromkeys(("activated", "coactivation", "layer_flow", "repetition"), _COUNTS),
        **dict.fromkeys(("same_token", "saturation", "segment_consistency"), _COUNTS),
        "router_confidence": "which has no router scores",
        "token_routing": r"which has no experts of single tokens, only counts. Dump the trace again in a mode",
        "expert_card": "which has no experts of single tokens, only counts",
    },
}


@pytest.fixture(scope="module")
def imported(recording, tmp_path_factory):
    """One recording for each way to lack something, of the same tokens."""
    folder = tmp_path_factory.mktemp("imported")
    documents = sources.documents_of(recording)
    labels = folder / "labels.jsonl"
    domains = recording.documents()["domain"]
    labels.write_text("\n".join(f'{{"domain": "{domain}"}}' for domain in domains))
    (folder / "c.jsonl").write_text("\n".join(sources.olmoe_line(*document) for document in documents))
    frame = recording.tokens()
    arrays = {"ids": sources.ids_of(recording), "layers": [0, 2], "documents": frame["document"]}
    np.savez(folder / "alone.npz", **arrays)
    np.savez(folder / "tokens.npz", **arrays, tokens=frame["token"])
    counts = np.zeros((recording.n_documents, 3, 8))
    counts[:, [0, 2]] = np.stack([recording.counts(layer) for layer in (0, 2)], axis=1)
    stat = sources.stat_file(folder / "d.pt", counts)
    given = {"documents": labels, "n_experts": 8}
    return {
        "tokens and ranked ids": import_trace("olmoe", folder / "c.jsonl", folder / "r1", layers=(0, 2), **given),
        "tokens and weights": import_trace("parquet", recording.path / "tokens", folder / "r2", **given),
        "tokens alone": import_trace("numpy", folder / "tokens.npz", folder / "r3", **given),
        "ids alone": import_trace("numpy", folder / "alone.npz", folder / "r4", **given),
        "counts alone": import_trace("sglang", stat, folder / "r5", top_k=3, **given),
    }


def second(name, recording):
    """For an analysis of two, the same again."""
    return recording if catalogue.input_of(name) == "two recordings" else None


@pytest.mark.rest
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SAYS for name in NAMES if name not in SAYS[kind]])
def test_what_works_is_written(name, kind, imported, tmp_path):
    files, _ = Question(imported[kind], name, against=second(name, imported[kind])).write(tmp_path)
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("name", NAMES)
def test_it_works_or_says_what_is_missing(name, kind, imported, tmp_path):
    sentence = SAYS[kind].get(name)
    against = second(name, imported[kind])
    if sentence is None:
        answer = Question(imported[kind], name, against=against).answer()
        assert answer.figures and all(len(table) for table in answer.tables.values())
        return
    with pytest.raises(
        AnalysisError, match=f"{name}: {'' if sentence.startswith('its') else '.* was imported from .*'}{sentence}"
    ):
        Question(imported[kind], name, against=against).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize(
    ("name", "table"), [("expert_load", "experts"), ("load_balance", "tests"), ("domain_load", "experts")]
)
def test_numbers_are_those_of_the_native_recording(name, table, kind, imported, recording):
    module = catalogue.get(name)
    native, ours = (module.tables(module.run(r))[table] for r in (recording, imported[kind]))
    if kind == "counts alone":  # its passes are one cluster, so only sums can agree
        kept = [
            column
            for column in ("layer", "domain", "expert", "assignments", "load", "rate", "tokens")
            if column in native
        ]
    else:
        kept = [column for column in native if column in ours and column != "weight_over_balance"]
    for column in kept:
        if native[column].dtype.kind in "if":
            np.testing.assert_allclose(ours[column], native[column], rtol=1e-9, equal_nan=True)
        else:
            assert ours[column].tolist() == native[column].tolist()


def test_what_is_lacking_is_left_out_of_tables(imported):
    alone = imported["ids alone"]
    expert_load, load_balance, domain_load = (catalogue.get(n) for n in ("expert_load", "load_balance", "domain_load"))
    assert "weight_over_balance" not in expert_load.run(alone).experts
    assert "weight_over_balance" in expert_load.run(imported["tokens and weights"]).experts
    assert "balance loss" not in set(load_balance.run(alone).layers["measure"])
    information = domain_load.run(alone).information
    assert information["hashed"].isna().all()
    assert information["note"].str.contains("no token ids were recorded").all()
    assert domain_load.run(imported["tokens alone"]).information["hashed"].notna().all()


def test_captions_say_that_it_is_imported(imported):
    sample = catalogue.get("expert_load").run(imported["ids alone"]).sample
    assert sample.endswith("imported from numpy, prefill and decoding not told apart")
    sample = catalogue.get("expert_load").run(imported["counts alone"]).sample
    assert "of 50 forward passes in 5 domains, imported from sglang" in sample


def test_passes_of_one_dump_give_no_interval(imported):
    table = catalogue.get("expert_load").run(imported["counts alone"]).experts
    assert table["low"].isna().all()


def test_accessors_say_what_is_missing(imported):
    alone, counts = imported["ids alone"], imported["counts alone"]
    for ask, words in (
        (
            lambda: alone.weights(0),
            "was imported from numpy .alone.npz., which has no routing weights. Record the model",
        ),
        (lambda: alone.weight_sum(0), "has no routing weights"),
        (lambda: alone.score_sum(0), "has no router scores"),
        (lambda: alone.router_statistic("entropy", 0), "has no router scores"),
        (lambda: alone.router_statistic("logits", 0), "has no router logits"),
        (lambda: alone.column("token"), "has no token ids, so no text. Import it again with --documents"),
        (lambda: alone.column("phase"), "has no word on which tokens are prefill and which decode"),
        (lambda: alone.column("logprob"), "has no log-probabilities"),
        (lambda: counts.ids(0), "was imported from sglang .d.pt., which has no experts of single tokens, only counts"),
        (counts.tokens, "only counts. Dump the trace again in a mode that keeps tokens"),
        (lambda: counts.column("nonsense"), "has no tokens column 'nonsense'"),
    ):
        with pytest.raises(RecordingError, match=words):
            ask()


def test_a_field_that_no_trace_has_is_said_so(imported, monkeypatch):
    from analyses.read.design import require

    with pytest.raises(AnalysisError, match="x: .* was imported from numpy .*which has no router logits"):
        require(imported["ids alone"], ("routing", "logits"), "x")


def test_phases_are_never_averaged_and_the_option_is_named(tmp_path):
    records = [
        sources.sglang_record(sources.IDS_TLK, sources.TOKENS),
        sources.sglang_record(sources.IDS_TLK, sources.TOKENS, forward_mode=2, extend_seq_lens=None, forward_pass_id=2),
    ]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *records), tmp_path / "r")
    with pytest.raises(AnalysisError, match="holds prefill and decode, .*choose one: --phase prefill or"):
        catalogue.get("expert_load").run(got)
    for phase in ("prefill", "decode"):
        one = got.of_phase(phase)
        assert len(catalogue.get("expert_load").run(one).experts) > 0
        assert one.counts(one.moe_layers[0]).sum() == one.ids(one.moe_layers[0]).size > 0
