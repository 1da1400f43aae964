"""A served run and a real browser: `make test-browser` runs these tests, `make test` does not.

They need the extra `browser` and Debian's package chromium, or another Chromium whose path is in the
environment variable CHROMIUM. If SCREENSHOTS names a folder, every test leaves its pictures there.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2_from_scratch.web.models import load_models
from gpt2_from_scratch.web.server import listen, make_server

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
SIZES = {"phone": (360, 740), "desktop": (1280, 900)}


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with two classifiers on the miniature: a trained one, and one that was not trained."""
    from gpt2_from_scratch.classifier.classifier import Classifier
    from gpt2_from_scratch.classifier.settings import TrainConfig
    from gpt2_from_scratch.data.messages import DataConfig
    from gpt2_from_scratch.runs.recipes import train_classifier

    folder = tmp_path_factory.mktemp("runs")
    training = TrainConfig(epochs=1)
    train_classifier(data=DataConfig("hard"), training=training, run=folder / "trained")
    Classifier.on_base("mini", ["ham", "spam"]).save(folder / "untrained" / "best.safetensors")
    listener = listen("127.0.0.1", 0)
    server = make_server(load_models([folder / "trained", folder / "untrained"]))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(timeout=30)
    listener.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=["phone-light", "phone-dark", "desktop-light", "desktop-dark"])
def page(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    """The page when it has answered its first message; an error in it fails the test."""
    size, scheme = request.param.split("-")
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce" if size == "phone" else "no-preference",
        accept_downloads=True,
    )
    context.set_default_timeout(20_000)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Chromium logs an error of the API too; a page that breaks its own security policy logs another
    expected = "Failed to load resource"
    page.on(
        "console",
        lambda m: errors.append(m.text) if m.type == "error" and expected not in m.text else None,
    )
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(url)
    page.wait_for_selector("#words .result table")
    yield page
    assert not errors
    assert all(address.startswith((url, "blob:")) for address in addresses)
    context.close()


@pytest.fixture
def judge(request: pytest.FixtureRequest, page: Any) -> Callable[[str], None]:
    """Check the page as it is now: no accessibility violation, nothing wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    def check(name: str) -> None:
        page.wait_for_timeout(300)  # transitions
        if folder := os.environ.get("SCREENSHOTS"):
            file = f"{name}-{request.node.callspec.params['page']}.png"
            page.screenshot(path=Path(folder) / file, full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{wide} pixels are outside the screen"
        found = Axe().run(page)
        assert not found.violations_count, found.generate_report()

    return check
