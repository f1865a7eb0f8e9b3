"""The app in a real browser: what researchers do with it, and what must not happen."""

import io
import json
import re
import shutil
import socket
import zipfile

import pytest

from tests.pages.browser import Visitor, serving
from tests.test_latex import compiled
from workbench.jobs.storage import keep_request
from workbench.recordings.corpus import Corpus
from workbench.recordings.recording import Recording

PAGES = {"/": "Models", "/record": "Record", "/tokens": "Tokens", "/utilization": "Utilization",
         "/load_balance": "Load balance", "/attention": "Attention", "/compare": "Compare",
         "/structure": "Structure", "/specialization": "Specialization", "/export": "Export"}  # fmt: skip


def record(visitor: Visitor, prompt: str, *, check: bool = False) -> None:
    visitor.open("/record")
    visitor.page.get_by_label("Prompt", exact=True).fill(prompt)
    if not check:
        visitor.page.get_by_text("Prove the capture first").click()
    visitor.page.get_by_role("button", name="Record").click()


def tokens_drawn(visitor: Visitor) -> str:
    """The text of the strip of the recording that was just made."""
    visitor.page.wait_for_url("**/tokens?*recording=tiny-moe-prompt-*", timeout=90_000)
    visitor.settle()
    points = visitor.chart("token_routing-strip_expert").locator(".bars .point text")
    return "".join(points.all_text_contents())


def letters(text: str) -> str:
    """Without blanks and the numbers of experts beside the tokens."""
    return "".join(c for c in text if c not in "₀₁₂₃₄₅₆₇₈₉" and not c.isspace())


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("path", "title"), PAGES.items())
@pytest.mark.rest
def test_a_page_opens_without_an_error(chrome, app, path, title, dark):
    visitor = Visitor(chrome, app, dark=dark)
    visitor.open(path)
    assert visitor.page.get_by_role("heading", name=title, exact=True).is_visible()
    assert visitor.page.locator("[data-testid=stException]").count() == 0
    assert visitor.troubles == []
    visitor.close()


def test_prompt_to_tokens_to_expert_to_compare_to_the_bundle(visitor, app, tmp_path, pdflatex):
    record(visitor, "The river rose in the night, and 1,204 sandbags lined the bank.", check=True)
    assert letters(tokens_drawn(visitor)) == "Theriverroseinthenight,and1,204sandbagslinedthebank."
    visitor.put_aside("token_routing-strip_expert")
    visitor.click_token("token_routing-strip_expert", 4)
    assert "token=4" in visitor.address()
    link = visitor.page.get_by_role("link", name="L1 E")
    chosen = link.inner_text().split("E")[1]
    link.click()
    visitor.settle()
    assert visitor.page.get_by_role("heading", name=f"Expert {chosen} of layer 1", exact=True).is_visible()
    assert visitor.save("expert_load-load_map", "PDF").startswith(b"%PDF")
    assert visitor.save("expert_load-load_map", "SVG").startswith(b"<?xml")
    assert visitor.save("expert_load-load_map", "PNG").startswith(b"\x89PNG")
    visitor.put_aside("expert_card-contexts")
    shutil.copytree(app.data / "recordings" / "shared", app.data / "recordings" / "again")
    try:
        visitor.choose("Recording", "shared")
        visitor.go("Compare")
        visitor.choose("Against", "again")
        visitor.chart("differences-by_layer")
        visitor.put_aside("differences-by_layer")
        visitor.go("Export")
        visitor.page.locator("[data-testid=stImage] img").nth(2).wait_for(timeout=60_000)
        width = visitor.page.locator("[data-testid=stImage] img").first.bounding_box()["width"]
        assert width == pytest.approx(3.25 * 96, abs=1)  # the size it has on paper
        packed = visitor.download("Download the bundle")
    finally:
        shutil.rmtree(app.data / "recordings" / "again")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path)
    bundle = tmp_path / "bundle"
    for figure in ("token_routing/strip_expert", "expert_card/contexts", "differences/by_layer"):
        assert (bundle / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        assert json.loads((bundle / figure).with_name("provenance.json").read_text())["sources"]
    commands = (bundle / "reproduce.sh").read_text()
    assert f"expert_card --set layer=1 --set expert={chosen}" in commands and "--against" in commands
    compiled(pdflatex, bundle)


@pytest.mark.rest
def test_an_address_shows_the_same_in_another_browser(chrome, app, visitor):
    visitor.open("/tokens?document=d7&layer=0")
    visitor.page.get_by_text("router entropy", exact=True).first.click()
    visitor.settle()
    visitor.click_token("token_routing-strip_entropy", 2)
    visitor.page.get_by_text("Table", exact=True).click()
    visitor.settle()
    visitor.put_aside("token_routing-strip_entropy")
    assert all(part in visitor.address() for part in ("colour=entropy", "token=2", "open=table", "aside="))
    other = Visitor(chrome, app)
    for way in (None, "Export", "Structure"):
        if way is not None:
            visitor.go(way)
        if way == "Structure":
            visitor.page.get_by_text("Layer by layer").click()
            visitor.chart("all-coactivation-by_layer")
        visitor.settle()
        other.open(visitor.address())
        other.page.wait_for_timeout(500)
        other.settle()
        assert other.address() == visitor.address()
        assert other.seen() == visitor.seen()
    assert other.troubles == []
    other.close()


@pytest.mark.rest
def test_a_click_on_the_map_chooses_the_expert_and_another_browser_sees_the_same(chrome, app, visitor):
    visitor.open("/utilization")
    visitor.click_mark("expert_load-load_map", 5.5 / 8, 0.75)  # the second of two MoE layers, 0 and 2
    assert "layer=2" in visitor.address() and "expert=5" in visitor.address()
    other = Visitor(chrome, app)
    other.open(visitor.address())
    for each in (visitor, other):
        assert each.page.get_by_role("heading", name="Expert 5 of layer 2", exact=True).is_visible()
        assert each.chart("expert_load-load_map").locator(".shapelayer path").count() == 2  # the outline of the cell
    assert other.address() == visitor.address()
    other.close()


@pytest.mark.rest
def test_a_click_on_the_map_of_heads_chooses_the_head(visitor):
    visitor.open("/attention?statistic=first")
    visitor.click_mark("attention_heads-map", 2.5 / 4, 0.5)
    assert "layer=1" in visitor.address() and "head=2" in visitor.address()
    assert visitor.page.get_by_role("heading", name="Layer 1, head 2", exact=True).is_visible()
    assert visitor.save("attention_profile-head", "PDF").startswith(b"%PDF")


@pytest.mark.rest
def test_a_click_on_the_matrix_of_pairs_chooses_the_expert_and_leads_to_its_card(visitor):
    visitor.open("/structure?layer=2")
    visitor.click_mark("coactivation-pair_map", 3.5 / 8, 6.5 / 8)
    assert "expert=6" in visitor.address()
    assert visitor.chart("coactivation-pair_map").locator(".shapelayer path").count() == 2  # one outline of the row
    visitor.page.get_by_text("Flow to the next layer").click()
    visitor.settle()
    assert visitor.save("layer_flow-strongest_streams", "PDF").startswith(b"%PDF")
    visitor.page.get_by_role("link", name="The card of L2 E6").click()
    visitor.settle()
    assert visitor.page.get_by_role("heading", name="Expert 6 of layer 2", exact=True).is_visible()
    visitor.page.get_by_role("button", name="Pin L2 E6").click()
    visitor.settle()
    visitor.page.get_by_role("textbox", name="Jump to").fill("L0 E3")
    visitor.page.keyboard.press("Enter")
    visitor.settle()
    for name in ("Expert 3 of layer 0", "Expert 6 of layer 2"):
        assert visitor.page.get_by_role("heading", name=name, exact=True).is_visible()
    assert all(part in visitor.address() for part in ("layer=0", "expert=3", "pin=L2+E6"))
    assert visitor.save("pinned-expert_card-partners", "SVG").startswith(b"<?xml")


@pytest.mark.rest
def test_a_click_on_the_map_of_domains_chooses_the_expert_and_its_parts_follow(visitor):
    visitor.open("/specialization?layer=0")
    visitor.click_mark("domain_load-domain_map", 2.5 / 8, 0.5)
    assert "expert=2" in visitor.address()
    visitor.page.get_by_text("What each expert adds").click()
    visitor.settle()
    visitor.click_mark("contribution-by_domain", 4.5 / 8, 0.3)
    assert "expert=4" in visitor.address()
    visitor.page.locator(".st-key-open-contribution-tables").get_by_text("Tables").click()
    visitor.settle()
    assert visitor.save("contribution-experts-table", "CSV").decode().startswith("layer,expert,contribution")


@pytest.mark.rest
def test_what_is_chosen_on_one_page_holds_on_the_others(visitor):
    visitor.open("/tokens?document=d7&layer=0&token=3")
    for name in ("Load balance", "Utilization", "Models", "Tokens"):
        visitor.go(name)
        assert name == "Models" or "layer=0" in visitor.address()
    assert all(part in visitor.address() for part in ("recording=shared", "document=d7", "token=3"))
    visitor.page.go_back()
    visitor.settle()
    assert visitor.address().startswith("/?model")  # Back leads out of a page, not in circles


@pytest.mark.rest
def test_one_press_of_back_is_one_page_or_one_choice(visitor):
    """Also where a link says some of the choices of the page that it leads to, and where the visitor chose there."""
    visitor.open("/tokens?token=3&layer=0")
    before = visitor.page.evaluate("history.length")
    visitor.go("Load balance")
    visitor.go("Utilization")
    visitor.choose("Expert", "4")
    assert "expert=4" in visitor.address()
    visitor.go("Export")
    assert visitor.page.evaluate("history.length") == before + 4, "three pages and one choice"
    addresses = [visitor.address()]
    for _ in range(4):
        visitor.page.go_back()
        visitor.settle()
        addresses.append(visitor.address())
    assert [each.partition("?")[0] for each in addresses] == [
        "/export", "/utilization", "/utilization", "/load_balance", "/tokens",
    ]  # fmt: skip
    assert "expert=4" in addresses[1] and "expert=" not in addresses[2]
    assert visitor.page.get_by_role("heading", name="Tokens").is_visible()
    assert "token=3" in addresses[4] and "document=" in addresses[4], "and each says all that was chosen"
    visitor.page.go_forward()
    visitor.settle()
    assert visitor.address() == addresses[3]
    visitor.open("/tokens?token=3&layer=0")
    visitor.page.get_by_role("link", name="L2 E").click()
    visitor.settle()
    assert "/utilization" in visitor.address() and "least=" in visitor.address()
    visitor.page.go_back()
    visitor.settle()
    assert visitor.address().startswith("/tokens?")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/tokens?recording=nowhere", "there is no recording 'nowhere'"),
        ("/utilization?recording=../shared", "there is no recording '../shared'"),
        ("/tokens?layer=1", "There is no layer “1” here; there are 0, 2."),
        ("/tokens?document=none", "There is no document “none” here"),
        ("/tokens?token=9999", "There is no token “9999” here"),
        ("/utilization?expert=<b>8</b>", "There is no expert “<b>8</b>” here; there are 0 to 7"),
        ("/?model=nothing-of-the-kind", "unknown model 'nothing-of-the-kind'"),
    ],
)
@pytest.mark.rest
def test_an_address_that_names_nothing_is_a_sentence(visitor, address, sentence):
    visitor.open(address)
    visitor.page.get_by_test_id("stAlert").first.wait_for(timeout=60_000)
    assert sentence in visitor.heard()


@pytest.mark.rest
def test_a_table_is_saved_with_its_provenance(visitor):
    visitor.open("/load_balance?layer=2")
    table = visitor.save("load_balance-layers-table", "CSV").decode()
    assert table.startswith("layer,measure,value,estimate,low,high,floor")
    latex = visitor.save("load_balance-layers-table", "TEX").decode()
    assert "\\toprule" in latex and "workbench analyze" in latex
    assert visitor.page.get_by_test_id("stElementToolbarButton").get_by_label("Download as CSV").count() == 0


@pytest.mark.rest
def test_two_recordings_are_compared_and_the_address_says_which(visitor, app):
    shutil.copytree(app.data / "recordings" / "shared", app.data / "recordings" / "again")
    try:
        visitor.open("/compare?recording=shared&against=again")
        visitor.chart("differences-by_layer")
        visitor.chart("saturation-by_layer")
        assert all(part in visitor.address() for part in ("recording=shared", "against=again", "experts=auto"))
        visitor.page.get_by_label("Analysis", exact=True).click()
        visitor.page.keyboard.type("domain_load")
        visitor.page.keyboard.press("Enter")
        visitor.page.wait_for_selector(".st-key-domain_load-information-table-save", timeout=60_000)
        visitor.settle()
        assert "analysis=domain_load" in visitor.address()
        assert visitor.save("differences-by_layer", "PDF").startswith(b"%PDF")
        assert b"interval" in visitor.save("domain_load-information-table", "CSV").splitlines()[0]
    finally:
        shutil.rmtree(app.data / "recordings" / "again")


@pytest.mark.rest
def test_an_upload_that_is_no_corpus_names_the_line(visitor, tmp_path):
    file = tmp_path / "broken.jsonl"
    file.write_text('{"text": "fine"}\n{"text": \n')
    visitor.open("/record")
    visitor.page.get_by_text("Corpus", exact=True).click()
    visitor.settle()
    visitor.page.locator("input[type=file]").set_input_files(file)
    visitor.settle()
    visitor.page.get_by_role("button", name="Record").click()
    visitor.page.get_by_test_id("stAlert").first.wait_for()
    assert "line 2: not JSON" in visitor.heard()


@pytest.mark.rest
def test_a_corpus_is_cancelled_and_goes_on(visitor, app):
    visitor.open("/record")
    visitor.page.get_by_text("Corpus", exact=True).click()
    visitor.settle()
    visitor.page.get_by_text("Prove the capture first").click()
    visitor.page.get_by_role("button", name="Record").click()
    visitor.page.get_by_text("tokens/s").wait_for(timeout=60_000)
    visitor.page.get_by_role("button", name="Cancel").click()
    visitor.page.get_by_role("button", name="Go on").wait_for(timeout=60_000)
    assert "Cancelled after" in visitor.heard() and "“Go on” records the rest" in visitor.heard()
    visitor.page.get_by_role("button", name="Go on").click()
    visitor.page.wait_for_url("**/tokens?*recording=tiny-moe-demo-*", timeout=120_000)
    name = re.search("recording=([^&]+)", visitor.address())[1]
    recording = Recording.open(app.data / "recordings" / name)
    recording.verify()
    assert recording.n_documents == len(Corpus.read("demo").documents)


@pytest.mark.rest
def test_ten_visitors_record_at_once_and_each_gets_their_own(chrome, app):
    prompts = [f"Visitor {number} counts {number * 37} boats and {number * 101} bridges." for number in range(10)]
    visitors = [Visitor(chrome, app, width=900, height=700) for _ in prompts]
    for visitor, prompt in zip(visitors, prompts, strict=True):
        visitor.open("/record")
        visitor.page.get_by_label("Prompt", exact=True).fill(prompt)
    for visitor in visitors:
        visitor.page.get_by_role("button", name="Record").click()
    for visitor, prompt in zip(visitors, prompts, strict=True):  # each is sent to a recording: is it theirs?
        visitor.page.wait_for_url("**/tokens?*recording=tiny-moe-prompt-*", timeout=90_000)
        made = Recording.open(app.data / "recordings" / re.search("recording=([^&]+)", visitor.address())[1])
        text_of = made.vocabulary.set_index("token")["text"]
        assert letters("".join(text_of[made.tokens()["token"]]).replace("·", "")) == letters(prompt)
        if visitor is visitors[-1]:
            assert letters(tokens_drawn(visitor)) == letters(prompt)
        assert visitor.troubles == []
        visitor.close()


@pytest.mark.rest
def test_the_model_is_killed_and_the_app_lives_on(visitor, app):
    visitor.open("/record")
    visitor.page.get_by_text("Corpus", exact=True).click()
    visitor.settle()
    visitor.page.get_by_label("Tokens, at most").fill("60000")
    visitor.page.keyboard.press("Tab")
    visitor.settle()
    visitor.page.get_by_role("button", name="Record").click()
    visitor.page.get_by_text("tokens/s").wait_for(timeout=60_000)
    app.model_process().kill()
    visitor.page.get_by_role("button", name="Go on").wait_for(timeout=60_000)
    assert "was ended by signal 9" in visitor.heard()
    record(visitor, "And it still answers.")
    assert letters(tokens_drawn(visitor)) == "Anditstillanswers."


@pytest.mark.rest
def test_what_the_app_took_with_it_goes_on_after_it_and_is_deleted_when_asked(chrome, tmp_path, recording):
    shutil.copytree(recording.path, tmp_path / "recordings" / "shared")
    arguments = {"model": "tiny-moe", "prompt": "Begun before.", "fields": ["routing", "logprob"], "check": False}
    keep_request(tmp_path, "mine", title="tiny-moe · “Begun before.”", owner="", arguments=arguments)
    with serving(tmp_path) as app:
        visitor = Visitor(chrome, app)
        visitor.open("/record")
        assert visitor.page.get_by_text("not begun").is_visible()
        visitor.page.get_by_role("button", name="Go on").click()
        visitor.page.wait_for_url("**/tokens?*recording=mine*", timeout=90_000)
        visitor.settle()
        assert list((tmp_path / "requests").iterdir()) == []
        visitor.go("Record")
        table = visitor.page.get_by_test_id("stDataFrame").first
        table.scroll_into_view_if_needed()
        box = table.locator("canvas").first.bounding_box()
        visitor.page.mouse.click(box["x"] + 17, box["y"] + 53)  # the box of the first row, the newest
        visitor.page.get_by_role("button", name="Open mine").wait_for()
        visitor.page.get_by_role("button", name="Delete").click()
        visitor.page.get_by_role("button", name="Delete for good").click()
        visitor.page.get_by_text("mine is deleted").wait_for()
        assert [folder.name for folder in (tmp_path / "recordings").iterdir()] == ["shared"]
        assert visitor.troubles == []
        visitor.close()


def test_the_apps_process_holds_no_torch(visitor, app):
    visitor.open("/utilization")
    maps = [mapped.path for mapped in app.server().memory_maps()]
    assert any("libarrow" in path for path in maps)
    assert not any("libtorch" in path for path in maps)


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_it_answers_this_machine_only(app, host):
    port = int(app.url.rpartition(":")[2])
    assert {c.laddr.ip for c in app.server().net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
    with socket.create_connection(("127.0.0.1", port)) as connection:
        upgrade = (
            f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        connection.sendall(upgrade.encode())
        status = connection.recv(100).split()[1]
    assert (status == b"101") == (host == "127.0.0.1")


@pytest.mark.rest
def test_a_first_start_records_the_bundled_corpus_and_no_page_is_empty(chrome, tmp_path):
    with serving(tmp_path) as app:
        visitor = Visitor(chrome, app)
        visitor.open("/tokens")
        visitor.page.get_by_text("The first one is being made; this page opens by itself.").wait_for()
        visitor.page.wait_for_selector(".st-key-token_routing-strip_expert .main-svg", timeout=180_000)
        assert "recording=demo" in visitor.address()
        assert visitor.troubles == []
        visitor.close()
