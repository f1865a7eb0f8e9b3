"""A question: what its command, its key and its address say, and what it refuses."""

import json
import shlex
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from analyses.address import Address
from analyses.question import Question
from analyses.settings import parse_settings
from workbench.cli.main import command_line
from workbench.errors import AnalysisError
from workbench.recordings.recording import Recording


@pytest.fixture(scope="module")
def spaced(recording, tmp_path_factory):
    """A copy in a folder whose name has blanks and a quote."""
    out = tmp_path_factory.mktemp("data of mine") / "it's a recording"
    shutil.copytree(recording.path, out)
    return Recording.open(out)


def test_the_command_of_a_path_with_blanks_writes_the_same(spaced, tmp_path, monkeypatch):
    asked = Question(spaced, "expert_load", ["n_draws=19"], only=["layers"], label="of-mine", width="text")
    files, _ = asked.write(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(asked.command)
    assert words[:3] == ["workbench", "analyze", str(spaced.path)]
    done = CliRunner().invoke(command_line(), words[1:])
    assert done.exit_code == 0, done.output
    for file in files:
        assert file.read_bytes() == (tmp_path / "out" / "of-mine" / file.name).read_bytes()


def test_the_key_is_of_all_that_the_answer_depends_on_and_of_nothing_else(recording, spaced):
    asked = Question(recording, "expert_load")
    assert asked.key == Question(spaced, "expert_load").key  # the same content in another place
    assert asked.key == asked.narrowed(only=["layers"], label="a", width="text").key
    others = [
        replace(asked, analysis="load_balance"), replace(asked, settings=["seed=1"]), replace(asked, against=spaced),
        replace(asked, against=spaced, experts="same"),
        replace(asked, of=Recording(recording.path, {**recording.manifest, "digest": "0" * 64})),
    ]  # fmt: skip
    assert len({asked.key, *(other.key for other in others)}) == 1 + len(others)


def test_the_provenance_says_the_command_the_settings_and_every_source(recording, spaced):
    made = Question(recording, "domain_load", [f"untrained={spaced.path}"], against=spaced, experts="same").provenance
    assert [source.digest for source in made.sources] == [recording.digest] * 3
    assert made.settings["untrained"] == str(spaced.path)
    words = shlex.split(made.command)
    assert words[words.index("--against") + 1] == str(spaced.path) and "--experts" in words


def test_an_answer_holds_what_the_analysis_says(recording):
    answer = Question(recording, "expert_load", ["n_draws=19"]).answer()
    assert set(answer.picked(["load_map"]).figures) == {"load_map"} and not answer.picked(["load_map"]).tables
    assert answer.picked([]) is answer
    with pytest.raises(AnalysisError, match="--only 'x' is neither a figure nor a table; there are load_map"):
        answer.picked(["x"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"analysis": "nothing"}, "unknown analysis 'nothing'"),
        ({"label": "a/b"}, "--label is 'a/b'; letters, digits"),
        ({"analysis": "throughput"}, "throughput: it is asked of a measurement, and .* holds a recording"),
        ({"analysis": "roofline"}, "roofline: it is asked of costs, not of a recording"),
        ({"analysis": "saturation"}, "saturation: it compares two recordings, and one was given"),
        ({"settings": ["n_draws"]}, "expert_load: --set 'n_draws' has no '='"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(recording, how, message):
    with pytest.raises(AnalysisError, match=message):
        Question(recording, **{"analysis": "expert_load", **how}).answer()


# ---- addresses ----

WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
NAMES = WORDS.filter(lambda word: "," not in word)


@given(
    st.builds(
        Address, recording=WORDS, analysis=WORDS, names=st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple),
        against=st.just("") | WORDS, phase=st.sampled_from(["", "prefill", "decode"]),
        experts=st.sampled_from(["auto", "same", "matched"]), settings=st.lists(WORDS, max_size=3).map(tuple),
    )
)  # fmt: skip
def test_an_address_says_what_was_put_into_it(address):
    assert Address.read(str(address)) == address
    assert "|" not in str(address)


@pytest.mark.parametrize("text", ["", "of=a", "of=a&analysis=b", "of=a&analysis=b&names=", "names=a&analysis=b", "|&="])
def test_what_says_no_question_is_none(text):
    assert Address.read(text) is None


def test_a_question_comes_back_from_its_address(recording):
    folder = recording.path.parent
    asked = Question(
        recording, "domain_load", [f"untrained={recording.path}", "level=.9"], against=recording, only=["a"]
    )
    address = Address.of(asked, folder)
    assert address.settings == (f"untrained={recording.path.name}", "level=.9")
    again = Address.read(str(address)).question({recording.path.name: recording}.__getitem__)
    assert (again.key, again.command) == (asked.narrowed().key, asked.narrowed().command)
    assert Address.of(asked, folder.parent) is None


def test_a_written_result_says_its_question(recording, tmp_path):
    files, figures = Question(recording, "expert_load", ["n_draws=19"]).write(tmp_path)
    provenance = json.loads(files[-1].read_text())
    assert provenance["command"] == Question(recording, "expert_load", ["n_draws=19"]).command and figures


@dataclass(frozen=True)
class Switched:
    on: bool = True


@pytest.mark.parametrize(("text", "value"), [("false", False), ("False", False), ("true", True)])
def test_a_setting_that_is_true_or_false_is_read_as_it_says(text, value):
    module = SimpleNamespace(__name__="analyses.x", Settings=Switched)
    assert parse_settings(module, [f"on={text}"]).on is value
    with pytest.raises(AnalysisError, match="x: on is '0'; true or false was expected"):
        parse_settings(module, ["on=0"])
