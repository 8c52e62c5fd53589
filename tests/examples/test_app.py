"""The page: answers are the model's own and streamed, what cannot be done is said, and files of the server stay there."""

import re
import shutil
import struct
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import tiny_models
from tiny_models import assistant, user


gradio = pytest.importorskip("gradio")

import app  # noqa: E402
import gradio_client  # noqa: E402


ARABIC, CHINESE, ENGLISH = "ماذا في الصورة؟", "图中是什么？", "What is in the picture?"


@pytest.fixture(scope="module")
def built(tiny):
    return tiny()


@pytest.fixture
def answerer(built):
    return app.Answerer(*built, max_new_tokens=8)


def answer(built, *messages) -> str:
    """The greedy answer of at most 8 tokens to a conversation."""
    model, processor = built
    inputs = tiny_models.encode(processor, list(messages))
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def dictate(monkeypatch, built, *answers: str, wait: float = 0.0) -> list[int]:
    """Makes the model give these answers, a token each `wait` seconds. Returns a list that grows with each token."""
    model, processor = built
    generate, remaining, steps = model.generate, iter(answers), []

    def generate_answer(**inputs):
        tokens = [*processor.tokenizer(next(remaining))["input_ids"], processor.tokenizer.eos_token_id]
        begin = inputs["input_ids"].shape[1]

        def force(input_ids, scores):
            time.sleep(wait)
            steps.append(tokens[input_ids.shape[1] - begin])
            scores[:] = -float("inf")
            scores[:, steps[-1]] = 0
            return scores

        return generate(**inputs, logits_processor=[force])

    monkeypatch.setattr(model, "generate", generate_answer)
    return steps


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("question", [ARABIC, CHINESE, ENGLISH])
def test_streamed_pieces_grow_to_what_generate_gives(built, answerer, question):
    conversation = app.Conversation(tiny_models.picture())
    pieces = list(answerer.stream(conversation, f" {question}\n"))
    expected = answer(built, user(question, tiny_models.picture()))
    assert all(later.startswith(earlier) for earlier, later in zip(pieces, pieces[1:], strict=False))
    assert pieces[-1] == expected
    assert conversation.messages == [user(question, conversation.image), assistant(expected.strip())]


def test_an_answer_comes_in_several_pieces(monkeypatch, built, answerer):
    dictate(monkeypatch, built, "um gato e 一只猫")
    answerer.max_new_tokens = 40
    assert len(set(answerer.stream(app.Conversation(tiny_models.picture()), ENGLISH))) > 3


def test_a_second_question_continues_and_the_router_used_the_first(built, answerer):
    conversation = app.Conversation(tiny_models.picture())
    list(answerer.stream(conversation, ARABIC))
    *_, second = answerer.stream(conversation, CHINESE)
    assert second == answer(built, *conversation.messages[:3])
    assert len(conversation.messages) == 4
    first_note, second_note = conversation.notes
    assert bars(first_note) == bars(second_note)
    assert "question that came with the image" in second_note and "came with" not in first_note


@pytest.mark.parametrize(
    ("image", "question", "message"),
    [
        (False, ENGLISH, "image first"), (True, " \n", "write a question"), (True, "a" * 2001, "2,001 characters"),
        (True, "ق" * 1000, "too long for the model"), (True, "what is <image> there", "cannot take this question"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_and_the_conversation_stays(answerer, image, question, message):
    conversation = app.Conversation(tiny_models.picture() if image else None)
    with pytest.raises(app.AppError, match=message):
        list(answerer.stream(conversation, question))
    assert conversation.messages == [] and conversation.notes == []


def test_an_answer_nobody_waits_for_is_not_written_to_its_end(monkeypatch, built, answerer):
    steps = dictate(monkeypatch, built, "cat " * 100, wait=0.01)
    answerer.max_new_tokens = 200
    conversation, threads = app.Conversation(tiny_models.picture()), threading.active_count()
    stream = answerer.stream(conversation, ENGLISH)
    next(stream)
    stream.close()  # as gradio does when the visitor goes
    assert threading.active_count() == threads
    assert len(steps) < 100 and conversation.messages == []


def test_an_answer_is_left_when_the_conversation_begins_anew(monkeypatch, built, answerer):
    steps = dictate(monkeypatch, built, "cat " * 100, "um gato", wait=0.01)
    answerer.max_new_tokens = 200
    conversation = app.Conversation(tiny_models.picture())
    stream = answerer.stream(conversation, ENGLISH)
    next(stream)
    conversation.begin(tiny_models.picture(1))
    assert list(stream) == [] and len(steps) < 100
    assert conversation.messages == [] and conversation.notes == []
    assert list(answerer.stream(conversation, CHINESE))[-1] == "um gato"
    assert conversation.messages[0] == user(CHINESE, tiny_models.picture(1))


# ---------------------------------------------------------------------- the router's chart


def bars(note: str) -> list[tuple[int, int]]:
    """(width, percentage) of each bar."""
    return [(int(width), int(percent)) for width, percent in re.findall(r"width: (\d+)px'></i> (\d+)%", note)]


def test_one_bar_per_expert_and_the_percentages_sum_to_100(built, answerer):
    conversation = app.Conversation(tiny_models.picture())
    list(answerer.stream(conversation, ARABIC))
    shown = bars(conversation.notes[0])
    assert len(shown) == built[0].config.num_language_experts
    assert sum(percent for _, percent in shown) == pytest.approx(100, abs=len(shown) / 2)
    assert all(width == percent for width, percent in shown)


def test_routing_by_the_whole_prompt_is_not_said_to_be_by_the_first_question(tiny):
    answerer = app.Answerer(*tiny(routing_scope="prompt"), max_new_tokens=4)
    conversation = app.Conversation(tiny_models.picture())
    for question in (ENGLISH, CHINESE):
        list(answerer.stream(conversation, question))
    assert bars(conversation.notes[1]) and "came with the image" not in conversation.notes[1]


def test_a_model_without_experts_has_no_chart(tiny):
    answerer = app.Answerer(*tiny(num_language_experts=0), max_new_tokens=4)
    conversation = app.Conversation(tiny_models.picture())
    list(answerer.stream(conversation, ENGLISH))
    assert "Language:" in conversation.notes[0] and "expert" not in conversation.notes[0]


def test_the_note_holds_no_markup_but_its_own(monkeypatch, built, answerer):
    bad = "<img src=x onerror=alert(1)>"
    dictate(monkeypatch, built, bad)
    monkeypatch.setattr(app, "language_of", lambda *_: bad)
    conversation = app.Conversation(tiny_models.picture())
    list(answerer.stream(conversation, bad))
    assert "<img" not in conversation.notes[0] and "&lt;img" in conversation.notes[0]


# ---------------------------------------------------------------------- uploads


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of one row of black pixels, whatever it says its size is."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(3 * width + 1)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def bad_upload(kind: str) -> bytes:
    contents = {
        "text": b"not an image",
        "empty": b"",
        "truncated": png(50, 50)[:-30],
        "short header": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"123"),
        "huge comment": png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
        "bomb": png(60_000, 60_000),
        "large": png(8_000, 6_000),  # too small for Pillow's own limit
        "other decoder": b"P6 1 1 255\nabc",  # a PPM image
    }
    return contents[kind]


CANNOT_READ, TOO_LARGE = "cannot be read as an image", "at most 40 megapixels"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", CANNOT_READ), ("empty", CANNOT_READ), ("truncated", CANNOT_READ), ("short header", CANNOT_READ),
        ("huge comment", CANNOT_READ), ("other decoder", CANNOT_READ), ("bomb", TOO_LARGE), ("large", TOO_LARGE),
    ],
)  # fmt: skip
def test_bad_uploads_are_refused(tmp_path, kind, message):
    file = tmp_path / "picture.png"
    file.write_bytes(bad_upload(kind))
    assert file.stat().st_size < 1_000_000
    with pytest.raises(app.AppError, match=message):
        app.open_upload(str(file))


def test_photos_are_turned_upright(tmp_path):
    photo = tiny_models.picture(size=(40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was held sideways
    photo.convert("L").save(tmp_path / "photo.jpg", exif=exif)
    opened = app.open_upload(str(tmp_path / "photo.jpg"))
    assert opened.size == (20, 40) and opened.mode == "RGB"


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "bmp"])
def test_the_promised_types_are_read(tmp_path, kind):
    tiny_models.picture().save(tmp_path / f"picture.{kind}")
    opened = app.open_upload(str(tmp_path / f"picture.{kind}"))
    assert opened.mode == "RGB" and opened.size == (40, 30)


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of images to choose from, the second of which is damaged, and a file that is none of them."""
    folder = tmp_path_factory.mktemp("app") / "pictures"
    folder.mkdir()
    tiny_models.picture(1).save(folder / "a.png")
    (folder / "b.png").write_bytes(bad_upload("truncated"))
    tiny_models.picture(2).save(folder.parent / "secret.png")
    return folder


@pytest.fixture(scope="module")
def served(built, pictures):
    """What the program hands to `launch`, and the page it serves."""
    patch, launch, served = pytest.MonkeyPatch(), gradio.Blocks.launch, SimpleNamespace()

    def keep(page, **options):
        served.page, served.options = page, options
        launch(page, **{**options, "server_port": None}, prevent_thread_lock=True, quiet=True)

    model, processor = built
    loaded = SimpleNamespace(model=model, processor=processor)
    patch.setattr(app, "Asker", SimpleNamespace(from_pretrained=lambda *_, **__: loaded))
    patch.setattr(gradio.Blocks, "launch", keep)
    patch.setattr("sys.argv", ["app.py", "--model", "some/tiny", "--images", str(pictures), "--max-new-tokens", "60"])
    app.main()
    patch.undo()
    served.url = served.page.local_url
    yield served
    served.page.close(verbose=False)


@pytest.fixture
def visitor(served):
    return gradio_client.Client(served.url, verbose=False)


def texts(chat: list[dict]) -> list[str]:
    return [message["content"][0]["text"] for message in chat]


def upload(visitor, file: Path):
    return visitor.predict(gradio_client.handle_file(str(file)), api_name="/upload")


def test_only_this_machine_is_served(served):
    assert served.options["server_name"] == "127.0.0.1" and served.url.startswith("http://127.0.0.1:")
    assert not served.options.get("share")


def test_visitors_have_conversations_of_their_own(monkeypatch, built, served, visitor, pictures):
    dictate(monkeypatch, built, "um gato", "一只猫", "قطة")
    upload(visitor, pictures / "a.png")
    assert texts(visitor.predict(ARABIC, api_name="/ask")[1]) == [ARABIC, "um gato"]
    other = gradio_client.Client(served.url, verbose=False)
    upload(other, pictures / "a.png")
    assert texts(other.predict(CHINESE, api_name="/ask")[1]) == [CHINESE, "一只猫"]
    _, chat, notes = visitor.predict(ENGLISH, api_name="/ask")
    assert texts(chat) == [ARABIC, "um gato", ENGLISH, "قطة"]
    assert notes.count("class='router'") == 2
    assert visitor.predict(api_name="/restart")[1:] == ([], "")


def test_the_page_streams(monkeypatch, built, visitor, pictures):
    dictate(monkeypatch, built, "a cat and a dog", wait=0.05)
    upload(visitor, pictures / "a.png")
    fields, chats, _ = zip(*visitor.submit(ENGLISH, api_name="/ask"), strict=True)
    answers = [texts(chat)[1] for chat in chats]
    assert answers[-1] == "a cat and a dog"
    assert len(set(answers)) > 3
    assert fields[0] == "" and "" not in fields[1:]  # the next question may be typed meanwhile


def test_a_new_conversation_while_an_answer_is_written_stays_empty(monkeypatch, built, visitor, pictures):
    steps = dictate(monkeypatch, built, "cat " * 50, wait=0.05)
    upload(visitor, pictures / "a.png")
    asked = visitor.submit(ENGLISH, api_name="/ask")
    while len(steps) < 5:
        time.sleep(0.01)
    assert visitor.predict(api_name="/restart")[1:] == ([], "")
    assert asked.result(timeout=60)[1:] == ([], "")
    assert len(steps) < 50


def test_a_question_that_cannot_be_answered_stays_in_its_field(visitor):
    assert visitor.predict(ENGLISH, api_name="/ask") == (ENGLISH, [], "")  # no image yet


@pytest.mark.parametrize("after", [0, 3])
def test_a_failing_model_is_told_and_the_next_question_works(monkeypatch, built, visitor, pictures, after):
    steps = dictate(monkeypatch, built, "a cat and a dog", "um gato")

    def fail(*_):
        if len(steps) >= after:
            raise RuntimeError("out of /secret/memory")

    upload(visitor, pictures / "a.png")
    hook = built[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(Exception, match="model failed") as caught:
            visitor.submit(ENGLISH, api_name="/ask").result(timeout=60)
    finally:
        hook.remove()
    assert len(steps) == after
    assert "secret" not in str(caught.value)
    assert texts(visitor.predict(CHINESE, api_name="/ask")[1]) == [CHINESE, "um gato"]


def test_a_bad_upload_leaves_the_image_and_the_conversation(monkeypatch, built, visitor, pictures):
    dictate(monkeypatch, built, "um gato")
    assert upload(visitor, pictures / "b.png") == (None, [], "")
    upload(visitor, pictures / "a.png")
    visitor.predict(ENGLISH, api_name="/ask")
    image, chat, notes = upload(visitor, pictures / "b.png")
    assert image and texts(chat) == [ENGLISH, "um gato"] and notes


def test_a_damaged_picture_to_choose_is_refused_too(served):
    choose = next(function.fn for function in served.page.fns.values() if function.name == "choose")
    before = app.Conversation(tiny_models.picture())
    with pytest.warns(UserWarning, match=CANNOT_READ):  # gradio's way to show it outside of a page
        assert choose(before, SimpleNamespace(index=1))[0].tobytes() == tiny_models.picture().tobytes()
    assert choose(before, SimpleNamespace(index=0))[0].tobytes() == tiny_models.picture(1).tobytes()


def call(url: str, name: str, data: list) -> str:
    """The events that answer a plain HTTP call."""
    begun = httpx.post(f"{url}gradio_api/call/{name}", json={"data": data})
    if begun.is_error:
        return begun.text
    return httpx.get(f"{url}gradio_api/call/{name}/{begun.json()['event_id']}", timeout=60).text


@pytest.mark.parametrize("own", ["path", "both", "url"])
def test_files_of_the_server_cannot_be_asked_for(served, pictures, own):
    secret = pictures.parent / "secret.png"
    payload = {
        "path": {"path": str(secret)},
        "both": {"path": str(pictures / ".." / "secret.png"), "url": str(secret)},
        "url": {"path": f"{served.url}gradio_api/file={pictures / 'a.png'}"},  # the server would fetch from itself
    }
    events = call(served.url, "upload", [{**payload[own], "meta": {"_type": "gradio.FileData"}}])
    assert "event: error" in events and "complete" not in events


@pytest.mark.parametrize(("name", "status"), [("pictures/a.png", 200), ("secret.png", 403), ("pictures", 403)])
def test_nothing_but_the_pictures_is_served(served, pictures, name, status):
    assert httpx.get(f"{served.url}gradio_api/file={pictures.parent / name}").status_code == status


def test_uploads_have_a_limit(served):
    def status(size: int) -> int:
        return httpx.post(
            f"{served.url}gradio_api/upload", files={"files": ("a.png", bytes(size))}, timeout=60
        ).status_code

    limit = int(app.MAX_UPLOAD.removesuffix("mb")) * 1024**2
    assert status(1000) == 200 and status(limit + 1000) == 413


# ---------------------------------------------------------------------- in a browser


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that waits up to 30 seconds for what it is asked to find."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs the programs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in f"{switches} disable-component-update disable-sync window-size=1400,1000".split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    driver.implicitly_wait(30)
    yield driver
    driver.quit()


# Notes every state of the answer that is being written.
WATCH = """
window.states = [];
new MutationObserver(() => {
  const answer = [...document.querySelectorAll("#chat [data-testid=bot]")].pop()?.innerText;
  if (answer && answer !== states.at(-1)) states.push(answer);
}).observe(document.body, {subtree: true, childList: true, characterData: true});
"""
# Whether the last paragraph's last character is on the left of its first one.
ENDS_LEFT = """
const text = [...document.querySelectorAll(arguments[0])].pop().firstChild, range = document.createRange();
const left = at => { range.setStart(text, at); range.setEnd(text, at + 1); return range.getBoundingClientRect().left; };
return left(text.data.length - 1) < left(0);
"""
# A message fades in.
FULLY_SHOWN = """
const box = document.querySelector(arguments[0]).getBoundingClientRect();
for (let at = document.querySelector(arguments[0]); at; at = at.parentElement)
  if (getComputedStyle(at).opacity < 1) return false;
return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
"""


class Visit:
    """What a person does at the page, and sees there."""

    def __init__(self, browser, url: str):
        self.browser = browser
        browser.get(url)
        self.find("#upload input[type=file]")
        browser.execute_script(WATCH)

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Read at once: what streams in replaces the elements again and again."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText)", selector
        )

    def until(self, condition) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, self.texts("body")
            time.sleep(0.1)

    def upload(self, file: Path) -> None:
        if self.texts("#upload [aria-label=Clear]"):
            self.find("#upload [aria-label=Clear]").click()
        self.find("#upload input[type=file]").send_keys(str(file))

    def ask(self, question: str) -> None:
        """Asks, as soon as the page takes a question."""
        field = self.find("#question textarea")
        field.send_keys(question)

        def taken() -> bool:
            if field.get_property("value"):
                field.send_keys("\n")
            return not field.get_property("value")

        self.browser.execute_script("states.length = 0")
        self.until(taken)

    def states(self, charts: int) -> list[str]:
        """The states of the answer while it came; then there are so many charts."""
        self.until(lambda: len(self.texts("#router .router")) == charts)
        return self.browser.execute_script("return states")

    def ends_left(self, who: str) -> bool:
        return self.browser.execute_script(ENDS_LEFT, f"#chat [data-testid={who}] p")


@pytest.mark.slow
def test_the_page_in_a_browser(monkeypatch, built, served, browser, pictures, tmp_path):
    hostile = "<img src=x onerror=hacked=1>"
    arabic, chinese = "قطة و كلب و قطة.", "一只猫 一只猫 一只猫."
    dictate(monkeypatch, built, arabic, chinese, hostile, "cat " * 50, wait=0.1)
    visit = Visit(browser, served.url)
    visit.upload(pictures / "a.png")
    visit.find("#image img")

    visit.ask("ماذا في الصورة.")  # a full stop has no direction of its own
    states = visit.states(charts=1)
    assert len(states) > 2 and states[-1] == arabic
    assert visit.ends_left("user") and visit.ends_left("bot")
    visit.ask("图中是什么.")
    states = visit.states(charts=2)
    assert len(states) > 2 and states[-1] == chinese
    assert not visit.ends_left("user") and not visit.ends_left("bot")

    chat = visit.find("#chat").rect
    for chart in browser.find_elements("css selector", "#router .router"):
        assert chart.rect["x"] >= chat["x"] + chat["width"] and chart.rect["y"] >= chat["y"]
        experts = chart.find_elements("css selector", "i")
        assert len(experts) == built[0].config.num_language_experts and all(bar.rect["height"] > 0 for bar in experts)
    browser.save_screenshot(str(tmp_path / "page.png"))

    visit.ask(hostile)
    visit.states(charts=3)
    assert not visit.texts("#chat [onerror]") and not visit.texts("#router img")

    # A new conversation while an answer is being written: nothing of the old one comes back.
    visit.ask("um gato")
    visit.until(lambda: "cat cat" in visit.texts("#chat [data-testid=bot]")[-1])
    next(button for button in browser.find_elements("tag name", "button") if "new" in button.text).click()
    visit.until(lambda: not visit.texts("#chat [data-testid=bot]"))
    time.sleep(2)
    assert not visit.texts("#chat [data-testid=bot]") and not visit.texts("#router .router")

    bad = tmp_path / "bad.png"
    bad.write_bytes(bad_upload("text"))
    visit.upload(bad)
    visit.until(lambda: CANNOT_READ in "".join(visit.texts(".toast-body")))
    visit.until(lambda: browser.execute_script(FULLY_SHOWN, ".toast-body"))
    assert not re.search("Traceback|PIL|Error", visit.texts("body")[0])
    browser.save_screenshot(str(tmp_path / "refused.png"))
