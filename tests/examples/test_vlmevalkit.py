"""The adapter for VLMEvalKit, without the kit: its base class gives a message of parts, and takes a text."""

import sys
from pathlib import Path

import pytest
import tiny_models


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import vlmevalkit  # noqa: E402

from parrot_eval.generation import Asker, Request  # noqa: E402


def test_a_message_of_the_kit_is_answered_as_the_question_itself(tiny, tmp_path):
    model, processor = tiny(num_language_experts=2)
    model.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    pictures = [tiny_models.picture(0), tiny_models.picture(1)]
    message = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        message.append({"type": "image", "value": str(tmp_path / f"{number}.png")})
    message.append({"type": "text", "value": "What differs?"})

    parrot = vlmevalkit.adapter(object)(str(tmp_path / "mine"), 6)

    wanted = Asker(model, processor, 6).answers([Request("What differs?", pictures)])[0]
    assert wanted and parrot.generate_inner(message, "MMMB_en") == wanted
    assert not parrot.INTERLEAVE


def test_a_folder_that_is_no_checkout_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["vlmevalkit.py", "--kit", str(tmp_path), "--model", "missing", "--data", "MMMB_en"]
    )
    with pytest.raises(SystemExit):
        vlmevalkit.main()
    assert "no checkout of VLMEvalKit" in capsys.readouterr().err
