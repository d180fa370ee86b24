"""The page in a real browser: a headless Chromium, driven by Playwright."""

import contextlib
import csv
import io
import os
import re
import shutil
import warnings
from datetime import datetime, timezone

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Error

from han_tf.search import create_gallery
from han_tf.serve.access import Access
from han_tf.serve.service import Example, Service
from han_tf.serve.store import Store
from tests.serve.serving import encoded, noise, on_socket, wait_for

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE, SMALL = {"width": 1280, "height": 860}, {"width": 360, "height": 780}, {"width": 320, "height": 640}


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser found ({', '.join(BROWSERS)}): the page is NOT tested; on Debian: apt install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(make_service, extractor, gallery_features, tiny_set, tmp_path_factory):
    """A service whose threshold lies between the query's nearest and its second."""
    path = tiny_set.query[0].path
    nearest, second = np.sort(np.linalg.norm(gallery_features - extractor([path]), axis=1))[:2]
    examples = [Example(path, "A person to try")]
    service = make_service(tmp_path_factory.mktemp("page"), threshold=float(nearest + second) / 2, examples=examples)
    with on_socket(service) as address:
        yield address


@pytest.fixture
def own_service(make_service, tmp_path):
    """Returns a function that starts a service for one test and returns its address; to be named before open_page."""
    with contextlib.ExitStack() as stack:

        def start(access=Access(), **options):  # noqa: B008 - frozen
            return stack.enter_context(on_socket(make_service(tmp_path, **options), access=access))

        yield start


@pytest.fixture
def query(tiny_set):
    return tiny_set.query[0].path


@pytest.fixture
def open_page(browser, address):
    """Returns a function that opens a service's page; the test fails if the page has logged an error."""
    contexts, problems = [], []

    def open_it(viewport=DESK, path="/", expected=(), at=address, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()

        def note(message):
            if message.type in ("error", "warning") and not any(part in message.text for part in expected):
                problems.append(message.text)

        page.on("console", note)
        page.on("filechooser", lambda chooser: None)  # so that a dialog is caught even before the test waits for it
        page.on("pageerror", lambda error: problems.append(str(error)))
        context.add_init_script(
            "texts = (part) => [...document.querySelectorAll('#found ' + part)].map((e) => e.textContent)"
        )
        page.goto(at + path)
        page.wait_for_selector(".card, .nothing")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


def until(page, expression):
    """Waits until ``expression`` holds. Playwright's own function needs ``eval``, which the page's policy forbids."""
    wait_for(lambda: page.evaluate(expression))


def search(page, path):
    page.set_input_files("#file", path)
    page.wait_for_selector("#verdict:not([hidden])")
    page.wait_for_selector("#found[aria-busy=false]:not(.browse) .distance")


def cards(page):
    """Rank, distance, camera and group of each card on the page, in its order."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#found .card")].map((card) => ({
          id: card.entry.id, rank: card.querySelector(".rank").textContent, far: card.classList.contains("far"),
          distance: card.querySelector(".distance dd").textContent,
          camera: card.querySelector(".camera dd").textContent,
          time: card.querySelector(".time dd").textContent, label: card.ariaLabel,
        }))"""
    )


def focused(page):
    """Which card has the focus, from 0; −1 for none."""
    return page.evaluate("[...document.querySelectorAll('#found .card')].indexOf(document.activeElement)")


def answer_of(address, path, **form):
    with open(path, "rb") as stream:
        return httpx.post(f"{address}/search", files={"image": stream}, data=form).json()


# ---------------------------------------------------------------------------------------------------- searching


def test_a_picked_image_is_ranked_as_the_service_ranks_it(open_page, address, query):
    page = open_page()
    assert page.inner_text("#facts") == "31 images, 6 cameras"
    search(page, query)
    expected = answer_of(address, query)
    shown = cards(page)
    assert [card["id"] for card in shown] == [hit["id"] for hit in expected["hits"]]
    assert [card["rank"] for card in shown] == [str(n + 1) for n in range(20)]
    assert [card["distance"] for card in shown] == [f"{hit['distance']:.3f}" for hit in expected["hits"]]
    assert [card["camera"] for card in shown] == [f"camera {hit['camid']}" for hit in expected["hits"]]
    times = [datetime.fromtimestamp(hit["time"], timezone.utc) for hit in expected["hits"]]
    assert [card["time"] for card in shown] == [f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in times]
    assert [card["far"] for card in shown] == [hit["beyond"] for hit in expected["hits"]]
    near = sum(not hit["beyond"] for hit in expected["hits"])
    found = f"{near} of 20 within the threshold {expected['threshold']:.3f}"
    assert near == 1
    assert page.inner_text("#verdict") == found
    assert page.inner_text("#announce") == f"{found}. 20 results."
    until(page, "[...document.querySelectorAll('#found img')].slice(0, 4).every((img) => img.naturalWidth)")


def test_a_stranger(open_page, query):
    page = open_page()
    page.fill("#threshold", "0.001")
    search(page, query)
    assert page.inner_text("#verdict").startswith("Not in the gallery: nearest at 0.")
    assert page.inner_text("#found h3") == "Beyond the threshold: shown, not claimed"
    assert all(card["far"] and "beyond the threshold" in card["label"] for card in cards(page))
    page.click("#found .card >> nth=0 >> .again")
    until(page, "document.querySelector('#verdict').textContent.startsWith('Nobody else found: nearest at 0.')")


def test_pasted_and_dropped_images(open_page, query):
    page = open_page()
    with open(query, "rb") as stream:
        data = list(stream.read())
    transfer = """(data) => { const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(data)], "it.jpg", {type: "image/jpeg"})); return transfer; }"""
    handle = page.evaluate_handle(transfer, data)
    page.evaluate("(transfer) => dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer}))", handle)
    page.wait_for_selector("#found .rank:not([hidden])")
    first = cards(page)
    page.go_back()
    page.wait_for_selector("#found.browse .card")
    handle = page.evaluate_handle(transfer, data)
    page.dispatch_event("body", "dragenter", {"dataTransfer": handle})
    assert page.is_visible("#drop")
    page.dispatch_event("body", "drop", {"dataTransfer": handle})
    page.wait_for_selector("#found .rank:not([hidden])")
    assert not page.is_visible("#drop")
    assert cards(page) == first


def test_an_example_and_then_a_hit_and_back(open_page, query, address):
    page = open_page()
    assert page.inner_text("#found h3") == "Queries to try"
    page.click("#found .card >> nth=0 >> .again")
    page.wait_for_selector("#found .rank:not([hidden])")
    first = cards(page)
    assert [card["id"] for card in first] == [hit["id"] for hit in answer_of(address, query)["hits"]]
    page.click("#found .card >> nth=2 >> .frame img")
    until(page, f"location.hash === '#id={first[2]['id']}'")
    until(page, "document.querySelector('#query-facts').textContent.includes('camera')")
    page.wait_for_selector("#found[aria-busy=false]")
    others = [hit["id"] for hit in httpx.post(f"{address}/search", data={"id": first[2]["id"]}).json()["hits"]]
    shown = "[...document.querySelectorAll('#found .card')].map((card) => card.entry.id)"
    until(page, f"JSON.stringify({shown}) === JSON.stringify({others})")
    assert first[2]["id"] not in others
    assert page.is_visible("#others-box")
    page.go_back()
    until(page, f"document.querySelector('#found .card')?.entry.id === {first[0]['id']}")
    page.reload()
    page.wait_for_selector("#found.browse .card")


def test_an_entry_by_its_address(open_page):
    page = open_page(path="/#id=4")
    page.wait_for_selector("#found .rank:not([hidden])")
    assert 4 not in [card["id"] for card in cards(page)]
    page = open_page(path="/#id=999", expected=["404"])
    page.wait_for_selector("#error:not(:empty)")
    assert "No entry 999" in page.inner_text("#error")


def test_filters(open_page, query):
    page = open_page()
    search(page, query)
    page.check("#cameras input[value='3']", force=True)
    until(page, "[...document.querySelectorAll('#found .camera dd')].every((x) => x.textContent === 'camera 3')")
    assert page.inner_text("#filters-on") == "1 on"
    page.fill("#k", "2")
    until(page, "document.querySelectorAll('#found .card').length === 2")
    page.fill("#after", "2031-01-01T00:00")
    page.wait_for_selector(".nothing")
    assert "No image passes the filters" in page.inner_text("#found")
    page.click("#reset")
    until(page, "document.querySelectorAll('#found .card').length === 20")
    page.fill("#after", "2026-03-02T08:50")  # UTC, whatever zone the browser is in; the last seven images
    until(page, "texts('.time dd').every((text) => text > '2026-03-02 08:50:00 UTC') && texts('.card').length === 7")
    page.click("#reset")
    until(page, "document.querySelectorAll('#found .card').length === 20")
    plain = [card["id"] for card in cards(page)]
    page.check("#rerank")
    until(page, "document.querySelector('#found h3').textContent.includes('re-ranked')")
    assert [card["id"] for card in cards(page)] != plain


def test_not_the_own_camera(open_page):
    page = open_page(path="/#id=4")
    page.wait_for_selector("#found .rank:not([hidden])")
    own = re.search(r"camera \d", page.inner_text("#query-facts"))[0]
    assert own in [card["camera"] for card in cards(page)]
    page.check("#others")
    until(page, f"texts('.camera dd').every((text) => text !== '{own}')")


# ------------------------------------------------------------------------------------------- keys and verdicts


def test_everything_by_keyboard(open_page, address, query):
    page = open_page()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "pick"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(query)
    page.wait_for_selector("#found .rank:not([hidden])")
    page.keyboard.press("j")
    assert focused(page) == 0
    for key, place in (
        ("j", 1),
        ("ArrowRight", 2),
        ("k", 1),
        ("ArrowLeft", 0),
        ("k", 0),
        ("End", 19),
        ("j", 19),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert focused(page) == place, key
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    rows = page.evaluate("[...document.querySelectorAll('#found .card')].map((e) => e.getBoundingClientRect().top)")
    page.keyboard.press("ArrowDown")
    below = focused(page)
    assert rows[below] > rows[0]
    page.keyboard.press("ArrowUp")
    assert focused(page) == 0
    shown = cards(page)
    for key in ("y", "j", "n", "j", "y", "y"):  # the last one removes the mark
        with page.expect_response("**/feedback") if key != "j" else contextlib.nullcontext():
            page.keyboard.press(key)
    assert page.inner_text("#announce") == "Mark taken back"
    verdicts = [hit["verdict"] for hit in answer_of(address, query)["hits"]][:3]
    assert verdicts == ["right", "wrong", None]
    for button in ("more", "yes"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == button
    page.keyboard.press("?")
    assert page.is_visible("dialog[open]")
    page.keyboard.press("j")  # does nothing while the list is open
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog[open]")
    page.keyboard.press("f")
    assert page.evaluate("document.activeElement.closest('form').id") == "filters"
    page.keyboard.press("Home")
    page.locator("#found .card >> nth=1").focus()
    page.keyboard.press("Enter")
    until(page, f"location.hash === '#id={shown[1]['id']}'")


def test_verdicts_are_shown_again_and_exported(open_page, address, tiny_set):
    path = tiny_set.query[5].path
    page = open_page()
    search(page, path)
    before = int(page.inner_text("#verdicts"))
    with page.expect_response("**/feedback"):
        page.click("#found .card >> nth=0 >> .no")
    until(page, f"document.querySelector('#verdicts').textContent === '{before + 1}'")
    hit = cards(page)[0]
    again = open_page()
    search(again, path)
    assert again.get_attribute("#found .card >> nth=0 >> .no", "aria-pressed") == "true"
    assert "marked wrong" in cards(again)[0]["label"]
    with again.expect_download() as download:
        again.click("#export")
    with open(download.value.path(), encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    row = [row for row in rows if row["hit"] == str(hit["id"])][-1]
    assert (row["verdict"], f"{float(row['distance']):.3f}") == ("wrong", hit["distance"])


def test_letters_say_something_of_the_result_that_has_the_focus(open_page, tiny_set):
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/feedback") else None)
    search(page, tiny_set.query[6].path)
    page.focus("#threshold")
    page.keyboard.press("y")
    page.keyboard.press("j")
    assert focused(page) == -1
    page.focus("#pick")
    page.keyboard.press("y")
    page.keyboard.press("n")
    assert sent == []
    assert not any("marked" in card["label"] for card in cards(page))
    page.keyboard.press("j")
    with page.expect_response("**/feedback"):
        page.keyboard.press("y")
    assert "marked right" in cards(page)[0]["label"]
    with page.expect_response("**/feedback"):
        page.keyboard.press("y")
    page.keyboard.press("?")
    page.uncheck("#letters")
    page.keyboard.press("Escape")
    page.focus("#found .card")
    for key in "jynalf?/":
        page.keyboard.press(key)
    assert focused(page) == 0
    assert not page.is_visible("dialog[open]")
    assert len(sent) == 2
    page.keyboard.press("ArrowRight")
    assert focused(page) == 1
    page.reload()
    page.wait_for_selector(".card")
    assert not page.evaluate("document.querySelector('#letters').checked")


# --------------------------------------------------------------------------------- while something is on its way


def held(page, pattern):
    """Holds requests back; returns a list to which they are appended."""
    routes = []
    page.route(pattern, lambda route: routes.append(route))
    return routes


def arrive(page, routes):
    """Waits for a request that is held back. Playwright reports it only during another call."""
    wait_for(lambda: page.evaluate("true") and routes)


def test_back_during_a_search(open_page, query):
    page = open_page()
    routes = held(page, "**/search")
    page.set_input_files("#file", query)
    arrive(page, routes)
    page.go_back()
    page.wait_for_selector("#found.browse[aria-busy=false] .card")
    page.unroute("**/search")
    with contextlib.suppress(Error):  # the page has cancelled it
        routes[0].continue_()
    page.wait_for_timeout(300)
    assert page.inner_text("#error") == ""
    assert page.is_visible("#found.browse .card >> nth=0")


def test_a_mark_made_while_the_next_search_runs_is_kept(open_page, address, tiny_set):
    page = open_page()
    path = tiny_set.query[7].path
    search(page, path)
    routes = held(page, "**/search")
    page.set_input_files("#file", tiny_set.query[8].path)
    arrive(page, routes)
    with page.expect_response("**/feedback") as marked:
        page.click("#found .card >> nth=1 >> .yes")
    assert marked.value.status == 200
    assert [hit["verdict"] for hit in answer_of(address, path)["hits"]][:2] == [None, "right"]
    routes[0].continue_()
    page.wait_for_selector("#found[aria-busy=false]")


def test_an_invalid_filter_during_a_search(open_page, query):
    page = open_page()
    search(page, query)
    routes = held(page, "**/search")
    page.check("#rerank")
    arrive(page, routes)
    page.fill("#k", "0")
    page.wait_for_selector("#error:not(:empty)")
    assert page.get_attribute("#found", "aria-busy") == "false"


def test_an_overview_that_fails_leaves_the_search(open_page, query):
    page = open_page(expected=["ERR_"])
    page.route("**/overview", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#error:not(:empty)")
    search(page, query)
    assert len(cards(page)) == 20
    page.unroute("**/overview")
    search(page, query)
    until(page, "document.querySelector('#facts').textContent === '31 images, 6 cameras'")


def test_enter_on_a_result_keeps_the_focus_among_results(open_page, query):
    page = open_page()
    search(page, query)
    page.keyboard.press("j")
    first = cards(page)[0]["id"]
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('#found .card').entry.id !== {first}")
    assert focused(page) == 0
    page.go_back()
    until(page, f"document.querySelector('#found .card').entry.id === {first}")
    assert focused(page) == 0


def test_what_comes_late_does_not_take_the_place_of_a_search(open_page, address, query, tiny_set):
    page = open_page(expected=["404"])

    def later(pattern):
        """Holds requests back; returns a function that releases them, and the list of requests."""
        routes = held(page, pattern)

        def come():
            arrive(page, routes)
            page.unroute(pattern)  # releases the requests
            page.wait_for_timeout(300)

        return come, routes

    def ranked():
        assert page.evaluate("document.querySelectorAll('#found .rank:not([hidden])').length") == 20

    come, _ = later("**/overview")  # while the page loads
    page.reload()
    search(page, query)
    come()
    ranked()
    for hash in ("#id=4", "#id=999"):  # while the page looks up an entry
        come, routes = later(f"**/gallery/{hash[4:]}")
        page.evaluate(f"location.hash = '{hash}'")
        arrive(page, routes)
        search(page, query)
        come()
        ranked()
        assert page.inner_text("#error") == ""
        assert "camera" not in page.inner_text("#query-facts")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("#found.browse .card")
    come, routes = later("**/examples/0/image")
    page.click("#found .card >> nth=0 >> .again")
    arrive(page, routes)
    search(page, tiny_set.query[2].path)
    come()
    ranked()
    assert page.inner_text("#query-facts") == os.path.basename(tiny_set.query[2].path)


def test_results_of_another_query_do_not_stay(open_page, query, tiny_set):
    page = open_page(expected=["ERR_"])
    search(page, query)
    page.fill("#k", "0")
    page.wait_for_selector("#error:not(:empty)")
    assert len(cards(page)) == 20  # this query's results stay
    page.focus("#found .card")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#found .card').length === 0")
    assert page.inner_text("#error").startswith("Results: ")
    assert not page.is_visible("#verdict")
    assert page.evaluate("document.activeElement.id") == "results"
    page.route("**/gallery?limit=60", lambda route: route.abort())
    page.fill("#k", "20")
    search(page, tiny_set.query[1].path)
    page.evaluate("setTimeout(() => history.go(-3))")
    until(page, "document.querySelector('#error').textContent.includes('does not answer')")
    assert cards(page) == []


def test_marks_are_sent_one_after_the_other_and_shown_wherever_the_hit_is(open_page, address, tiny_set):
    page = open_page()
    path = tiny_set.query[9].path
    search(page, path)
    before = int(page.inner_text("#verdicts"))
    routes = held(page, "**/feedback")
    page.focus("#found .card")
    page.keyboard.press("y")
    arrive(page, routes)
    page.keyboard.press("y")
    page.keyboard.press("n")
    page.wait_for_timeout(300)
    assert len(routes) == 1
    page.check("#rerank")
    until(page, "document.querySelector('#found h3').textContent.includes('re-ranked')")
    assert not any("marked" in card["label"] for card in cards(page))
    page.unroute("**/feedback")  # releases the first one
    until(page, "texts('.mark').filter((text) => text === 'wrong').length === 1")
    until(page, f"document.querySelector('#verdicts').textContent === '{before + 1}'")
    assert sorted(filter(None, (hit["verdict"] for hit in answer_of(address, path)["hits"]))) == ["wrong"]


def test_a_mark_that_is_not_kept_is_taken_back(open_page, tiny_set):
    page = open_page(expected=["ERR_", "500"])
    search(page, tiny_set.query[10].path)
    page.route("**/feedback", lambda route: route.fulfill(status=500, json={"error": "a fault"}))
    page.click("#found .card >> nth=0 >> .yes")
    page.wait_for_selector("#error:not(:empty)")
    assert page.inner_text("#error") == "A fault."
    assert not any("marked" in card["label"] for card in cards(page))


@pytest.mark.parametrize("time", [1772440000.1234567, 253_402_300_799.5, 253_402_300_800.5, -1e12, 1e12])
def test_a_correction_leaves_the_time_as_it_is(browser, make_service, tmp_path, time):
    """A field for times holds milliseconds, and no year above 9999, which galleries of earlier versions may hold."""
    service = make_service(tmp_path)
    with on_socket(service) as address:
        before = httpx.get(f"{address}/gallery/4").json()
        service.gallery._relabel(*(np.array([value]) for value in (4, before["pid"], before["camid"], time)))
        before = httpx.get(f"{address}/gallery/4").json()
        page = browser.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#found .card")
        place = page.evaluate("[...document.querySelectorAll('#found .card')].findIndex((card) => card.entry.id === 4)")
        page.click(f"#found .card >> nth={place} >> .more")
        page.fill("#entry-pid", "4711")
        with page.expect_response("**/gallery/4") as answer:
            page.keyboard.press("Enter")
        assert answer.value.status == 200
        assert httpx.get(f"{address}/gallery/4").json() == {**before, "pid": 4711}
        assert problems == []
        page.close()


def test_persons_and_cameras_beyond_what_a_number_holds_keep_their_digits(browser, make_service, tmp_path):
    service = make_service(tmp_path)
    pid, camid = 2**62 + 1, -(2**53) - 1
    service.gallery.relabel([4], pids=[pid], camids=[camid])
    with on_socket(service) as address:
        before = httpx.get(f"{address}/gallery/4").json()
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#found .card")
        place = page.evaluate("[...document.querySelectorAll('#found .card')].findIndex((card) => card.entry.id === 4)")
        card = f"#found .card >> nth={place} >> "
        assert page.inner_text(f"{card}.person dd") == f"person {pid}"
        page.click(f"{card}.more")
        assert page.input_value("#entry-pid") == str(pid)
        page.fill("#entry-time", "2026-03-02T08:50")
        with page.expect_response("**/gallery/4"):
            page.keyboard.press("Enter")
        after = httpx.get(f"{address}/gallery/4").json()
        assert after == {**before, "time": 1772441400}
        page.click(f"{card}.more")
        page.fill("#entry-pid", str(pid + 1))
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#entry-error').textContent !== ''")
        assert str(pid + 1) in page.inner_text("#entry-error")
        page.keyboard.press("Escape")
        page.goto(f"{address}/#id=3")
        page.wait_for_selector("#found .distance")
        page.check(f"#cameras input[value='{camid}']")
        until(page, "document.querySelectorAll('#found .card').length === 1")
        assert page.evaluate("document.querySelector('#found .card').entry.id") == 4
        page.close()


def test_a_year_beyond_the_calendar_is_not_sent(browser, make_service, tmp_path):
    with on_socket(make_service(tmp_path)) as address:
        before = httpx.get(f"{address}/gallery/4").json()
        page = browser.new_page()
        page.goto(f"{address}/#id=4")
        page.wait_for_selector("#found .distance")
        sent = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "PATCH" else None)
        page.fill("#before", "12026-03-02T08:50")
        until(page, "document.querySelector('#error').textContent.startsWith('Until (UTC): ')")
        page.fill("#before", "")
        page.click("#found .card >> nth=0 >> .more")
        page.wait_for_selector("#entry[open]")
        page.fill("#entry-time", "12026-03-02T08:50")
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        assert page.is_visible("#entry[open]")
        assert sent == []
        assert httpx.get(f"{address}/gallery/4").json() == before
        page.close()


def test_an_addition_that_took_too_long_is_not_sent_again(own_service, open_page, tmp_path):
    (tmp_path / "new.png").write_bytes(encoded(noise()))
    page = open_page(at=own_service(), expected=["503"])
    sent = []

    def late(route):
        sent.append(route)
        route.fulfill(status=503, json={"error": "no answer within 30 seconds"})

    page.route("**/gallery", late)
    page.click("#add")
    page.set_input_files("#adding-files", tmp_path / "new.png")
    page.click("#adding-go")
    until(page, "document.querySelector('#adding-progress').textContent === '0 of 1 added, 1 refused'")
    assert "new.png: No answer within 30 seconds" in page.inner_text("#adding-error")
    assert len(sent) == 1


def test_an_entry_is_enlarged_corrected_and_deleted(own_service, open_page):
    address = own_service()
    page = open_page(at=address)
    page.keyboard.press("j")
    id = cards(page)[0]["id"]
    before = httpx.get(f"{address}/gallery/{id}").json()
    assert page.inner_text("#found .person dd >> nth=0") == f"person {before['pid']}"
    page.keyboard.press("e")
    page.wait_for_selector("#entry[open]")
    until(page, "document.querySelector('#entry-image').naturalWidth > 0")
    page.fill("#entry-pid", "4711")
    page.fill("#entry-camid", "")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#found .person dd').textContent === 'person 4711'")
    assert httpx.get(f"{address}/gallery/{id}").json() == {**before, "pid": 4711, "camid": None}
    page.click("#found .card >> nth=0 >> .more")
    page.click("#entry-delete")
    assert page.inner_text("#entry-delete") == "Really delete?"
    assert httpx.get(f"{address}/gallery/{id}").status_code == 200
    page.click("#entry-delete")
    until(page, "!document.querySelector('#entry').open")
    assert httpx.get(f"{address}/gallery/{id}").status_code == 404
    assert id not in [card["id"] for card in cards(page)]
    assert page.inner_text("#facts").startswith("30 images")


def test_many_images_are_added_and_the_whole_gallery_is_shown(own_service, open_page, tmp_path):
    address = own_service()
    page = open_page(at=address, expected=["422"])
    paths = []
    for seed in range(35):
        paths.append(tmp_path / f"new-{seed}.png")
        paths[-1].write_bytes(encoded(noise(seed=seed)))
    (tmp_path / "half.png").write_bytes(encoded(noise())[:200])
    page.click("#add")
    page.set_input_files("#adding-files", [*paths, tmp_path / "half.png"])
    page.fill("#adding-pid", "5")
    page.fill("#adding-time", "2026-03-02T08:26:40")
    page.click("#adding-go")
    until(page, "document.querySelector('#adding-progress').textContent === '35 of 36 added, 1 refused'")
    assert "half.png: The image is damaged" in page.inner_text("#adding-error")
    until(page, "document.querySelector('#facts').textContent.startsWith('66 images')")
    page.keyboard.press("Escape")
    added = httpx.get(f"{address}/gallery?limit=200&after=30").json()["entries"]
    assert {(entry["pid"], entry["camid"], entry["time"]) for entry in added} == {(5, None, 1772440000.0)}
    page.click("text=Show all images")
    until(page, "document.querySelectorAll('#found .card').length === 60")
    page.click("text=Show more")
    until(page, "document.querySelectorAll('#found .card').length === 66")
    assert [card["id"] for card in cards(page)] == list(range(66))
    assert focused(page) == 60
    assert not page.is_visible(".following")


def test_a_token_is_asked_for_once(browser, make_service, tmp_path, query):
    access = Access("0123456789abcdef")
    with on_socket(make_service(tmp_path), access=access) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{address}/docs")
        page.wait_for_selector("#error:not(:empty)")
        assert "it needs the token" in page.inner_text("#error")
        page.goto(address)
        page.wait_for_selector("#sign-in[open]")
        page.fill("#token", "something else!!")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sign-in-error:not(:empty)")
        page.fill("#token", access.token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#found .card")
        search(page, query)
        until(page, "[...document.querySelectorAll('#found img')].slice(0, 4).every((img) => img.naturalWidth)")
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert access.token not in cookie["value"]
        page.reload()
        page.wait_for_selector("#found .card")
        assert not page.is_visible("#sign-in")
        context.close()


def test_a_page_that_is_read_only_has_no_buttons_for_verdicts(own_service, open_page, query):
    page = open_page(at=own_service(access=Access(read_only=True)))
    search(page, query)
    assert not page.is_visible("#found .yes >> nth=0")
    assert page.is_visible("#found .again >> nth=0")


# --------------------------------------------------------------------------------------------------- attention


def test_attention_over_query_and_hits(open_page, query):
    page = open_page()
    search(page, query)
    assert page.locator("#kinds label").all_inner_texts() == ["Off", "Heat", "Regions", "Both"]
    plain = page.get_attribute("#query-image", "src")
    page.keyboard.press("a")
    until(page, "document.querySelector('#found img').src.endsWith('attention?kind=soft&level=3')")
    until(page, "document.querySelector('#found img').naturalWidth === 96")
    until(page, f"document.querySelector('#query-image').src !== '{plain}'")
    until(page, "document.querySelector('#query-image').naturalWidth === 96")
    assert "Heat" in page.inner_text("#legend")
    assert "lower legs" not in page.inner_text("#legend")
    page.check("#kinds input[value=both]", force=True)
    page.select_option("#level", "2")
    until(page, "document.querySelector('#found img').src.endsWith('attention?kind=both&level=2')")
    assert "lower legs" in page.inner_text("#legend")
    page.focus("#found .card")
    page.keyboard.press("l")
    assert page.input_value("#level") == "3"
    page.keyboard.press("a")
    until(page, "document.querySelector('#found img').src.endsWith('/image')")
    assert not page.is_visible("#legend")


def test_without_a_run_there_is_no_choice(own_service, open_page):
    page = open_page(at=own_service(attention=None))
    page.keyboard.press("a")
    assert not page.is_visible("#attention")


# ------------------------------------------------------------------------------------------------------- errors


def test_errors_are_said_in_words(open_page, tmp_path, query):
    page = open_page(expected=["415", "422"])
    for name, data, said in (
        ("text.jpg", b"no image", "Not an image that can be read"),
        ("half.png", encoded(noise())[:300], "damaged or truncated"),
        ("note.txt", b"hello", "is not an image"),
        ("large.bmp", b"BM" + b"\0" * (9 * 2**20), "at most 8.0"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        page.set_input_files("#file", path)
        until(page, f"document.querySelector('#error').textContent.includes('{said}')")
        assert page.get_attribute("#error", "role") == "alert"
    search(page, query)
    assert page.inner_text("#error") == ""
    page.fill("#k", "0")
    page.wait_for_selector("#error:not(:empty)")
    assert page.inner_text("#error").startswith("Results: ")


def test_a_service_that_is_gone_or_busy(open_page, query):
    page = open_page(expected=["ERR_", "503"])
    busy = []

    def answer(route):
        busy.append(route)
        if len(busy) == 1:
            route.fulfill(status=503, headers={"Retry-After": "0.1"}, json={"error": "too much at once"})
        else:
            route.continue_()

    page.route("**/search", answer)
    search(page, query)  # the page repeats the request
    assert len(busy) == 2
    page.unroute("**/search")
    page.route("**/search", lambda route: route.abort())
    page.set_input_files("#file", query)
    page.wait_for_selector("#error:not(:empty)")
    assert "does not answer" in page.inner_text("#error")


def test_an_empty_gallery(browser, extractor, tmp_path):
    gallery = create_gallery(tmp_path / "index", extractor.feature_dim, extractor.checksum)
    with on_socket(Service(gallery, extractor, Store(tmp_path / "state"))) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(".nothing")
        assert "The gallery is empty" in page.inner_text("#found")
        page.close()


# ----------------------------------------------------------------------------------------- looks and accessibility

AUDIT = """() => {
  const problems = [];
  const labels = (e) => [...(e.labels || [])].map((label) => label.textContent).join();
  const named = (e) => e.ariaLabel || e.textContent || e.title || e.alt || labels(e);
  const shown = (e) => e.checkVisibility() && e.getBoundingClientRect().width > 1;
  const all = (selector) => [...document.querySelectorAll(selector)];
  for (const e of all("button, a[href], input, select, [role=group][tabindex], summary"))
    if (shown(e) && !named(e).trim()) problems.push(`no name: ${e.outerHTML.slice(0, 90)}`);
  for (const e of all("img")) if (!e.hasAttribute("alt")) problems.push(`no alt: ${e.src}`);
  const ids = all("[id]").map((e) => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`twice: ${id}`);
  for (const part of ["header", "main", "nav", "h1"]) if (!document.querySelector(part)) problems.push(`no ${part}`);
  if (!document.documentElement.lang) problems.push("no language");

  const parse = (colour) => {
    const [r, g, b, a] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a ?? 1];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const contrast = (a, b) => {
    const [bright, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (bright + 0.05) / (dark + 0.05);
  };
  for (const e of all("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || !shown(e) || e.closest("[disabled], noscript") || e.matches("option")) continue;
    const back = ground(e);
    const ratio = contrast(over(parse(getComputedStyle(e).color), back), back);
    if (ratio < 4.5) problems.push(`contrast ${ratio.toFixed(2)}: ${e.tagName} ${e.className} ${e.textContent.trim()}`);
  }
  return problems;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE, SMALL], ids=["desk", "phone", "small"])
def test_names_contrast_and_width(open_page, query, scheme, viewport, tiny_set):
    page = open_page(viewport, color_scheme=scheme)
    assert page.evaluate(AUDIT) == []
    search(page, tiny_set.query[3].path)
    page.keyboard.press("j")
    for key in ("y", "j", "n"):
        page.keyboard.press(key)
    page.evaluate("document.querySelector('#filters-box').open = true")
    page.check("#kinds input[value=both]", force=True)
    assert page.evaluate(AUDIT) == []
    width = page.evaluate(
        "Math.max(...[...document.querySelectorAll('body *')].map((e) => e.getBoundingClientRect().right))"
    )
    assert width <= viewport["width"]
    if viewport != DESK:  # large enough for a thumb
        sizes = page.evaluate(
            "[...document.querySelectorAll('.actions button')].map((b) => Math.min(b.offsetWidth, b.offsetHeight))"
        )
        assert min(sizes) >= 44
    page.keyboard.press("?")
    assert page.evaluate(AUDIT) == []
    assert Image.open(io.BytesIO(page.screenshot())).size == (viewport["width"], viewport["height"])


@pytest.mark.parametrize("viewport", [PHONE, SMALL], ids=["phone", "small"])
def test_long_names_stay_on_the_page(own_service, open_page, viewport):
    name = "camera-corridor-4_2026-03-02T08-26-40.125_0123456789_" * 3 + ".png"
    address = own_service()
    form = {"pid": 2**53 - 1, "camid": 2**53 - 1, "time": 253_402_300_799.5, "name": name}
    added = httpx.post(f"{address}/gallery", files={"image": encoded(noise())}, data=form).json()["id"]
    for path in ("/", f"/#id={added}", "/#id=3"):
        page = open_page(viewport, path, at=address)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
    page = open_page(viewport, at=address)
    ids = [card["id"] for card in cards(page)]
    page.click(f"#found .card >> nth={ids.index(added)} >> .more")
    until(page, "document.querySelector('#entry').open")
    box = page.locator("#entry").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= viewport["width"]
    assert page.evaluate("((e) => e.scrollWidth - e.clientWidth)(document.querySelector('#entry'))") <= 0


def test_the_audit_finds_what_is_wrong(open_page):
    page = open_page()
    page.evaluate(
        """() => {
          const [button, text, image] = ["button", "p", "img"].map((tag) => document.createElement(tag));
          Object.assign(button.style, { width: "40px", height: "40px" });
          text.textContent = "pale";
          text.style.color = "rgb(160 160 160 / 0.9)";
          text.id = "facts";
          document.querySelector("main").append(button, text, image);
        }"""
    )
    found = page.evaluate(AUDIT)
    assert [problem.split(":")[0].split(" ")[:2] for problem in found] == [
        ["no", "name"],
        ["no", "alt"],
        ["twice"],
        ["twice"],
        ["contrast", found[-1].split(" ")[1].rstrip(":")],
    ]


def test_the_reference_of_the_interface(open_page, browser, address):
    page = browser.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{address}/docs")
    page.wait_for_selector(".reference details")
    paths = page.locator(".reference summary code").all_inner_texts()
    described = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert sorted(paths) == sorted(path for path, methods in described.items() for _ in methods)
    page.click("summary:has-text('/search')")
    assert "most hits" in page.inner_text(".reference")
    shown = page.locator(".reference pre code").all_text_contents()
    assert {line.split(" -F ")[1] for line in shown if " -F " in line} == {"image=@person.jpg", "images=@person.jpg"}
    assert [" -F images=" in line for line in shown if "/gallery/batch" in line] == [True]
    assert page.evaluate(AUDIT) == []
    page.close()
    assert problems == []
