"""What a number about specialization stands beside: the same model again, an untrained one, a hash of the token id."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from analyses import catalogue
from analyses.compare import compare
from analyses.domains import domain_load, position, same_token
from analyses.question import Question
from analyses.read.controls import NAMES, Controls, routed_by_token
from analyses.read.design import router_stacks
from analyses.routing import expert_card
from tests import tiny
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.metrics.specialization import hash_router_counts
from workbench.recordings.recording import Recording

TAKING = ("context", "domain_load", "position", "same_token", "specialization")
QUICK = {
    "position": {"n_draws": 2, "n_seeds": 1},
    "same_token": {"n_seeds": 1},
    "specialization": {"n_permutations": 0},
}
# Of each table that has controls: the number that they are beside.
BESIDE = {
    "context": {"gains": "gain"},
    "domain_load": {"information": "value"},
    "position": {"drift": "excess"},
    "same_token": {"agreement": "excess"},
    "specialization": {"vocabulary": "value", "predictability": "value", "given_token": "value"},
}


@pytest.fixture(scope="module")
def again(moe, tmp_path_factory) -> Recording:
    """The same model over the same corpus, in other batches."""
    return record(moe, tiny.corpus(), tmp_path_factory.mktemp("again") / "r", batch_tokens=64, shard_tokens=300)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Recording:
    return record(tiny.moe(seed=1), tiny.corpus(), tmp_path_factory.mktemp("stranger") / "r")


def asked(name: str, recording: Recording, **controls):
    module = catalogue.get(name)
    return module, module.run(recording, module.Settings(**QUICK.get(name, {}), **controls))


def given(**paths: Recording | str | None) -> SimpleNamespace:
    return SimpleNamespace(**({"untrained": None, "ceiling": None} | {k: str(v) for k, v in paths.items()}))


def test_the_analyses_that_take_controls():
    takes = [
        name
        for name in catalogue.of_recordings()
        if {"untrained", "ceiling"} <= {field.name for field in dataclasses.fields(catalogue.get(name).Settings)}
    ]
    assert tuple(takes) == TAKING == tuple(BESIDE)


@pytest.mark.parametrize("name", TAKING)
def test_the_same_model_again_has_the_same_numbers_and_another_has_not(name, recording, again, stranger):
    module, result = asked(name, recording, ceiling=str(again.path), untrained=str(stranger.path))
    for table_name, number in BESIDE[name].items():
        table = module.tables(result)[table_name]
        np.testing.assert_allclose(table["again"], table[number], atol=1e-6)
        assert not np.allclose(table["untrained"], table[number], atol=1e-3)
        assert table["hashed"].notna().any()
    assert "tiny-random-moe, another recording of it" in (words := str(vars(result)))
    assert "before training of its own" in words
    drawn = module.figures(result)
    lines = {line for figure in drawn.values() if "router" in figure.table for line in figure.table["router"]}
    assert {NAMES["again"], NAMES["untrained"]} <= lines


@pytest.mark.parametrize("name", TAKING)
def test_without_controls_there_is_the_hash_alone(name, recording):
    module, result = asked(name, recording)
    for table_name in BESIDE[name]:
        table = module.tables(result)[table_name]
        assert "hashed" in table and not {"again", "untrained"} & set(table)


def test_a_control_that_does_not_fit_is_refused(recording, stranger, moe, tmp_path):
    short = record(moe, tiny.corpus(n_documents=10), tmp_path / "short")
    for setting in ("untrained", "ceiling"):
        with pytest.raises(
            AnalysisError, match=f"x: {setting} is .*, whose corpus differs .*; record the .*same corpus"
        ):
            Controls.of(recording, given(**{setting: short.path}), "x")
        with pytest.raises(AnalysisError, match=f"x: {setting}: .*no is not a folder"):
            Controls.of(recording, given(**{setting: tmp_path / "no"}), "x")
    with pytest.raises(AnalysisError, match="x: ceiling .* is of tiny-random-moe, and the ceiling is how far"):
        Controls.of(recording, given(ceiling=stranger.path), "x")
    assert Controls.of(recording, given(), "x").words == ""


def test_a_router_by_token_alone_has_the_sets_of_the_hash(recording):
    router = recording.topology.routers[0]
    view = routed_by_token(recording, router, seed=3)
    token_T, ids_TK = view.column("token"), view.ids(router.layer)
    assert ids_TK.shape == (recording.n_tokens, router.top_k)
    own_TE = hash_router_counts(
        token_T, np.arange(len(token_T)), n_documents=len(token_T), n_experts=8, top_k=router.top_k, seed=3
    )
    np.testing.assert_array_equal(np.sort(ids_TK, axis=1), np.nonzero(own_TE)[1].reshape(ids_TK.shape))
    document_T = view.column("document")
    for number, counts_E in zip(view.documents()["document"], view.counts(router.layer), strict=True):
        np.testing.assert_array_equal(counts_E, own_TE[document_T == number].sum(axis=0))
    last = recording.topology.routers[-1]
    np.testing.assert_array_equal(view.ids(last.layer), recording.ids(last.layer))  # the other routers stay


def test_pairs_of_one_token_agree_wholly_by_the_hash(recording):
    table = same_token.run(recording).agreement
    of_token = table[(table["same"] == "token") & (table["weight"] == "tokens")]
    assert (of_token["hashed"] > of_token["excess"]).all() and (of_token["hashed"] < 1).all()
    (stack,) = router_stacks(recording)
    with_hash = routed_by_token(recording, stack.routers[0], seed=0)
    plain = same_token.run(with_hash, same_token.Settings(n_seeds=1)).agreement.iloc[0]
    assert plain["value"] == pytest.approx(1) and plain["excess"] == pytest.approx(plain["hashed"])


def test_a_token_keeps_all_its_experts_when_nothing_changed(recording, again):
    result = same_token.run(recording, same_token.Settings(n_seeds=1, ceiling=str(again.path)))
    assert result.agreement["ceiling"].between(0.99, 1).all()
    assert "Recorded again, a token keeps" in same_token.figures(result)["by_layer"].caption


@pytest.mark.parametrize("module", [same_token, position])
def test_no_seed_is_refused(module, recording):
    with pytest.raises(AnalysisError, match="n_seeds is 0; 1 or more was expected"):
        module.run(recording, module.Settings(n_seeds=0))


def test_an_experts_rate_by_the_tokens_of_a_domain(recording):
    """Token by token: how often its id chose the expert in other documents; the corpus' rate where there is none."""
    layer, expert = 2, 1
    result = expert_card.run(recording, expert_card.Settings(layer=layer, expert=expert))
    frame = recording.tokens()[["document", "token"]].assign(chosen=(recording.ids(layer) == expert).any(axis=1))
    frame = frame.merge(recording.documents()[["document", "domain"]], on="document")
    for domain, rows in frame.groupby("domain"):
        rates, unseen = [], 0
        for row in rows.itertuples():
            elsewhere = frame[(frame["token"] == row.token) & (frame["document"] != row.document)]
            unseen += not len(elsewhere)
            rates.append(elsewhere["chosen"].mean() if len(elsewhere) else frame["chosen"].mean())
        found = result.domains.set_index("domain").loc[domain]
        assert found["by_token"] == pytest.approx(np.mean(rates))
        assert found["unseen"] == pytest.approx(unseen / len(rows))


def test_two_recordings_have_no_controls(recording, stranger, again):
    settings = domain_load.Settings(untrained=str(again.path))
    with pytest.raises(
        AnalysisError, match="domain_load: untrained is a control of one recording, and two are compared"
    ):
        compare(domain_load, recording, stranger, settings)


@pytest.mark.rest
def test_controls_on_the_command_line(recording, again, stranger, tmp_path):
    code = "from workbench.cli.main import main; main()"

    def run(*arguments: object) -> subprocess.CompletedProcess:
        words = [sys.executable, "-c", code, "analyze", *map(str, arguments), "--out", str(tmp_path / "o")]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    beside = ("--untrained", stranger.path, "--ceiling", again.path)
    done = run(recording.path, "expert_load", "domain_load", *beside)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "o" / "domain_load" / "information.csv").read_text()
    assert ",untrained,again" in table
    script = (tmp_path / "o" / "reproduce.sh").read_text()
    assert f"--set ceiling={again.path} --set untrained={stranger.path}" in script
    alone = run(recording.path, "expert_load", *beside)
    assert alone.returncode and "no analysis that was named takes --ceiling" in alone.stderr
    two = run(recording.path, "domain_load", "--against", again.path, "--untrained", stranger.path)
    assert two.returncode and "--untrained is a control of one recording" in two.stderr


def test_controls_are_in_the_provenance(recording, again, stranger):
    settings = (f"untrained={stranger.path}", f"ceiling={again.path}")
    digests = [source.digest for source in Question(recording, "context", settings).sources]
    assert digests == [recording.digest, again.digest, stranger.digest]
