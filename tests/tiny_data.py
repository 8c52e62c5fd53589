"""Small training sets in LLaVA's format, with image files, written where a test wants them."""

import json
from pathlib import Path

import tiny_models


def llava_row(row_id: str, *turns: str, image: str | list[str] | None = None, **columns) -> dict:
    """A row whose turns are spoken by human and gpt in turn."""
    speakers = ("human", "gpt") * len(turns)
    row = {"id": row_id, "conversations": [{"from": s, "value": t} for s, t in zip(speakers, turns, strict=False)]}
    return {**row, **({} if image is None else {"image": image}), **columns}


def rows(number: int, text_only_every: int = 4) -> list[dict]:
    """Questions on images in two languages; every fourth row is text only, every third has two turns."""
    result = []
    for i in range(number):
        language = ("en", "zh")[i % 2]
        again = ("sure?", "yes") if i % 3 == 0 else ()
        if text_only_every and i % text_only_every == text_only_every - 1:
            result.append(llava_row(f"text-{i}", f"Say {i}", f"it is {i}", *again, language=language))
        else:
            question = ("What is in the picture?", "图中是什么？")[i % 2]
            answer = (f"a cat and {i} dogs", f"一只猫 {i}")[i % 2]
            result.append(
                llava_row(f"image-{i}", f"<image>\n{question}", answer, *again, image=f"{i}.png", language=language)
            )
    return result


def write(folder: Path, content: list[dict] | None = None) -> Path:
    """`folder/data.json` and the images it names in `folder/images`. Returns the JSON file."""
    content = rows(12) if content is None else content
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row in content:
        names = row.get("image") or []
        for name in [names] if isinstance(names, str) else names:
            tiny_models.picture(int(Path(name).stem)).save(folder / "images" / name)
    path = folder / "data.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
