"""Damage: whatever stands in the files of a measurement, it is read as it was written or refused with a sentence."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_recording_damage import VALUES, places, put
from workbench.efficiency.measurements.measurement import Measurement, is_measurement, write_measurement
from workbench.efficiency.measurements.shape import TABLES, fault_of
from workbench.errors import MeasurementError
from workbench.recordings.manifest import json_digest


def made(path, **tables) -> Measurement:
    """A small measurement with given tables beside its samples."""
    who = {"model": "a", "routing": "natural", "experts": "eager", "watched": False}
    size = {"batch": 1, "prompt_tokens": 4, "output_tokens": 2}
    times = {"round": 0, "order": 0, "started_s": 0.0, "wall_s": 2.0, "token_s": [1.0, 2.0]}
    topology = {
        "family": "x", "n_layers": 2, "width": 8, "vocabulary": 9, "n_heads": 2, "n_kv_groups": 1, "head_width": 4,
        "context": None, "routers": [], "parameters_total": 10, "parameters_active": 10,
    }  # fmt: skip
    speed = {"flops_per_s": 1.0, "bytes_per_s": 2.0}
    manifest = {
        "models": {"a": {"name": "a", "revision": "", "dtype": "float32", "weights": "dummy", "topology": topology}},
        "base": {"routing": "natural", "experts": "eager"}, "hook_s": 1e-6, "left_out": ["nothing"],
        "machine": {"cpu": "abacus", "threads": 1, "device": "cpu"}, "ceiling": {"before": speed, "after": speed},
        "settings": {"rounds": 7, "prompts": {"a": "random"}},
    }  # fmt: skip
    return write_measurement(path, {"samples": pd.DataFrame([who | size | times]), **tables}, manifest)


def close_over(path, manifest):
    """Writes a manifest under its own digest."""
    manifest["digest"] = json_digest({k: v for k, v in manifest.items() if k not in ("created", "digest")})
    (path / "manifest.json").write_text(json.dumps(manifest))


@given(data=st.data())
def test_whatever_stands_in_a_manifest_it_opens_or_is_refused(tmp_path_factory, data):
    whole = made(tmp_path_factory.mktemp("m") / "m")
    place = data.draw(st.sampled_from([at for at in places(whole.manifest) if at and at != ("digest",)]))
    close_over(whole.path, put(whole.manifest, place, data.draw(st.sampled_from(VALUES))))
    try:
        opened = Measurement.open(whole.path)
        assert opened.verify() == len(opened.manifest["tables"])
        assert all(opened.table(name).shape == whole.table(name).shape for name in opened.manifest["tables"])
    except MeasurementError as error:
        assert str(whole.path) in str(error)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (("tables", "../x"), {"rows": 0, "sha256": "x"}, "tables names '../x'; samples, parts"),
        (("models",), {}, "models is empty; at least 1 was expected"),
        (("models", "a", "topology", "n_layers"), 10**9, "models.a.topology.n_layers is 1000000000; 1 to 10000"),
        (("base",), ..., "base is missing, and samples were measured"),
        (("settings", "rounds"), 0, "settings.rounds is 0"),
        (("machine", "device"), ..., "machine.device is missing"),
        (("ceiling", "before", "flops_per_s"), float("inf"), "ceiling.before.flops_per_s is inf"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(tmp_path, place, new, message):
    manifest = made(tmp_path / "m").manifest
    assert message in fault_of(put(manifest, place, new))
    assert fault_of(manifest) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="wall_s"), "it has no column 'wall_s'"),
        (lambda t: t.assign(batch="one"), "column 'batch' is of type .*string, and a whole number was expected"),
        (lambda t: t.assign(model=[None]).astype({"model": "string"}), "column 'model' lacks 1 values"),
        (lambda t: t.assign(token_s=[np.array([], dtype=float)]), "column 'token_s' holds an empty list"),
        (lambda t: t.assign(token_s=[[None, 1.0]]), "column 'token_s' lacks a number"),
        (lambda t: t.assign(token_s=1.0), "column 'token_s' is of type double, and a list of times was expected"),
        (lambda t: pd.concat([t, t]), "it has 2 rows, and the manifest says 1"),
    ],
)
def test_columns_that_a_table_cannot_have_are_refused(tmp_path, change, message):
    whole = made(tmp_path / "m")
    file = whole.path / "samples.parquet"
    change(whole.table("samples")).to_parquet(file, index=False)
    with pytest.raises(MeasurementError, match="is not as it was written: its digest does not match"):
        Measurement.open(whole.path).table("samples")
    from workbench.recordings.manifest import file_digest

    close_over(whole.path, put(whole.manifest, ("tables", "samples", "sha256"), file_digest(file)))
    for read in (lambda m: m.table("samples"), lambda m: m.verify()):
        with pytest.raises(MeasurementError, match=f"samples.parquet is damaged: {message}"):
            read(Measurement.open(whole.path))


def test_a_table_without_a_row_has_any_columns(tmp_path):
    assert made(tmp_path / "m", energy=pd.DataFrame()).table("energy").empty
    assert {"samples", "requests"} <= set(TABLES)


def test_what_is_no_json_is_no_measurement(tmp_path):
    for name, content in (("deep", b"[" * 100_000), ("text", b"\xff"), ("pipe", None)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "manifest.json"
        os.mkfifo(file) if content is None else file.write_bytes(content)
        assert not is_measurement(tmp_path / name)
        with pytest.raises(MeasurementError, match="holds no measurement"):
            Measurement.open(tmp_path / name)
    with pytest.raises(MeasurementError, match="holds no measurement"):
        Measurement.open(tmp_path / ("x" * 300))


def test_a_manifest_that_would_not_be_read_is_not_written(tmp_path):
    with pytest.raises(MeasurementError, match=r"nothing was written: .*\(models is missing\)"):
        write_measurement(tmp_path / "m", {}, {})
    assert not (tmp_path / "m").exists()


def test_a_file_that_the_system_refuses_is_a_sentence(tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    def refuse(self, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(MeasurementError, match=r"cannot be written: Read-only file system\. What was written before"):
        made(tmp_path / "m")
    monkeypatch.undo()
    assert not list((tmp_path / "m").glob("*.tmp"))
    shutil.rmtree(tmp_path / "m")
