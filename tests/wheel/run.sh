#!/usr/bin/env bash
# Installs the wheel as a stranger would, into two environments that hold nothing else, and runs it in an empty folder whose
# name has a space: with every extra (demo, inspect, costs, record, analyze, the app), and bare (reads, analyses, prints, and
# says what is missing). `make wheel`; minutes, most of them pip's.
set -euo pipefail
PYTHON=$(realpath -s "${1:-.venv/bin/python}")  # one with the extra dev, which builds
cd "$(dirname "$0")/../.."
CHECKOUT=$PWD
WORK=$(mktemp -d)
trap 'for each in ${SERVER:-} ${PID:-}; do kill "$each" 2>/dev/null || true; done; rm -rf "$WORK"' EXIT
unset PYTHONPATH WORKBENCH_DATA
OWN=$HOME  # where pip may be told which index to ask
export OMP_NUM_THREADS=1  # the bundled model gains nothing from more
export HOME="$WORK/home" MPLBACKEND=Agg PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
EMPTY="$WORK/an empty folder"
mkdir -p "$HOME" "$EMPTY"

step() { printf 'wheel: %s (%d s)\n' "$*" "$SECONDS"; }
fail() { printf 'wheel: FAILED: %s\n' "$*" >&2; exit 1; }
refused() {  # EXTRA, COMMAND…: ends with status 1 and one line that names the extra
    local extra=$1 status=0; shift
    "$@" >"$WORK/refusal" 2>&1 || status=$?
    [ "$status" = 1 ] && [ "$(wc -l <"$WORK/refusal")" = 1 ] && grep -qF "pip install 'moe-workbench[$extra]'" "$WORK/refusal" \
        || { cat "$WORK/refusal"; fail "status $status of: $*"; }
}
installed() {  # ENVIRONMENT, EXTRAS: a fresh one; what is compiled is compiled when it is imported
    "$PYTHON" -m venv "$WORK/$1"
    HOME=$OWN "$WORK/$1/bin/python" -m pip install --quiet --no-compile --constraint "$CHECKOUT/constraints.txt" "$WHEEL$2" \
        >"$WORK/$1.log" 2>&1 || { cat "$WORK/$1.log"; fail "pip install of the wheel$2"; }
}
files_of() { (cd "$WORK/$1"/lib/python*/site-packages && find workbench analyses -type f ! -name '*.pyc' | sort); }

bare() {  # the wheel alone: reads, analyses, prints, and says what is missing
    local bare="$WORK/bare/bin" recording="$WORK/a recording"
    installed bare ""
    step "bare: reads, analyses, prints"
    cp -r "$CHECKOUT/tests/golden/schema-1" "$recording"
    mkdir "$WORK/bare empty" && cd "$WORK/bare empty"
    "$bare/workbench" verify "$recording" >/dev/null
    "$bare/workbench" analyze "$recording" expert_load load_balance --out "bare out" >/dev/null
    [ -n "$(find "bare out" -name '*.pdf')" ] || fail "the bare wheel drew nothing"
    "$bare/python" - "$recording" <<'PY'
import importlib.util
import sys
import workbench as wb
assert not any(map(importlib.util.find_spec, ("torch", "transformers", "streamlit", "nnsight")))
assert wb.Recording.open(sys.argv[1]).n_tokens > 100
try:
    wb.load
except ImportError as error:
    assert str(error).endswith("pip install 'moe-workbench[models]'."), error
else:
    raise SystemExit("wb.load is there")
PY
    step "bare: what is missing is named"
    refused models "$bare/workbench" inspect tiny-moe
    refused models "$bare/workbench" record tiny-moe --corpus demo --out r
    refused models "$bare/workbench" costs tiny-moe
    refused models "$bare/workbench" demo
    refused app "$bare/workbench" app
    [ "$(ls)" = "bare out" ] || fail "a refused command wrote something"
}

step "building the sdist, and the wheel from it"
"$PYTHON" -m build --no-isolation --outdir "$WORK/dist" . >"$WORK/build.log" 2>&1 || { cat "$WORK/build.log"; fail "build"; }
WHEEL=$(echo "$WORK"/dist/*.whl)
step "installing it with every extra, and bare"
bare & PID=$!
installed all "[all]"
wait "$PID" || exit 1
PID=

cd "$EMPTY"
ALL="$WORK/all/bin/workbench"
files_of all >"$WORK/before"
step "inspect, costs, record, analyze"
"$ALL" inspect tiny-moe >"$WORK/said"
"$ALL" costs tiny-moe >"$WORK/said"
"$ALL" record tiny-moe --corpus demo --max-tokens 2000 --out "my recording" >"$WORK/said" 2>&1 || { cat "$WORK/said"; fail record; }
"$ALL" analyze "my recording" expert_load >"$WORK/said"
[ -n "$(find out/expert_load -name '*.pdf')" ] || fail "analyze drew nothing"
step "the command that the recording names, which has a space in it, and that of the analysis"
"$WORK/all/bin/python" -c '
import json
print(json.load(open("my recording/manifest.json"))["environment"]["command"])
print(json.load(open("out/expert_load/provenance.json"))["command"])' >"$WORK/again.sh"
grep -qF "'my recording'" "$WORK/again.sh" || fail "no quotes: $(cat "$WORK/again.sh")"
(rm -rf out; PATH="$WORK/all/bin:$PATH" bash -e "$WORK/again.sh" >"$WORK/said" 2>&1) || { cat "$WORK/said"; fail "again"; }
step "demo"
"$ALL" demo >"$WORK/said" 2>&1 || { cat "$WORK/said"; fail demo; }
[ -s report/index.html ] && [ -s data/recordings/demo/manifest.json ] || fail "the demo wrote no report, or no recording"
step "the app"
PORT=$("$WORK/all/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$ALL" app --port "$PORT" >"$WORK/app.log" 2>&1 & SERVER=$!
"$WORK/all/bin/python" - "$PORT" <<'PY' || { cat "$WORK/app.log"; fail "the app did not answer"; }
import sys, time, urllib.request
for path in ("_stcore/health", ""):
    for left in range(120, -1, -1):
        try:
            with urllib.request.urlopen(f"http://localhost:{sys.argv[1]}/{path}", timeout=5) as answer:
                assert answer.status == 200
                break
        except OSError:
            if not left:
                raise
            time.sleep(0.5)
PY
kill "$SERVER"; wait "$SERVER" || true; SERVER=
step "a data folder that cannot be written"
touch file
for command in demo "app --port $PORT"; do
    status=0; WORKBENCH_DATA="file/data" "$ALL" $command >"$WORK/said" 2>&1 || status=$?
    [ "$status" = 1 ] && grep -q "file is a file. Name another WORKBENCH_DATA" "$WORK/said" || { cat "$WORK/said"; fail "$command"; }
done
files_of all | diff "$WORK/before" - || fail "something was written below site-packages"

step "done"
