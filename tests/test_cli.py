"""The commands, as a user types them: what they print, what they write, and how they say no."""

import json
import shutil
import subprocess
import sys

import pytest

from analyses import catalogue
from tests import tiny
from workbench.cli import console, main
from workbench.recordings.recording import Recording


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny.moe().module.save_pretrained(folder / "model")
    rows = [
        {"id": document.id, "domain": document.domain, "token_ids": document.token_ids}
        for document in tiny.corpus().documents
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["workbench", *map(str, arguments)])
    for each in (console.console, console.error_console):
        monkeypatch.setattr(each, "_width", 200)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_record_verify_list_and_analyze(inputs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "recordings" / "one"
    status, said, _ = run(
        monkeypatch, capsys, "record", inputs / "model", "--corpus", inputs / "corpus.jsonl", "--out", out,
        "--max-tokens", 900,
    )  # fmt: skip
    assert status == 0
    recording = Recording.open(out)
    assert f"{recording.n_tokens:,} tokens of {recording.n_documents:,} documents" in said
    assert "left out by --max-tokens" in said
    assert recording.manifest["check"]["routers"] == 2

    status, said, _ = run(monkeypatch, capsys, "verify", out)
    assert (status, recording.digest in said) == (0, True)
    status, said, _ = run(monkeypatch, capsys, "recordings", tmp_path / "recordings")
    assert status == 0 and "closed" in said

    results = tmp_path / "out"
    status, said, _ = run(monkeypatch, capsys, "analyze", out, "expert_load", "token_routing", "--out", results)
    assert status == 0
    page = (results / "index.html").read_text(encoding="utf-8")
    assert "How is the load spread" in page and "expert_load/load_map.svg" in page
    script = (results / "reproduce.sh").read_text()
    assert f"workbench analyze {out} expert_load" in script


@pytest.mark.rest
def test_what_reproduce_says_makes_the_same_files(inputs, tmp_path):
    out = tmp_path / "r"
    base = [sys.executable, "-m", "workbench.cli"]
    subprocess.run([*base, "record", inputs / "model", "--corpus", inputs / "corpus.jsonl", "--out", out], check=True,
                   capture_output=True, cwd=tmp_path)  # fmt: skip
    for folder in ("first", "second"):
        subprocess.run(
            [*base, "analyze", out, "expert_load", "--out", folder], check=True, capture_output=True, cwd=tmp_path
        )
    first, second = (sorted((tmp_path / folder / "expert_load").iterdir()) for folder in ("first", "second"))
    assert [file.name for file in first] == [file.name for file in second]
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(first, second, strict=True))


def test_import_and_analyze(tmp_path, monkeypatch, capsys):
    trace, out = tmp_path / "c4_results.jsonl", tmp_path / "r"
    ids = [[[e % 4, 3], [(e + 1) % 4, 0]] if e % 4 not in (2, 3) else [[0, -1], [1, -1]] for e in range(8)]
    trace.write_text(json.dumps({"input_ids": list(range(8)), "exp_ids": ids}))
    status, said, _ = run(
        monkeypatch, capsys, "import", "olmoe", trace, "--out", out, "--experts", 4, "--layers", "0,2"
    )
    assert status == 0
    assert "4 tokens of 1 chunks of text in" in said
    assert "MoE layers 0, 2; not in the trace: entropy," in said
    assert "padding masked: 4 tokens (8 marks)" in said
    assert "of them padding in part: 4; first: c4_results.jsonl, line 1, row 2, layer 2: ids [-1, -1]" in said
    assert Recording.open(out).manifest["check"] == "imported: not proved"
    status, _, _ = run(monkeypatch, capsys, "analyze", out, "expert_load", "--out", tmp_path / "out")
    assert status == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "unknown model (c4_results.jsonl)" in page and "imported: not proved" in page
    status, _, said = run(monkeypatch, capsys, "analyze", out, "router_confidence", "--out", tmp_path / "out")
    assert status == 1 and "which has no router scores" in said and "Traceback" not in said

    monkeypatch.setattr(catalogue, "names", lambda *_: ["expert_load", "router_confidence"])
    status, said, _ = run(monkeypatch, capsys, "analyze", out, "--all", "--out", tmp_path / "all")
    assert status == 0 and "left out: router_confidence: " in said
    page = (tmp_path / "all" / "index.html").read_text(encoding="utf-8")
    assert "Left out</h2>" in page and "<li>router_confidence: " in page and "no router scores" in page
    assert {file.name for file in (tmp_path / "all").iterdir() if file.is_dir()} == {"expert_load"}
    monkeypatch.setattr(catalogue, "names", lambda *_: ["router_confidence"])
    status, _, said = run(monkeypatch, capsys, "analyze", out, "--all", "--out", tmp_path / "none")
    assert status == 1 and "which has no router scores" in said


def test_inspect_prints_the_reference_model(monkeypatch, capsys):
    status, said, _ = run(monkeypatch, capsys, "inspect", "qwen2-57b-a14b")
    assert status == 0
    assert "57,408,658,944" in said and "14,249,270,784" in said and "0–27" in said
    status, said, _ = run(monkeypatch, capsys, "inspect", "qwen2-57b-a14b", "--json")
    assert json.loads(said)["parameters_total"] == 57_408_658_944
    status, said, _ = run(monkeypatch, capsys, "inspect")
    assert "step-0" in json.loads(said)["bundled"]["tiny-moe"]


def test_inspect_says_when_there_is_no_moe_layer(monkeypatch, capsys):
    _, said, _ = run(monkeypatch, capsys, "inspect", "tiny-dense")
    assert "no MoE layer" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "nothing", "--corpus", "demo", "--out", "r"], "workbench: unknown model 'nothing'. Known: bundled"),
        (["record", "tiny-moe", "--corpus", "no.jsonl", "--out", "r"], "workbench: corpus 'no.jsonl': no such file"),
        (
            ["record", "tiny-moe", "--corpus", "demo", "--out", "r", "--fields", "x"],
            "workbench: fields: 'x' is unknown",
        ),
        (["import", "olmoe", "no.jsonl", "--out", "r"], "workbench: no.jsonl: no such file; name the trace"),
        (["import", "olmoe", "x", "--out", "r", "--layers", "b"], "workbench: --layers 'b': 'b' is no layer"),
        (["verify", "nowhere"], "workbench: nowhere is not a folder"),
        (["analyze", "nowhere", "expert_load"], "workbench: nowhere is not a folder"),
        (["analyze", "nowhere"], "workbench: name an analysis, or give --all; there are "),
        (["analyze", "nowhere", "x"], "unknown analysis 'x'; `workbench analyze RECORDING` without a name lists them."),
        (["analyze", "nowhere", "expert-laod"], "unknown analysis 'expert-laod'; did you mean expert_load"),
        (["analyze", "nowhere", "expert_load", "specialisation"], "did you mean specialization"),
        (["analyze", "nowhere", "expert_load", "--jobs", 0], "workbench: --jobs is 0; 1 to 256 was expected."),
        (["analyze", "x" * 300, "expert_load"], "(300 characters) cannot be read: File name too long"),
        (["analyze", "nowhere", "expert_load", "--set", "seed=" + "9" * 400], "expert_load: seed is 9"),
        (["analyze", "nowhere", "expert_load", "--set", "level=nan"], "level is nan; 0.01 to 0.9999 was expected"),
        (["analyze", "nowhere", "expert_load", "--set", "level=on"], "level is 'on'; a value of type float (a number)"),
        (
            ["analyze", "nowhere", "domain_load", "--set", "layer=99999999999999"],
            "layer is 99999999999999; 0 to 65,535",
        ),
        (
            ["analyze", "nowhere", "expert_load", "--out", "y" * 300],
            "cannot be made (File name too long); name another",
        ),
        (["record", "tiny-moe", "--corpus", "demo", "--out", "/proc/r"], "/proc/r cannot be "),
        (["record", "tiny-moe", "--corpus", "demo", "--out", "z" * 300], "cannot be made (File name too long)"),
        (["record", "tiny-moe", "--corpus", "demo", "--out", "/dev/null/r"], "cannot be made: /dev/null is a file"),
        (["import", "olmoe", "x", "--out", "/dev/null/r"], "cannot be made: /dev/null is a file"),
        (["profile", "tiny-moe", "--out", "/dev/null/r"], "cannot be made: /dev/null is a file"),
        (["analyze", "nowhere", "expert_load", "--out", "/dev/null/r"], "cannot be made: /dev/null is a file"),
        (["verify", "[bold]no[/red]"], "workbench: [bold]no[/red] is not a folder"),
        (["verify", ":smile: [x]"], "workbench: :smile: [x] is not a folder"),
        (["verify", "half \udcff"], "is not a folder; a recording is one"),
        (["verify", ""], "holds no manifest.json"),
        (["analyze", "nowhere", "expert_load", "--width", "wide"], "workbench: --width is 'wide'; column or text"),
        (["analyze", "nowhere", "--all", "--set", "a=1"], "workbench: --set belongs to one analysis, and"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, said = run(monkeypatch, capsys, *arguments)
    assert status == 1
    assert message in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_several_analyses_leave_out_those_that_do_not_apply(recording, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    status, said, _ = run(monkeypatch, capsys, "analyze", recording.path, "throughput", "expert_load", "--out", out)
    assert status == 0 and "left out: throughput: it is asked of a measurement" in said
    assert (out / "expert_load" / "provenance.json").is_file()
    assert "throughput: it is asked" in (out / "index.html").read_text(encoding="utf-8")
    status, said, wrong = run(monkeypatch, capsys, "analyze", recording.path, "throughput", "served", "--out", out)
    assert status == 1 and "none of 2 analyses could be asked; the last said: served:" in wrong
    assert "left out: throughput" in said


def test_a_byte_that_was_turned_over_ends_in_a_sentence_and_in_no_table(recording, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(recording.path, tmp_path / "r")
    part = copy / "tokens" / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 0xFF
    part.write_bytes(bytes(content))
    for words in ([copy, "expert_load"], [recording.path, "expert_load", "--against", copy]):
        status, _, said = run(monkeypatch, capsys, "analyze", *words, "--out", tmp_path / "out")
        assert status == 1 and "tokens/part-00001.parquet is not what was written (its SHA-256 differs)" in said
        assert not (tmp_path / "out").exists()


def test_one_damaged_recording_stands_in_the_list(recording, tmp_path, monkeypatch, capsys):
    shutil.copytree(recording.path, tmp_path / "whole")
    for name, content in (("damaged", "[" * 100_000), ("measured", '{"kind": "measurement"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
    status, said, _ = run(monkeypatch, capsys, "recordings", tmp_path)
    assert status == 0 and "damaged: " in said and "closed" in said and "measured" not in said


def test_brackets_of_help_are_brackets(monkeypatch, capsys):
    status, said, _ = run(monkeypatch, capsys, "app", "--help")
    assert status == 0 and "[auth]" in said


def test_every_command_has_help_with_all_of_its_words(monkeypatch, capsys):
    import typer

    run(monkeypatch, capsys, "--help")
    for name, command in typer.main.get_command(main.command_line()).commands.items():
        _, said, _ = run(monkeypatch, capsys, name, "--help")
        letters = "".join(character for character in said if character.isalnum() or character in "[]")
        for parameter in command.params:
            words = [word for word in (getattr(parameter, "help", "") or "").split() if "[" in word]
            assert all("".join(c for c in word if c.isalnum() or c in "[]") in letters for word in words), (name, words)


def test_every_number_of_every_analysis_has_a_range():
    import typing

    from analyses import settings

    for name in catalogue.names():
        for key, kind in typing.get_type_hints(catalogue.get(name).Settings).items():
            if {int, float} & {kind, *typing.get_args(kind)}:
                low, high = settings.BOUNDS[key]
                default = getattr(catalogue.get(name).Settings(), key)
                assert default is None or low <= default <= high, (name, key)


def test_markup_in_names_stays_text_in_the_report(tmp_path):
    from workbench.export.html import Section, write_report

    canary = "<script>alert('x')</script>"
    section = Section("a", canary, canary, {}, [tmp_path / "a" / "t<b>.csv"])
    write_report(
        tmp_path / "index.html", title=canary, facts={canary: canary}, sections=[section, section], left_out=[canary]
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "t<b>" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") == 4 + 3 * 2 + 1


def test_record_with_experts_and_the_parent_s_weights(inputs, tmp_path, monkeypatch, capsys):
    parent = tiny.dense(n_layers=3).module
    parent.save_pretrained(tmp_path / "parent")
    out = tmp_path / "r"
    status, _, _ = run(
        monkeypatch, capsys, "record", inputs / "model", "--corpus", inputs / "corpus.jsonl", "--out", out,
        "--max-tokens", 200, "--fields", "routing,experts,weights", "--parent", tmp_path / "parent",
    )  # fmt: skip
    assert status == 0
    recording = Recording.open(out)
    assert recording.fields == ("routing", "experts", "weights")
    assert recording.contribution(0).shape == (recording.n_tokens, 3)
    assert len(recording.expert_weights["parent_neuron"].iloc[0]) == 16
