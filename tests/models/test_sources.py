"""A hub that does not answer is asked once, for seconds, and what was fetched before is read without it."""

import json

import pytest
from huggingface_hub import constants

from workbench.errors import ModelError
from workbench.models import sources
from workbench.models.loading import inspect_topology, load, load_tokenizer


def hub(monkeypatch, *, silence: str = "", offline: str = "") -> list[bool]:
    """A hub that answers or not, and notes of each request whether it was allowed."""
    asked: list[bool] = []

    def refuses(*_: object, **__: object) -> None:
        asked.append(not constants.HF_HUB_OFFLINE)
        raise OSError("no such file")

    monkeypatch.setattr(sources, "_hub_silence", lambda: silence)
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", refuses)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    return asked


@pytest.mark.parametrize("read", [inspect_topology, load])
@pytest.mark.parametrize(
    ("situation", "advice", "allowed"),
    [
        ({}, "If the name is right, check the connection to the hub, or give a local folder", True),
        ({"offline": "1"}, r"not on this machine yet, and the hub is not asked here \(.*--hub", False),
        ({"silence": "no route to it"}, r"The hub \(https.*\) does not answer here: no route to it\. If", False),
    ],
)
def test_a_hub_model_that_cannot_be_fetched_says_whether_the_hub_was_asked(
    monkeypatch, read, situation, advice, allowed
):
    asked = hub(monkeypatch, **situation)
    with pytest.raises(ModelError, match=rf"org/name: the config cannot be read \(no such file\)\. .*{advice}"):
        read("org/name")
    assert asked == [allowed]
    assert not constants.HF_HUB_OFFLINE  # of this one request alone


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    class Deaf:
        def head(self, *_: object, **__: object) -> None:
            waiting.wait()

    import threading

    waiting = threading.Event()
    monkeypatch.setattr(sources, "get_session", Deaf)
    monkeypatch.setattr(sources, "_HUB_ANSWERS_WITHIN_S", 0.01)
    assert sources._hub_silence() == "nothing came within 0 s"
    waiting.set()


def test_a_hub_that_cannot_be_reached_says_why(monkeypatch):
    class Cut:
        def head(self, *_: object, **__: object) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(sources, "get_session", Cut)
    assert sources._hub_silence() == "[Errno 101] Network is unreachable"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 200 + "b", "zero\0byte", ""])
def test_a_name_that_no_file_can_have_is_unknown(name):
    with pytest.raises(ModelError, match="unknown model "):
        inspect_topology(name)


def test_a_folder_whose_models_lie_below_it_names_them(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no config.json, .* One lies in inner below it"):
        load(str(tmp_path))


def test_an_adapters_folder_says_that_it_is_one_and_of_what(tmp_path):
    stated = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    for read in (inspect_topology, load):
        with pytest.raises(ModelError, match=r"holds an adapter .*: it changes 'owner/base'\. Merge it .*base model"):
            read(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match="it changes a model that it does not name"):
        load(str(tmp_path))


def test_a_published_config_has_no_tokenizer():
    with pytest.raises(ModelError, match="has no tokenizer that can be read: a published config has none"):
        load_tokenizer("qwen2-7b")
