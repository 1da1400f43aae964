"""Each feature of the page in Chromium, on a phone and on a desktop, in light and in dark."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

SPAM = "Win a prize now, call 09061701461 to claim your reward"


def until(page, is_so: Callable[[], bool]) -> None:
    """Wait until something is so. The page's security policy forbids Playwright's own way."""
    for _ in range(400):
        if is_so():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen within 20 seconds")


def caption(page) -> str:
    return page.text_content("#attention caption")


def write(page, text: str) -> None:
    """Type a message and wait until its tokens are shown."""
    page.fill("#message", text)
    shown = """() => [...document.querySelectorAll("#ribbon .text")].slice(0, -1)
        .map(each => each.textContent.replaceAll("·", " ")).join("")"""
    until(page, lambda: page.evaluate(shown) == text)


def test_a_message_is_answered_token_by_token(page, judge):
    write(page, SPAM)
    assert page.inner_text("#verdict strong") in ("ham", "spam")
    shown = page.inner_text("#verdict .label .p")
    last = page.inner_text("#ribbon li:last-child .p")
    assert re.fullmatch(r"(> )?\d+\.\d%", shown)
    assert abs(float(shown.strip("> %")) - float(last.split()[1].strip("%"))) <= 0.51
    # said once to a screen reader, after the typing has stopped
    label = page.inner_text("#verdict strong")
    until(page, lambda: page.text_content("#announcement") == f"{label}, {shown}")
    judge("tokens")


def test_fast_typing_shows_the_last_message(page):
    page.fill("#message", "")
    page.type("#message", SPAM, delay=15)
    write(page, SPAM)


def test_no_message(page, judge):
    page.fill("#message", "")
    page.wait_for_selector("#verdict .empty")
    assert page.locator("#ribbon li").count() == 0
    judge("empty")


def test_html_is_text(page):
    attack = "<img src=x onerror=document.title='owned'><b>hi</b>"
    write(page, attack)
    page.fill("#lines", attack)
    page.click("#classify")
    assert page.inner_text("#many td.words") == attack
    assert page.title() == "Watch GPT-2 decide" and page.locator("main img").count() == 0


def test_words(page, judge):
    write(page, SPAM)
    for method in ("leave-one-out", "integrated-gradients", "gradient-x-input"):
        with page.expect_response("**/api/importance"):
            page.select_option("#words-method", method)
            page.check("input[name=unit][value=token]")
        page.check("input[name=unit][value=word]")
        page.wait_for_selector("#words .result:not([aria-busy])")
        marks = page.inner_text("#words .marked")
        assert re.sub("[+−]", "", marks) == SPAM
    judge("words")


def test_attention(page, judge):
    write(page, SPAM)
    page.click("#tab-attention")
    page.wait_for_selector("#attention table")
    assert page.locator("#attention tbody tr").count() == 4
    page.focus("#block")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    until(page, lambda: "block 0" in caption(page))
    page.click("#ribbon li:nth-child(3) button")
    until(page, lambda: page.locator("#attention thead th").count() == 3)
    # a row of weights adds up to 100%, up to rounding
    row = page.locator("#attention tbody tr").first.locator("td").all_inner_texts()
    assert abs(sum(int(cell or 0) for cell in row) - 100) <= 2
    page.check("input[value=attended_by]")
    until(page, lambda: caption(page).startswith("What attends to"))
    page.check("input[value=change]")
    until(page, lambda: "change" in caption(page))
    assert "were not trained" in page.inner_text("#attention .result")
    page.check("input[value=pretrained]")
    page.click("#attention tbody button")
    page.wait_for_selector("#matrix table")
    judge("attention")


def test_layers(page, judge):
    write(page, SPAM)
    page.click("#tab-layers")
    page.wait_for_selector("#layers table")
    rows = page.locator("#layers tbody tr")
    assert rows.count() == 7 and "current" in (rows.nth(6).get_attribute("class") or "")
    assert page.inner_text("#verdict strong") in rows.nth(6).inner_text()
    page.focus("#layer")
    page.keyboard.press("Home")
    until(page, lambda: "layer 0" in page.inner_text("#layers h3"))
    assert page.locator("#layers .next").count() == 2
    judge("layers")


def test_parts(page, judge):
    page.click("#tab-parts")
    page.wait_for_selector("#parts table")
    assert page.locator("#parts tbody tr").count() == 6
    judge("parts")
    page.click("#parts tbody button >> nth=0")
    page.wait_for_selector("#attention:not([hidden]) table")
    assert "block 0" in page.inner_text("#attention caption")


def test_the_network(page, judge):
    write(page, "win a prize")
    page.click("#tab-network")
    page.wait_for_selector("#network svg")
    n_tokens = page.locator("#ribbon li").count()
    text = page.inner_text("#network .result")
    assert f"(1, {n_tokens}, 256)" in text and f"(1, 4, {n_tokens}, {n_tokens})" in text
    assert page.locator("#network .box.trainable[data-key='block 5']").count() == 1
    assert page.locator("#network .box.frozen[data-key='block 0']").count() == 1
    page.focus("[data-key='detail attn.c_attn']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#source pre")
    assert "class CausalSelfAttention" in page.inner_text("#source")
    page.click("#source summary")
    page.wait_for_selector("#source .chapter h4")
    assert "Attention" in page.inner_text("#source .chapter h4 >> nth=0")
    judge("network")


def test_two_runs_are_compared(page, judge):
    page.select_option("#other", "untrained")
    until(page, lambda: page.locator("#verdict .row").count() == 2)
    assert page.locator("#ribbon li >> nth=0 >> .bar").count() == 2
    judge("compare")
    page.select_option("#model", "untrained")
    until(page, lambda: page.locator("#verdict .row").count() == 1)


def test_many_messages(page, judge, tmp_path):
    texts = [SPAM, "see you at six", '=1+1 "quoted"']
    page.fill("#lines", "\n".join([*texts, "", "  "]))
    page.click("#classify")
    page.wait_for_selector("#many table")
    assert page.locator("#many tbody tr").count() == 3
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "table.csv")
    header, *rows = csv.reader(io.StringIO(Path(tmp_path / "table.csv").read_text("utf-8")))
    assert header[:2] == ["number", "label"] and rows[2][-1] == '\'=1+1 "quoted"'
    labels = page.locator("#many tbody td:nth-child(2)").all_inner_texts()
    assert [row[1] for row in rows] == [label.strip() for label in labels]
    judge("many")
    page.fill("#lines", " ")
    page.click("#classify")
    assert "Paste" in page.inner_text("#many .error")


def test_a_message_that_is_too_long_still_has_an_answer(page, judge):
    page.fill("#message", "the cat and you " * 300)
    until(page, lambda: "at most 256" in page.inner_text("#tokens-note"))
    assert page.inner_text("#verdict strong") in ("ham", "spam")
    assert page.locator("#ribbon li").count() == 0
    page.wait_for_selector("#words .empty")
    judge("long")
    write(page, SPAM)
    page.wait_for_selector("#words table")


def test_only_with_the_keyboard(page):
    """From the message: through the examples to the tokens, the tabs and their contents."""
    page.focus("#message")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if seen[-1] == "tab-words":
            break
    assert "token" in seen and seen[-1] == "tab-words"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-attention"
    page.wait_for_selector("#attention:not([hidden]) table")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_the_server_is_gone(page):
    page.route("**/api/tokens", lambda route: route.abort())
    page.fill("#message", "anything")
    page.wait_for_selector("#verdict .error")
    assert "still running" in page.inner_text("#verdict .error")
    page.unroute("**/api/tokens")
    page.fill("#message", "anything else")
    page.wait_for_selector("#verdict strong")
