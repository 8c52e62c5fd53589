"""Translation by a chat endpoint that misbehaves in all the ways that servers do."""

import sys
import time
from collections import Counter

import pytest
from chat_server import says

from parrot_data.multilingual.endpoint import EndpointTranslator
from parrot_data.multilingual.translators import TranslationError, translate_checked


LANGUAGES = ["en", "zh", "pt", "ar", "tr", "ru", "cs", "de", "fr", "hr", "it", "ro", "es"]
SOON = {"Retry-After": "0.02"}  # keeps the waiting of `openai` short
TEXTS = [f"Text {number}" for number in range(12)]


def test_endpoint_translates_each_text_in_its_own_request_and_in_order(serve):
    server = serve(lambda text, _: says(f" {text.upper()}\n"))
    translator = EndpointTranslator(server.url, "some-model", api_key_env="")
    assert translate_checked(translator, [*TEXTS, "Text 0"], "cs") == [*[text.upper() for text in TEXTS], "TEXT 0"]
    assert server.attempts == Counter(TEXTS)
    for request in server.requests:
        assert request["model"] == "some-model" and request["temperature"] == 0 and request["seed"] == 0
        prompt = request["messages"][0]["content"]
        assert "from English to Czech" in prompt and "<1>" in prompt
    translator.translate(["Ahoj"], "fi", source="cs")
    assert "from Czech to the language with the ISO 639 code fi" in server.requests[-1]["messages"][0]["content"]


def test_endpoint_asks_many_at_a_time_but_not_more_than_allowed(serve):
    def slowly(text, _):
        time.sleep(0.05)
        return says(text)

    server = serve(slowly)
    EndpointTranslator(server.url, "m", concurrency=4).translate(TEXTS, "de")
    assert 1 < server.most <= 4


def test_rate_is_limited_with_retries_and_over_calls(serve):
    server = serve(lambda text, attempt: says(text) if text != "Text 3" or attempt > 1 else (429, SOON, "slow down"))
    translator = EndpointTranslator(server.url, "m", requests_per_minute=60 * 40)
    translator.translate(TEXTS[:6], "de")
    translator.translate(TEXTS[6:], "de")
    assert len(server.requests) == 13
    times = sorted(request["at"] for request in server.requests)
    assert times[-1] - times[0] >= 12 / 40 - 0.02


def test_endpoint_that_recovers_loses_nothing(serve):
    def unreliable(text, attempt):
        failure = {1: 429, 2: 500, 3: 503}.get(attempt)
        return (failure, SOON, "busy") if failure and text in TEXTS[::3] else says(text + "!")

    server = serve(unreliable)
    assert EndpointTranslator(server.url, "m").translate(TEXTS, "de") == [text + "!" for text in TEXTS]
    assert {server.attempts[text] for text in TEXTS[::3]} == {4}


@pytest.mark.parametrize(
    ("status", "advice"), [(500, "try later"), (429, "requests_per_minute"), (401, "MY_KEY"), (404, "base_url")]
)
def test_endpoint_that_fails_for_good_says_where_and_what_to_do(serve, status, advice):
    server = serve(lambda text, _: says(text) if text != "Text 5" else (status, SOON, "no such luck"))
    translator = EndpointTranslator(server.url, "m", api_key_env="MY_KEY", max_retries=2, concurrency=1)
    with pytest.raises(TranslationError) as error:
        translator.translate(TEXTS, "de")
    for part in (server.url, "'m'", str(status), "no such luck", advice):
        assert part in str(error.value)
    assert error.value.texts == [] and error.value.finished == {text: text for text in TEXTS[:5]}
    assert server.attempts["Text 5"] == (3 if status in (429, 500) else 1)


def test_endpoint_that_is_not_there_says_so(serve):
    server = serve(None)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(TranslationError, match="Is the server running"):
        EndpointTranslator(server.url, "m", max_retries=0).translate(["a"], "de")


def test_server_that_is_no_chat_endpoint_is_refused(serve):
    answers: list[tuple] = [(200, {"Content-Type": "text/html"}, "<html>"), (200, {}, {})]
    for answer in answers:
        server = serve(lambda *_, answer=answer: answer)
        with pytest.raises(TranslationError, match="not a chat completion.*Is the server"):
            EndpointTranslator(server.url, "m").translate(["a"], "de")


def test_cut_and_refused_answers_are_errors_that_name_their_texts(serve):
    replies = {"Text 2": says("Te", "length"), "Text 4": says("", "content_filter")}
    server = serve(lambda text, _: replies.get(text) or says(text))
    with pytest.raises(TranslationError, match="2 of 12 texts were refused or cut.*'Text [24]'") as error:
        EndpointTranslator(server.url, "m").translate(TEXTS, "de")
    assert sorted(error.value.texts) == ["Text 2", "Text 4"]
    assert error.value.finished == {text: text for text in TEXTS if text not in replies}


def test_empty_answer_is_an_error_that_names_its_text(serve):
    server = serve(lambda text, _: says(" \n" if text == "Text 2" else text))
    with pytest.raises(TranslationError, match="en to de: 1 of 12.*'Text 2'") as error:
        translate_checked(EndpointTranslator(server.url, "m"), TEXTS, "de")
    assert error.value.texts == ["Text 2"] and len(error.value.finished) == 11


def test_key_comes_from_the_environment_and_options_from_the_recipe(serve, monkeypatch):
    server = serve(lambda text, _: says(text))
    monkeypatch.setenv("MY_KEY", "secret")
    options = {"seed": None, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    translator = EndpointTranslator(server.url, "m", api_key_env="MY_KEY", options=options)
    translator.translate(["a"], "de")
    request = server.requests[0]
    assert request["key"] == "Bearer secret" and "seed" not in request
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    assert "secret" not in translator.name and translator.name != EndpointTranslator(server.url, "m").name


def test_cost_is_estimated_before_the_start():
    translator = EndpointTranslator("http://localhost/v1", "m", price_per_million=(1.0, 4.0), prompt="p" * 400)
    cost = translator.estimate(["a" * 80, "b" * 120], ["de", "cs"], scale=500)
    assert cost[:3] == (2000, 2000 * 125, 2000 * 50)
    assert cost.price == pytest.approx(0.25 + 0.4) and "0.65 (estimated" in str(cost)
    assert translator.estimate(["a" * 80, "b" * 120], ["de"]).requests == 2


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"modeling-parrot\[translate\]"):
        EndpointTranslator("http://localhost/v1", "m")
