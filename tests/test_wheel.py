"""What is packed, and whether it works where nothing else is installed.

The wheel and the sdist are built from a copy of the checkout into which things were put that must not be packed. The
bare wheel is tried in an environment that borrows the other packages of this one, where torch, transformers, streamlit
and nnsight are hidden by a finder; with real installs it is tried by `make wheel` (`tests/wheel/run.sh`), as CI does.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "schema-1"
HIDDEN = ("torch", "transformers", "streamlit", "nnsight", "accelerate", "safetensors", "huggingface_hub", "guidellm")
HIDING = f"""import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
from importlib import util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name in {HIDDEN!r} else found(name, package)
sys.meta_path.insert(0, Hidden())
"""
STRAY = (
    "data/recordings/mine/manifest.json", "data/measurements/mine/manifest.json", "data/logs/host.log",
    "data/uploads/aa/private.jsonl", "data/requests/mine.json", "data/maps/mine.npy", "data/corpora/mine.jsonl",
    "data/models/mine/model.safetensors", "data/models/mine/config.json", "data/models/curves/mine.pt",
    "data/configs/mine.json", "data/reference/h200/manifest.json", "data/programmes/mine.toml",
    "pages/.streamlit/secrets.toml", "pages/notes.txt", "secrets.toml", "report/index.html", "workbench/notes.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the sdist, from a copy of the checkout with strangers in it."""
    assert find_spec("hatchling"), "hatchling is missing, which comes with the extra dev: make setup"
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy of the checkout"
    skipped = shutil.ignore_patterns("__pycache__", ".mypy_cache", "*.egg-info")
    for name in ("workbench", "analyses", "pages", *(f"data/{kind}" for kind in ("models", "corpora", "configs"))):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    for name in ("data/programmes", "data/reference"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for weights in copy.glob("data/models/**/*.safetensors"):
        weights.write_bytes(b"packing the real ones takes seconds")
    for name in STRAY:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("mine")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder / "dist")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def packed(built) -> dict[str, set[str]]:
    """Names of files: of the wheel as they are installed, of the sdist as they stand in the checkout."""
    with zipfile.ZipFile(built["wheel"]) as wheel, tarfile.open(built["sdist"]) as sdist:
        of_sdist = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
        return {"wheel": set(wheel.namelist()), "sdist": of_sdist}


def expected() -> set[str]:
    """What the wheel holds of the checkout, by kind: said here apart from `pyproject.toml`, which is held to it."""
    code = {file for package in ("workbench", "analyses") for file in (ROOT / package).rglob("*.py")}
    pages = {
        *(ROOT / "pages").rglob("*.py"),
        *(ROOT / "pages" / each for each in ("icon.svg", ".streamlit/config.toml")),
    }
    pages |= set((ROOT / "pages").rglob("*.js"))
    tracked = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    data = {ROOT / line for line in tracked.splitlines()}
    data = {
        file for file in data if file.suffix != ".py" and "curves" not in file.parts and file.name != "evaluation.json"
    }
    names = {file.relative_to(ROOT).as_posix() for file in code} | {"workbench/py.typed", "analyses/py.typed"}
    return names | {f"workbench/{file.relative_to(ROOT).as_posix()}" for file in pages | data}


def test_the_wheel_holds_what_it_is_told_to_and_nothing_else(packed):
    files = {name for name in packed["wheel"] if ".dist-info/" not in name}
    assert files == expected()


def test_two_packages_land_at_the_top_of_site_packages(packed):
    tops = {name.partition("/")[0] for name in packed["wheel"]}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"workbench", "analyses"}


def test_the_sdist_holds_the_same_and_what_builds_it(packed):
    of_the_project = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"}
    installed = {name.removeprefix("workbench/") if name.startswith(("workbench/data/", "workbench/pages/")) else name
                 for name in expected()}  # fmt: skip
    assert packed["sdist"] - of_the_project == installed
    assert of_the_project - packed["sdist"] <= {".gitignore"}


def test_the_metadata_names_extras_and_command(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(name))
        commands = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert metadata["Name"] == "moe-workbench" and metadata["Version"] == "0.2.0"
    assert {"models", "app", "serve", "login", "all", "dev"} == set(metadata.get_all("Provides-Extra"))
    assert "workbench = workbench.cli.main:main" in commands
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in core if line.startswith(HIDDEN)]


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory) -> Path:
    """An environment with the wheel alone, the packages of this one without those of the extras, and its `bin`."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.EnvBuilder(symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(site)
    borrowed = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "zz_borrowed.pth").write_text(f"{borrowed}\nimport hiding_of_the_extras\n")
    (site / "hiding_of_the_extras.py").write_text(HIDING)
    command = folder / "bin" / "workbench"
    command.write_text(f"#!{folder}/bin/python\nfrom workbench.cli.main import main\nmain()\n")
    command.chmod(0o755)
    return folder / "bin"


def ran(command: list[str], cwd: Path, **more: str) -> subprocess.CompletedProcess:
    """Runs a command where nothing names this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WORKBENCH_DATA")}
    return subprocess.run(command, cwd=cwd, env={**kept, **more}, capture_output=True, text=True, check=False)


@pytest.mark.rest
def test_a_bare_wheel_reads_analyses_and_prints(bare, tmp_path):
    done = ran([str(bare / "workbench"), "analyze", str(GOLDEN), "expert_load", "--out", "my out"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert {file.suffix for file in (tmp_path / "my out" / "expert_load").iterdir()} >= {".csv", ".tex", ".pdf", ".png"}
    done = ran([str(bare / "workbench"), "verify", str(GOLDEN)], tmp_path)
    assert done.returncode == 0 and "as written" in done.stdout
    code = (
        "import json, sys, workbench as wb\n"
        "from analyses.routing import expert_load\n"
        "recording = wb.Recording.open(sys.argv[1])\n"
        "tables = expert_load.tables(expert_load.run(recording))\n"
        "said = {}\n"
        "for name in ('load', 'record', 'check_capture'):\n"
        "    try: getattr(wb, name)\n"
        "    except ImportError as error: said[name] = [str(error), isinstance(error, wb.WorkbenchError)]\n"
        "print(json.dumps([wb.__file__, wb.__version__, len(tables), said, wb.Corpus.read('demo').name]))\n"
    )
    done = ran([str(bare / "python"), "-c", code, str(GOLDEN)], tmp_path)
    assert done.returncode == 0, done.stderr
    file, version, n_tables, said, corpus = json.loads(done.stdout)
    assert file.startswith(str(bare.parent)) and version == "0.2.0" and n_tables and corpus == "demo"
    assert said["load"] == [
        "workbench.load needs torch, which is not installed: pip install 'moe-workbench[models]'.", True,
    ]  # fmt: skip
    assert set(said) == {"load", "record", "check_capture"}


@pytest.mark.rest
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("inspect tiny-moe", "models"), ("record tiny-moe --corpus demo --out r", "models"), ("demo", "models"),
        ("costs tiny-moe", "models"), ("profile tiny-moe --out p", "models"), ("programme tiny --out p", "models"),
        (f"attention-map {GOLDEN} --document a --layer 1 --head 0", "models"), ("app", "app"),
        ("serve-bench --launch --out s", "serve"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named_in_a_sentence(bare, tmp_path, words, extra):
    done = ran([str(bare / "workbench"), *words.split()], tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"pip install 'moe-workbench[{extra}]'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rest
def test_what_needs_no_extra_is_listed_from_the_package(bare, tmp_path):
    done = ran([str(bare / "workbench"), "inspect"], tmp_path)
    assert done.returncode == 0 and {"tiny-moe", "tiny-dense"} <= json.loads(done.stdout)["bundled"].keys()
