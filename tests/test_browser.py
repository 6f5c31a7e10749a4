"""The live head in a real browser, and through clients that others wrote; every server is a process of its own.

`make test` watches for seconds, `make test-browser` for half a minute. Figures and pictures of the page are left in
.cache/browser.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pytest
from browsing import (
    CLIENTS,
    HERE,
    PATIENCE,
    SHOWN,
    LiveHead,
    Program,
    needs,
    open_chromium,
    open_firefox,
    probe,
    write_wav,
)
from PIL import Image
from reverse_proxy import ReverseProxy

from engine.portrait import load_portrait
from engine.speech import read_voice
from plugin.render import BUNDLED_VOICE

WATCH_SECONDS = float(os.environ.get("IFMDM_WATCH_SECONDS", "5"))
MEASURE = (HERE / "measure.js").read_text()
TOKEN = "a-token-that-nobody-guesses"
VIDEO = "<video id=video autoplay playsinline muted></video>"


@pytest.fixture(scope="module")
def voice(tmp_path_factory) -> Path:
    """The bundled voice as the sound of the browser's microphone."""
    read = read_voice(BUNDLED_VOICE)
    return write_wav(tmp_path_factory.mktemp("voice") / "voice.wav", read.samples, read.rate)


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium(voice, request):
    needs("chromium")
    opened = open_chromium(request.getfixturevalue("playwright"), voice)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def firefox(request):
    needs("firefox")
    opened = open_firefox(request.getfixturevalue("playwright"))
    yield opened
    opened.close()


#: By its hash, a style that Playwright puts into a page for a moment to take a picture of it in Firefox: the page's
#: policy forbids it, rightly, and Firefox says so.
OF_A_PICTURE = base64.b64encode(hashlib.sha256(b"body {}").digest()).decode()


class Page:
    """A page that is measured. problems: what its console complained of; hosts: whom it asked."""

    def __init__(self, browser, **context) -> None:
        self.context = browser.new_context(**context)
        self.context.add_init_script(MEASURE)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda said: said.type == "error" and self.problems.append(said.text))
        self.page.on("pageerror", lambda error: OF_A_PICTURE in str(error) or self.problems.append(str(error)))
        self.page.on("request", lambda asked: self.hosts.add("/".join(asked.url.removeprefix("blob:").split("/")[:3])))

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def shows(self, video: str = "video") -> None:
        """Wait until the video plays."""
        self.page.wait_for_function(
            "id => { const v = document.getElementById(id); return v.videoWidth > 0 && v.currentTime > 0.5 }", arg=video
        )

    def play(self, seconds: float = WATCH_SECONDS) -> dict:
        return self.page.evaluate("s => measure.play(document.querySelector('video'), s)", seconds)

    def until(self, what: Callable[[], object]) -> None:
        """Wait for what the page does to be seen by the test."""
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, "it never happened"
            self.page.wait_for_timeout(50)

    @contextlib.contextmanager
    def holding(self, address: str | re.Pattern) -> Iterator[list]:
        """The requests to an address, which wait until the block is left."""
        held: list = []
        self.page.route(address, lambda route: held.append(route))
        yield held
        for route in held:
            route.continue_()
        self.page.unroute(address)

    def asked(self, part: str) -> list:
        """The requests from now on to addresses that have this in them."""
        found: list = []
        self.page.on("request", lambda request: part in request.url and found.append(request))
        return found

    def picture(self, name: str) -> None:
        SHOWN.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOWN / f"{name}.png")


def keep(name: str, figures: dict) -> None:
    SHOWN.mkdir(parents=True, exist_ok=True)
    (SHOWN / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def check_stream(figures: dict) -> None:
    """Floors that a stream falls below when it is broken, and not when the machine is busy."""
    assert figures["size"] == [512, 512]
    assert figures["decoded_fps"] > 2, figures
    assert figures["presented_fps"] > 2, figures
    assert figures["freezes_seconds"] < 0.5 * figures["seconds"], figures
    assert figures["voice_energy"] > 0, figures
    assert figures["concealed"] < 0.5, figures


def test_a_person_watches_and_is_heard(chromium, tmp_path):
    """The page: it plays, it is spoken to through a microphone, and at the end its server says goodbye."""
    needs("ffprobe")
    with LiveHead(tmp_path / "head", "--record", "out.mp4") as head, Page(chromium) as viewer:
        viewer.page.goto(head.address)
        viewer.shows()
        figures = viewer.play()
        keep("page", figures)
        viewer.picture("page")
        check_stream(figures)
        assert head.get("/state")["viewers"] == 1
        assert viewer.page.inner_text("#fps").endswith("fps")

        # OBS's view, and a phone's
        with Page(chromium, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as phone:
            phone.page.goto(head.address)
            phone.shows()
            phone.page.wait_for_selector("#fps:text('fps')")
            phone.picture("phone")
            assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            phone.page.goto(f"{head.address}/?view=clean")
            phone.shows()
            phone.picture("clean")
            assert phone.page.locator("#speak").is_hidden()
            assert not phone.problems and phone.hosts == {head.address}
        head.wait_until(lambda told: told["viewers"] == 1)

        viewer.context.grant_permissions(["microphone"], origin=head.address)
        viewer.page.click("#speak")
        head.wait_until(lambda told: told["speakers"] == 1 and told["guest"])
        viewer.page.wait_for_selector("#state:text('You are speaking')")
        viewer.picture("speaking")
        viewer.page.click("#hush")
        viewer.page.click("#speak")
        head.wait_until(lambda told: told["speakers"] == 0 and not told["guest"])

        viewer.page.click('[data-name="bo"]')
        head.wait_until(lambda told: told["portrait"] == "bo")
        viewer.page.wait_for_timeout(1000)
        viewer.picture("bo")
        assert not viewer.problems
        assert viewer.hosts == {head.address}
        assert head.terminate() < 10
        viewer.page.wait_for_selector("#state:text('Reconnecting')")
        viewer.page.wait_for_function("() => getComputedStyle(document.getElementById('video')).opacity === '0'")
        lost = Image.open(io.BytesIO(viewer.page.locator("#frame").screenshot()))
        assert np.asarray(lost.convert("L")).mean() > 50  # the portrait: Chromium shows black where a stream was
    said = head.said()
    assert "Traceback" not in said, said
    recording = probe(tmp_path / "head" / "out.mp4")
    picture, sound = recording["video"], recording["audio"]
    assert (picture["avg_frame_rate"], picture["width"], picture["height"]) == ("45/1", 512, 512)
    assert int(picture["nb_read_frames"]) == pytest.approx(45 * float(picture["duration"]), abs=1)
    assert float(picture["start_time"]) == pytest.approx(float(sound["start_time"]), abs=0.045)
    assert float(picture["duration"]) == pytest.approx(float(sound["duration"]), abs=0.1)


def test_firefox_plays_speaks_and_is_heard(firefox, head, tmp_path, assets):
    """Debian's Firefox as it comes: mDNS names for addresses, the voice within the bundle of the picture only."""
    before = head.get("/state")["portrait"]
    with Page(firefox) as viewer:
        page = viewer.page
        page.goto(head.address)
        viewer.shows()
        figures = viewer.play()
        keep("firefox", figures)
        viewer.picture("firefox")
        check_stream(figures)
        assert figures["codec"] == ["video/VP8", "audio/opus"]
        head.wait_until(lambda told: told["viewers"] == 1)
        page.wait_for_selector("#fps:text('fps')")

        page.click("#speak")  # its microphone is a tone
        head.wait_until(lambda told: told["speakers"] == 1 and told["guest"])
        page.wait_for_selector("#speak-label:text('Stop')")
        # without a sound device Firefox gives a page no level of the microphone, by which it tells these apart
        page.wait_for_selector("#state:text-matches('^(You are speaking|Listening to you)$')")
        viewer.picture("firefox-speaking")
        page.click("#speak")
        head.wait_until(lambda told: told["speakers"] == 0 and not told["guest"])

        page.set_input_files("#recording", tone(tmp_path / "tone.wav", 20))
        page.wait_for_selector("#state:text('Speaking your file')")
        head.wait_until(lambda told: told["guest"])
        viewer.picture("firefox-file")
        page.click("#hush")
        page.wait_for_selector("#tell:text('Speak a file')")
        head.wait_until(lambda told: not told["guest"] and told["resting"])
        page.click("#again")
        head.wait_until(lambda told: told["speaking"])

        other = next(name for name in ("bo", "chidi") if name != before)
        page.click(f'[data-name="{other}"]')
        page.wait_for_selector(f'[data-name="{other}"][aria-checked=true][aria-busy=false]')
        assert head.get("/state")["portrait"] == other
        page.fill("#intensity", "1.5")
        head.wait_until(lambda told: told["intensity"] == 1.5)
        page.fill("#intensity", "1")
        head.wait_until(lambda told: told["intensity"] == 1)
        page.set_input_files("#file", assets / "portraits" / "dalia.jpg")
        page.check("#consent")
        page.click("#upload-use")
        page.wait_for_selector('[data-name="uploaded"][aria-checked=true]')
        viewer.picture("firefox-uploaded")
        assert not viewer.problems
        assert viewer.hosts == {head.address}
    head.wait_until(lambda told: told["viewers"] == 0)
    assert "Traceback" not in head.said()


SIZES = [(320, 568), (360, 640), (375, 667), (480, 320), (568, 320), (600, 400), (667, 375), (800, 600), (812, 375),
         (899, 500), (900, 500), (1024, 768), (1280, 720), (768, 1024), (2560, 1440)]  # fmt: skip


def test_every_control_is_within_the_window(chromium, head):
    """Those out at an edge, as far as the page cannot be scrolled to."""
    out = """() => [...document.querySelectorAll("main button, main input, main summary, video")].filter((each) => {
        const { left, right, width } = each.getBoundingClientRect();
        return width && (left < 0 || right > innerWidth);
    }).map((each) => each.id || each.tagName)"""
    with Page(chromium) as viewer:
        page = viewer.page
        page.goto(head.address)
        viewer.shows()
        page.wait_for_selector(".face.add")
        page.click("summary")
        for label in ("Speak", "Allow the microphone"):
            page.evaluate("label => { document.getElementById('speak-label').textContent = label; }", label)
            for width, height in SIZES:
                page.set_viewport_size({"width": width, "height": height})
                where = (label, width, height)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
                assert page.evaluate(out) == [], where
                assert page.evaluate("document.querySelector('video').getBoundingClientRect().width >= 200"), where
                if label == "Speak":
                    viewer.picture(f"size-{width}x{height}")


def test_a_peer_says_goodbye_only_when_its_session_has_ended(chromium, head):
    """A request takes longer than a datagram: the server must not have forgotten what it is asked to end."""

    def late(route):
        if route.request.method == "DELETE":
            time.sleep(0.5)
        route.continue_()

    with Page(chromium) as viewer:
        viewer.context.grant_permissions(["microphone"], origin=head.address)
        viewer.page.route("**/whip/*", late)
        viewer.page.goto(head.address)
        viewer.shows()
        viewer.page.click("#speak")
        head.wait_until(lambda told: told["speakers"] == 1)
        with viewer.page.expect_response(lambda answer: answer.request.method == "DELETE") as ended:
            viewer.page.click("#speak")
        assert ended.value.ok
        head.wait_until(lambda told: told["speakers"] == 0)
        assert not viewer.problems


MEET = """async ([url, parts]) => {
    const peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    for (const [kind, direction, codec] of parts) {
        if (kind === "data") { peer.createDataChannel("any"); continue; }
        const transceiver = peer.addTransceiver(kind, { direction });
        const known = RTCRtpReceiver.getCapabilities(kind).codecs;
        if (codec) transceiver.setCodecPreferences(known.filter((each) => each.mimeType.endsWith(codec)));
    }
    await peer.setLocalDescription();
    await new Promise((done) => setTimeout(done, 300));
    const body = peer.localDescription.sdp, headers = { "Content-Type": "application/sdp" };
    const response = await fetch(url, { method: "POST", headers, body });
    const answer = await response.text();
    if (!response.ok) throw Error(answer);
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
    while (peer.connectionState !== "connected") {
        if (peer.connectionState === "failed") throw Error(`it failed: ${answer}`);
        await new Promise((done) => setTimeout(done, 50));
    }
    const directions = peer.getTransceivers().map((each) => each.currentDirection);
    await fetch(new URL(response.headers.get("Location"), url), { method: "DELETE" });
    peer.close();
    return directions;
}"""


@pytest.mark.parametrize("name", ["chromium", "firefox"])
def test_a_browser_connects_though_parts_are_refused(request, head, name):
    """Also the part that leads the bundle, whose transport is that of all."""
    data, watch = ["data"], [["video", "recvonly"], ["audio", "recvonly"]]
    cases = [
        ("/whip", [["video", "sendonly", "AV1"], ["audio", "sendonly"]], ["sendonly"]),
        ("/whip", [["audio", "sendonly", "PCMU"]], ["sendonly"]),
        ("/whep", [data, *watch], ["recvonly", "recvonly"]),
        ("/whep", [["audio", "recvonly", "G722"], ["video", "recvonly"]], ["recvonly"]),
        ("/whep", [*watch, ["video", "recvonly"]], ["recvonly", "recvonly"]),
    ]
    with Page(request.getfixturevalue(name)) as viewer:
        viewer.page.goto(f"{head.address}/?view=clean")
        for path, parts, expected in cases:
            met = viewer.page.evaluate(MEET, [head.address + path, parts])
            # what is refused is stopped or gone, and inactive in Firefox
            assert [each for each in met if each not in ("stopped", "inactive", None)] == expected, (path, parts, met)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head that says a word every other moment, for tests that leave it as it was but for its portrait."""
    folder = tmp_path_factory.mktemp("head")
    read = read_voice(BUNDLED_VOICE)
    write_wav(folder / "word.wav", read.samples[: 2 * read.rate], read.rate)
    with LiveHead(folder, config='[voice]\nfile = "word.wav"\npause = 2.5\n') as running:
        yield running


def test_the_picture_that_is_sent_is_the_one_that_was_agreed_to(chromium, head, tmp_path, assets):
    """Pictures are read in the order that the test lets them be read in; a dialog is about the latest alone."""
    gate = """(() => {
        const read = createImageBitmap, waiting = [];
        window.createImageBitmap = async (file) => {
            await new Promise((done) => waiting.push(done));
            return read(file);
        };
        window.readPicture = (index) => waiting[index]();
    })()"""
    sent = re.compile(r"/portrait\?")
    first = assets / "portraits" / "bo.jpg"
    second, third = tmp_path / "second.png", tmp_path / "third.webp"
    for path in (second, third):
        Image.open(first).save(path)
    with Page(chromium) as viewer:
        page = viewer.page
        viewer.context.add_init_script(gate)
        page.goto(head.address)
        page.wait_for_selector(".face.add")

        def choose(path: Path) -> None:
            page.set_input_files("#file", path)
            page.check("#consent")

        choose(first)
        page.evaluate("readPicture(0)")
        page.wait_for_selector("#upload-use:enabled")
        shown = page.get_attribute("#preview", "src")
        page.click("#upload-cancel")
        choose(second)
        assert page.is_disabled("#upload-use")
        page.click("#upload-cancel")
        choose(third)
        page.evaluate("readPicture(2)")
        page.wait_for_selector("#upload-use:enabled")
        page.evaluate("readPicture(1)")  # late
        page.wait_for_timeout(300)
        with page.expect_request(sent) as asked:
            page.click("#upload-use")
        assert asked.value.headers["content-type"] == "image/webp"
        page.wait_for_selector("#upload", state="hidden")
        assert head.get("/state")["portrait"] == "uploaded"
        assert page.get_attribute('[data-name="uploaded"]', "aria-checked") == "true"

        # cancelled on its way: the answer is not about what is shown by then
        with page.expect_response(sent) as answered, viewer.holding(sent) as held:
            choose(first)
            page.evaluate("readPicture(3)")
            page.click("#upload-use")
            viewer.until(lambda: held)
            page.click("#upload-cancel")
            choose(second)
            page.evaluate("readPicture(4)")
            page.wait_for_selector("#upload-use:enabled")
        assert answered.value.ok
        page.wait_for_timeout(300)
        assert page.is_visible("#preview") and page.is_enabled("#upload-use")
        assert not viewer.problems
        # another is chosen at once, before the page is told that the dialog closed
        page.evaluate("""() => {
            const put = new DataTransfer(), input = document.getElementById("file");
            put.items.add(new File(["no picture"], "other.png", { type: "image/png" }));
            document.getElementById("upload-cancel").click();
            input.files = put.files;
            input.dispatchEvent(new Event("change"));
        }""")
        page.evaluate("readPicture(5)")
        page.wait_for_selector("#upload-error:not(:empty)")
        # the preview of the first is forgotten
        load = """url => new Promise((done) => {
            const image = new Image();
            [image.onload, image.onerror] = [() => done(true), () => done(false)];
            image.src = url;
        })"""
        assert not page.evaluate(load, shown)


def test_what_is_no_picture_of_a_face_is_told_in_a_line(chromium, head, tmp_path):
    """By the browser for what it cannot read, and shows nothing of it; by the server for the rest."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
    (tmp_path / "drawn.svg").write_text(svg)
    (tmp_path / "words.jpg").write_text("no picture")
    Image.new("RGB", (600, 600), "grey").save(tmp_path / "grey.png")
    with Page(chromium) as viewer:
        page = viewer.page
        page.goto(head.address)
        page.wait_for_selector(".face.add")
        for name in ("drawn.svg", "words.jpg"):
            page.set_input_files("#file", tmp_path / name)
            line = "This file cannot be used. Choose a JPEG, PNG or WebP picture."
            page.wait_for_selector(f"#upload-error:text-is('{line}')")
            viewer.picture("no-picture")
            assert page.is_hidden("#preview") and page.is_disabled("#upload-use")
            page.click("#upload-cancel")
        page.set_input_files("#file", tmp_path / "grey.png")
        page.check("#consent")
        page.click("#upload-use")
        page.wait_for_selector("#upload-error:text-matches('^[A-Z].*[.]$')")
        assert page.is_visible("#preview")
        viewer.picture("no-face")


def test_ones_own_picture_can_be_chosen_again(chromium, tmp_path, assets):
    """After others and after the page was opened anew; what `run` was begun with, too."""
    (tmp_path / "mine.jpg").write_bytes((assets / "portraits" / "dalia.jpg").read_bytes())
    flags = ("--source", "none", "--portrait", str(tmp_path / "mine.jpg"), "--consent")
    with LiveHead(tmp_path / "head", *flags) as head, Page(chromium) as viewer, Page(chromium) as other:
        page = viewer.page
        page.goto(head.address)
        page.wait_for_selector('[data-name="own"][aria-checked=true]')
        other.page.goto(head.address)
        other.page.wait_for_selector('[data-name="own"][aria-checked=true]')
        page.set_input_files("#file", assets / "portraits" / "chidi.jpg")
        page.check("#consent")
        page.click("#upload-use")
        page.wait_for_selector('[data-name="uploaded"][aria-checked=true]')
        page.wait_for_selector("#upload", state="hidden")
        other.page.wait_for_selector('[data-name="uploaded"][aria-checked=true]')  # it is told to others, too
        page.click('[data-name="bo"]')
        head.wait_until(lambda told: told["portrait"] == "bo")
        page.reload()
        for name in ("uploaded", "own"):
            page.click(f'[data-name="{name}"]')
            page.wait_for_selector(f'[data-name="{name}"][aria-checked=true]')
            assert head.get("/state")["portrait"] == name
        page.wait_for_function("() => [...document.querySelectorAll('.face img')].every((each) => each.naturalWidth)")
        page.wait_for_timeout(500)
        viewer.picture("own")
        assert not viewer.problems and not other.problems


@pytest.mark.parametrize("path", ["/state", "/whip"])
def test_speaking_can_be_called_off_while_it_connects(chromium, head, path):
    with Page(chromium) as viewer:
        viewer.context.grant_permissions(["microphone"], origin=head.address)
        viewer.page.goto(head.address)
        viewer.shows()
        asked = viewer.asked("/whip")
        with viewer.holding(head.address + path) as held:
            viewer.page.click("#speak")
            viewer.page.wait_for_selector("#speak-label:text('Connecting')")
            viewer.page.wait_for_timeout(500)
            assert held
            viewer.page.click("#speak")
        viewer.page.wait_for_timeout(2500)  # longer than candidates are gathered
        assert viewer.page.inner_text("#speak-label") == "Speak"
        assert viewer.page.inner_text("#note") == ""
        assert viewer.page.evaluate("measure.open()") == 1  # what it watches
        assert [each.method for each in asked] == ([] if path == "/state" else ["POST", "DELETE"])
        assert head.get("/state")["speakers"] == 0
        assert not viewer.problems


def test_the_second_who_speaks_is_told_that_nobody_hears_it_yet(chromium, head):
    wait = "Somebody else is speaking; you are heard when they stop."
    with Page(chromium) as first, Page(chromium) as second:
        for each in (first, second):
            each.context.grant_permissions(["microphone"], origin=head.address)
            each.page.goto(head.address)
            each.shows()
            each.page.click("#speak")
            head.wait_until(lambda told: told["guest"])
            each.page.wait_for_selector("#speak-label:text('Stop')")
        second.page.wait_for_selector(f"#note:text-is('{wait}')")
        second.page.wait_for_selector("#state:text-is('Somebody else is speaking')")
        second.picture("unheard")
        first.page.wait_for_timeout(1500)
        assert first.page.inner_text("#state") in ("You are speaking", "Listening to you")
        assert first.page.inner_text("#note").startswith("The head says what you say.")
        first.page.click("#speak")
        second.page.wait_for_selector("#note:text('The head says what you say.')")
        second.page.wait_for_selector("#state:text('You are speaking')")
        second.page.click("#speak")
        head.wait_until(lambda told: told["speakers"] == 0 and not told["guest"])
        assert not first.problems and not second.problems


def test_a_page_says_why_it_shows_nothing(chromium, tmp_path):
    """That there is no place for it, and asks again; that its session has ended, and asks no more."""
    config = "[webrtc]\nviewers = 1\n[server]\nsessions = 1\n"
    with LiveHead(tmp_path / "head", config=config) as head, Page(chromium) as viewer, Page(chromium) as late:
        made = viewer.context.request.post(f"{head.address}/sessions")
        session = urljoin(made.url, made.headers["location"])
        viewer.page.goto(f"{session}/")
        viewer.shows()
        with late.page.expect_response("**/whep") as refused:
            late.page.goto(f"{session}/")
        why = refused.value.text().strip()
        assert refused.value.status == 503 and why
        late.page.wait_for_selector(f"#state:text-is('{why[0].upper()}{why[1:]}')")
        late.picture("full")

        assert viewer.context.request.delete(session).ok
        for each in (viewer, late):
            each.page.wait_for_selector("#state:text('it was ended')")
        viewer.page.wait_for_timeout(1000)
        viewer.picture("ended")
        asked = [viewer.asked("/"), late.asked("/")]
        assert viewer.page.locator(".side button:enabled, .side input:enabled").count() == 0
        viewer.page.keyboard.press("Escape")
        viewer.page.wait_for_timeout(2000)
        assert asked == [[], []]


def test_keys_act_only_where_they_are_meant(chromium, head):
    with Page(chromium, viewport={"width": 390, "height": 500}) as viewer:
        page = viewer.page
        page.goto(head.address)
        viewer.shows()
        interrupts = viewer.asked("/interrupt")
        muted = lambda: page.evaluate("document.querySelector('video').muted")  # noqa: E731
        before = muted()
        page.keyboard.press("m")
        assert muted() == before
        page.keyboard.press("Space")
        page.wait_for_function("() => scrollY > 0")
        page.focus("#intensity")
        page.keyboard.press("Escape")
        page.keyboard.press("m")
        page.wait_for_timeout(300)
        assert muted() == before and not interrupts

        page.click("video")
        page.keyboard.press("m")
        assert muted() != before
        page.focus("#sound")
        page.keyboard.press("m")
        assert muted() == before
        with page.expect_response("**/interrupt") as answered:
            page.keyboard.press("Escape")
        assert answered.value.ok
        page.keyboard.press("f")
        page.wait_for_function("() => document.fullscreenElement?.id === 'frame'")
        assert viewer.context.request.post(f"{head.address}/play").ok  # as it was


def test_the_voice_rests_after_an_interrupt_until_it_is_asked_for(chromium, head):
    with Page(chromium) as viewer:
        page = viewer.page
        page.goto(head.address)
        page.wait_for_selector("#state:text('Speaking')")
        assert page.is_hidden("#again")
        page.click("#hush")
        page.wait_for_selector("#again:visible")
        viewer.picture("resting")
        for _ in range(5):  # longer than its pause
            assert not head.get("/state")["speaking"]
            page.wait_for_timeout(700)
        page.click("#again")
        page.wait_for_selector("#state:text('Speaking')")
        page.wait_for_selector("#again", state="hidden")
        assert not viewer.problems


class Sent:
    """What a page sends over its WebSockets, and is told: bytes of sound, and messages."""

    def __init__(self, page) -> None:
        self.sound, self.messages, self.open = b"", [], 0
        page.on("websocket", self._keep)

    def _keep(self, socket) -> None:
        self.open += 1
        socket.on("framesent", self._take)
        socket.on("framereceived", self._take)
        socket.on("close", lambda _: self._leave())

    def _take(self, frame) -> None:
        if isinstance(frame, bytes):
            self.sound += frame
        else:
            self.messages.append(json.loads(frame))

    def _leave(self) -> None:
        self.open -= 1

    def last(self, kind: str) -> dict:
        return next(message for message in reversed(self.messages) if message["type"] == kind)


def tone(path: Path, seconds: float, channels: tuple[float, ...] = ()) -> Path:
    """channels: what each is multiplied with, of several."""
    sound = 0.3 * np.sin(np.arange(int(22_050 * seconds)) * 2 * np.pi * 200 / 22_050)
    return write_wav(path, sound[:, None] * channels if channels else sound, 22_050)


def test_a_file_is_spoken_as_it_is(chromium, head, tmp_path):
    """Chosen, and dropped onto the picture; from its first sample to its last, at the rate that the head hears."""
    with Page(chromium) as viewer:
        page, sent = viewer.page, Sent(viewer.page)
        page.goto(head.address)
        viewer.shows()
        page.set_input_files("#recording", tone(tmp_path / "tone.wav", 6))
        page.wait_for_selector("#state:text('Speaking your file')")
        assert head.get("/state")["guest"]
        page.wait_for_function("() => document.getElementById('spoken').value > 0.3")
        assert page.inner_text("#tell") == "Stop the file"
        assert re.fullmatch(r"0:0\d of 0:06", page.inner_text("#spoken-time"))
        viewer.picture("file")
        page.wait_for_selector("#tell:text('Speak a file')")
        assert sent.last("played")["seconds"] == pytest.approx(6, abs=0.05)
        samples = np.frombuffer(sent.sound, "<i2")
        assert len(samples) == pytest.approx(6 * 16_000, abs=160)
        power = np.abs(np.fft.rfft(samples[16_000:32_000]))
        assert power.argmax() == 200 and np.abs(samples).max() == pytest.approx(0.3 * 32767, rel=0.05)
        head.wait_until(lambda told: not told["guest"])
        assert page.is_hidden("#telling") and page.inner_text("#note") == ""

        page.evaluate("""data => {
            const put = new DataTransfer(), frame = document.getElementById("frame");
            put.items.add(new File([Uint8Array.from(data)], "tone.wav", { type: "audio/wav" }));
            for (const type of ["dragover", "drop"]) {
                const event = new DragEvent(type, { dataTransfer: put, cancelable: true, bubbles: true });
                if (frame.dispatchEvent(event)) throw Error("the browser would open it");
            }
        }""", list(tone(tmp_path / "short.wav", 1, (1, -1)).read_bytes()))
        page.wait_for_selector("#state:text('Speaking your file')")
        page.wait_for_selector("#tell:text('Speak a file')")
        viewer.until(lambda: sent.open == 0)
        assert sent.last("played")["seconds"] == pytest.approx(1, abs=0.05)
        # one channel is the other upside down, and both are sent
        left, right = np.frombuffer(sent.sound[len(samples.tobytes()) :], "<i2").reshape(-1, 2).T.astype(int)
        assert len(left) == pytest.approx(16_000, abs=160) and np.abs(left + right).max() <= 1
        assert np.abs(left).max() == pytest.approx(0.3 * 32767, rel=0.05)
        assert not viewer.problems


@pytest.mark.parametrize("end", ["#hush", "#tell", "somebody else"])
def test_a_file_can_be_stopped(chromium, head, tmp_path, end):
    """It is sent little ahead, so that nothing of it comes after; an interrupt quiets what it spoke over, too."""
    with Page(chromium) as viewer:
        page, sent = viewer.page, Sent(viewer.page)
        page.goto(head.address)
        viewer.shows()
        page.set_input_files("#recording", tone(tmp_path / "tone.wav", 40))
        page.wait_for_selector("#state:text('Speaking your file')")
        if end == "somebody else":
            assert viewer.context.request.post(f"{head.address}/interrupt").ok
        else:
            page.click(end)
        page.wait_for_selector("#tell:text('Speak a file')")
        viewer.until(lambda: sent.open == 0)
        head.wait_until(lambda told: not told["guest"] and told["resting"] == (end == "#hush"))
        assert len(sent.sound) < 2 * 16_000 * 20
        if end == "#hush":
            page.wait_for_timeout(1000)
            assert not head.get("/state")["speaking"]
            page.click("#again")
        head.wait_until(lambda told: told["speaking"])
        assert page.inner_text("#note") == "" and not viewer.problems


def test_a_file_that_cannot_be_spoken_is_told_in_a_line(chromium, head, tmp_path):
    (tmp_path / "words.wav").write_text("no sound")
    (tmp_path / "empty.mp3").write_bytes(b"")
    write_wav(tmp_path / "silence.wav", np.zeros(8000), 16_000)
    nothing = "Nothing was heard: the file is silent, or somebody else was speaking."
    with Page(chromium) as viewer, Page(chromium) as other:
        page = viewer.page
        page.goto(head.address)
        viewer.shows()
        for name in ("words.wav", "empty.mp3"):
            page.set_input_files("#recording", tmp_path / name)
            line = f"{name} has no sound that the browser can read. Try a WAV, MP3 or M4A file."
            page.wait_for_selector(f"#note:text-is('{line}')")
            viewer.picture("no-sound")
        page.set_input_files("#recording", tmp_path / "silence.wav")
        page.wait_for_selector(f"#note:text-is('{nothing}')")
        other.page.goto(head.address)
        other.page.set_input_files("#recording", tone(tmp_path / "tone.wav", 40))
        other.page.wait_for_selector("#state:text('Speaking your file')")
        page.set_input_files("#recording", tone(tmp_path / "tone.wav", 1))
        page.wait_for_selector("#note:text-is('Somebody else is speaking. Try again when they have stopped.')")
        other.page.click("#speak")  # one voice at a time
        other.page.wait_for_selector("#note:text('one voice at a time')")
        other.page.click("#tell")
        head.wait_until(lambda told: not told["guest"])
        assert not viewer.problems and not other.problems


def test_a_page_that_a_proxy_shows_below_a_path_does_everything(chromium, tmp_path):
    """With a token; the page of a session, too."""
    config = f'[server]\ntoken = "{TOKEN}"\nsessions = 1\n[video]\nsize = 128\nfps = 25\n'
    with (
        LiveHead(tmp_path / "head", "--source", "none", config=config) as head,
        ReverseProxy(head.address) as proxy,
        Page(chromium) as viewer,
    ):
        page, sent, heads = viewer.page, Sent(viewer.page), {"headers": {"Authorization": f"Bearer {TOKEN}"}}
        made = viewer.context.request.post(f"{proxy.address}/sessions", **heads)
        session = urljoin(made.url, made.headers["location"])
        for place in (proxy.address, session):
            page.goto(f"{place}/#token={TOKEN}")
            viewer.shows()
            page.wait_for_selector('[data-name="ada"][aria-checked=true]')
            assert page.evaluate("[...document.querySelectorAll('#faces img')].every((image) => image.naturalWidth)")
            page.set_input_files("#recording", tone(tmp_path / "tone.wav", 1))
            viewer.until(lambda: any(message["type"] == "played" for message in sent.messages))
            assert sent.last("played")["seconds"] == pytest.approx(1, abs=0.05)
            sent.messages.clear()
            with page.expect_response(f"{place}/style") as answered:
                page.fill("#intensity", "1.5")
            assert answered.value.ok
        page.goto("about:blank")  # the session at the proxy is asked to end
        viewer.until(lambda: any(each.startswith("/avatar/sessions/") and "/whep/" in each for each in proxy.asked))
        assert not viewer.problems
        assert viewer.hosts == {proxy.address.removesuffix("/avatar"), *[h for h in viewer.hosts if "about" in h]}
        assert all(each.startswith("/avatar/") for each in proxy.asked)
        assert TOKEN not in head.said()


def test_a_screen_reader_hears_only_what_is_new(chromium, head):
    """What is put into live regions is what it reads out, over whoever speaks."""
    listen = """() => {
        window.read = [];
        const changed = (records) => {
            for (const { target } of records) {
                const element = target.closest ? target : target.parentNode;
                const region = element.closest("[role=status], [role=alert], output");
                if (region?.textContent) read.push(region.textContent);
            }
        };
        new MutationObserver(changed).observe(document.body, { subtree: true, childList: true, characterData: true });
    }"""
    guest = """() => {
        window.guest = new WebSocket(location.origin.replace("http", "ws") + "/speak?rate=16000");
        guest.onopen = () => guest.send(new Int16Array(16000).map((_, i) => 3000 * Math.sin(i / 8)));
    }"""
    with Page(chromium) as viewer:
        page = viewer.page
        page.goto(head.address)
        viewer.shows()
        page.wait_for_selector("#state:text('Speaking')")
        page.evaluate(listen)
        page.wait_for_selector("#state:text('Idle')")
        page.wait_for_selector("#state:text('Speaking')")
        assert page.evaluate("read") == []
        page.evaluate(guest)
        page.wait_for_selector("#state:text('A guest is speaking')")
        page.evaluate("guest.close()")
        page.wait_for_selector("#state:text-matches('^(Idle|Speaking)$')")
        assert page.evaluate("read") == ["A guest is speaking"]


def test_one_portrait_is_asked_for_at_a_time_and_the_last_wish_counts(chromium, head):
    """With the keyboard too; and the group of portraits holds nothing else."""
    with Page(chromium) as viewer:
        page = viewer.page
        page.goto(head.address)
        group = page.get_by_role("radiogroup", name="Portrait")
        group.get_by_role("radio").first.wait_for()
        assert group.get_by_role("radio").count() == group.locator("> *").count()
        assert page.get_by_role("button", name="Use your own picture").is_visible()
        before = head.get("/state")["portrait"]
        one, other, last = [name for name in ("bo", "chidi", "dalia", "ada") if name != before][:3]
        asked = viewer.asked("/portrait")
        with viewer.holding(f"{head.address}/portrait") as held:
            for name in (one, other, last):
                page.focus(f'[data-name="{name}"]')
                page.keyboard.press("Enter")
            viewer.until(lambda: held)
            page.wait_for_timeout(300)
            assert len(held) == 1
            busy = page.locator("#faces [aria-busy=true]").all()
            assert {each.get_attribute("data-name") for each in busy} == {one, last}
        page.wait_for_selector(f'[data-name="{last}"][aria-checked=true][aria-busy=false]')
        assert [json.loads(each.post_data)["name"] for each in asked if each.method == "POST"] == [one, last]
        assert head.get("/state")["portrait"] == last
        # what is wished for and then not
        with viewer.holding(f"{head.address}/portrait") as held:
            for name in (one, other, one):
                page.click(f'[data-name="{name}"]')
            viewer.until(lambda: held)
        page.wait_for_selector(f'[data-name="{one}"][aria-checked=true][aria-busy=false]')
        page.wait_for_timeout(300)
        assert len(asked) == 3 and head.get("/state")["portrait"] == one
        assert not viewer.problems


def test_an_address_keeps_its_view_in_an_older_browser(chromium, head):
    with Page(chromium) as viewer:
        viewer.context.add_init_script("delete URLSearchParams.prototype.size")  # Chromium has it since 113
        viewer.page.goto(f"{head.address}/?view=clean&token=any")
        assert viewer.page.evaluate("location.search") == "?view=clean"


def test_the_mouth_follows_the_microphone(chromium, tmp_path, assets):
    points = load_portrait(assets / "portraits" / "ada.jpg").keypoints
    left, right = points[3], points[4]
    (x, y), width = (left + right) / 2, 1.3 * abs(right[0] - left[0])
    mouth = {"left": x - width / 2, "top": y - 0.3 * width, "width": width, "height": 0.7 * width}
    mouth = {name: float(value) for name, value in mouth.items()}
    with LiveHead(tmp_path / "head", "--source", "none") as head, Page(chromium) as viewer:
        viewer.context.grant_permissions(["microphone"], origin=head.address)
        viewer.page.goto(head.address)
        viewer.shows()
        # as still as the head can be, but for the lips
        viewer.page.fill("#intensity", "0")
        head.wait_until(lambda told: told["intensity"] == 0)
        viewer.page.wait_for_timeout(3000)
        measure = "([box, s]) => measure.motion(document.querySelector('video'), box, s)"
        seconds = min(WATCH_SECONDS, 10) / 2
        silent = viewer.page.evaluate(measure, [mouth, seconds])
        viewer.page.click("#speak")
        head.wait_until(lambda told: told["guest"])
        viewer.page.wait_for_timeout(1000)
        spoken = viewer.page.evaluate(measure, [mouth, seconds])
        viewer.picture("mouth")
        keep("mouth", {"silent": silent, "spoken": spoken, "latency": head.get("/state")["latency_seconds"]})
        assert spoken > 1.3 * silent > 0
        # the browser goes without a word; whoever was heard has left all the same
        viewer.context.close()
        head.wait_until(lambda told: told["speakers"] == 0 and told["viewers"] == 0 and not told["guest"])


def test_lips_and_voice_meet_at_the_viewer(chromium):
    """A flash and a click of the same moment, as the browser shows and plays them."""
    needs("clients")
    with Program([sys.executable, HERE / "pattern.py"], stdin=-1) as head, Page(chromium) as viewer:
        address = "http://" + head.wait_for(r"open (\S+)")[1]
        serve_clients(viewer, address)
        viewer.page.evaluate(VIEW, [f"{address}/whep", ""])
        viewer.shows()
        # a browser plays both as they come, and moves them together when it has been told their times: by and by
        settle = "async () => { const offset = await measure.lips(); return offset !== null && Math.abs(offset) < 45; }"
        viewer.page.wait_for_function(settle)
        figures = viewer.page.evaluate("s => measure.flashes(video, video.srcObject, s)", max(4.5, WATCH_SECONDS))
        keep("lips", figures | {"stats": viewer.play(1.0)})
        assert len(figures["offsets"]) >= 3, figures
        # people notice 45 ms; a picture is seen up to 22 ms after its voice, and a busy machine is later still
        assert abs(figures["lip_ms"]) < 80, figures


# --- clients that others wrote


VIEW = """async ([url, token]) => {
    const { WHEPClient } = await import("/clients/whip-whep/whep.js");
    const peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    const stream = new MediaStream();
    peer.addTransceiver("audio", { direction: "recvonly" });
    peer.addTransceiver("video", { direction: "recvonly" });
    peer.ontrack = ({ track }) => { stream.addTrack(track); video.srcObject = stream; };
    window.whep = new WHEPClient();
    await window.whep.view(peer, url, token);
    return String(window.whep.resourceURL);
}"""

PUBLISH = """async ([url, token]) => {
    const { WHIPClient } = await import("/clients/whip-whep/whip.js");
    const peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    for (const track of stream.getTracks()) peer.addTransceiver(track, { direction: "sendonly" });
    window.whip = new WHIPClient();
    await window.whip.publish(peer, url, token);
    return String(window.whip.resourceURL);
}"""

INGEST = """async ([url, token]) => {
    const { WHIPClient } = await import("/clients/@eyevinn/whip-web-client/dist/whip-client.modern.js");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    window.ingest = new WHIPClient({ endpoint: url, opts: { authkey: token, iceServers: [] } });
    await window.ingest.ingest(stream);
    return String(await window.ingest.getResourceUrl());
}"""


#: Packages as their own documents import them, and what they export: they are written for bundlers.
BARE = {
    "events": ("events/events.js", ["EventEmitter"]),
    "sdp-transform": ("sdp-transform/lib/index.js", ["parse", "write"]),
}


def as_module(path: Path) -> str:
    """A CommonJS file as what a browser can import, unchanged inside."""
    code = path.read_text()
    wanted = sorted(set(re.findall(r"require\('(\./\w+)'\)", code)))
    imports = "".join(f"import _{i} from '{name}.js';" for i, name in enumerate(wanted))
    known = ", ".join(f"'{name}': _{i}" for i, name in enumerate(wanted))
    around = f"const module = {{ exports: {{}} }}, exports = module.exports, require = (name) => ({{ {known} }})[name];"
    return f"{imports}\n{around}\n{code}\nexport default module.exports;"


def serve_clients(viewer: Page, origin: str) -> None:
    """Open a page under `origin` that can import others' clients; nothing but the test answers for these addresses."""

    def give(route) -> None:
        name = route.request.url.split("/clients/")[1]
        if name in BARE:
            file, exported = BARE[name]
            body = f"import all from '/clients/{file}'; export const {{ {', '.join(exported)} }} = all;"
        else:
            path = CLIENTS / name
            body = path.read_text() if name.startswith(("whip-whep/", "@eyevinn/")) else as_module(path)
        route.fulfill(body=body, content_type="text/javascript")

    imports = json.dumps({"imports": {name: f"/clients/{name}" for name in BARE}})
    page = f'<!doctype html><title>viewer</title><script type="importmap">{imports}</script>{VIDEO}'
    viewer.page.route(f"{origin}/clients/**", give)
    viewer.page.route(f"{origin}/viewer.html", lambda route: route.fulfill(body=page, content_type="text/html"))
    viewer.page.goto(f"{origin}/viewer.html")


def test_clients_that_others_wrote(chromium, tmp_path):
    """whip-whep views and publishes, whip-web-client publishes; from a page of another origin, with a token."""
    needs("clients")
    mine, others = "http://viewer.localhost:9", "http://stranger.localhost:9"
    config = f'[server]\ntoken = "{TOKEN}"\norigins = ["{mine}"]\n'
    with LiveHead(tmp_path / "head", "--source", "none", config=config) as head, Page(chromium) as viewer:
        state = {"Authorization": f"Bearer {TOKEN}"}
        told = lambda: viewer.context.request.get(f"{head.address}/state", headers=state).json()  # noqa: E731

        def until(what) -> None:
            for _ in range(int(PATIENCE / 0.1)):
                if what(told()):
                    return
                viewer.page.wait_for_timeout(100)
            raise AssertionError(told())

        # to ask a server of this machine is what a browser asks its user about
        viewer.context.grant_permissions(["microphone", "local-network-access"], origin=mine)
        viewer.context.grant_permissions(["local-network-access"], origin=others)
        serve_clients(viewer, mine)
        session = viewer.page.evaluate(VIEW, [f"{head.address}/whep", TOKEN])
        assert session.startswith(f"{head.address}/whep/")
        viewer.shows()
        figures = viewer.play(2.0)
        assert figures["decoded_fps"] > 2, figures
        for publish, stop in (
            (PUBLISH, "window.whip.stop()"),
            (INGEST, "window.ingest.destroy()"),
        ):
            session = viewer.page.evaluate(publish, [f"{head.address}/whip", TOKEN])
            assert session.startswith(f"{head.address}/whip/")
            until(lambda state: state["guest"] and state["speakers"] == 1)
            viewer.page.evaluate(stop)
            until(lambda state: not state["guest"] and state["speakers"] == 0)
        viewer.page.evaluate("window.whep.stop()")
        until(lambda state: state["viewers"] == 0)

        with pytest.raises(Exception, match="Request rejected with status 401"):
            viewer.page.evaluate(VIEW, [f"{head.address}/whep", "wrong"])
        serve_clients(viewer, others)
        with pytest.raises(Exception, match="Failed to fetch"):
            viewer.page.evaluate(VIEW, [f"{head.address}/whep", TOKEN])
        assert told()["viewers"] == 0
    assert TOKEN not in head.said()
