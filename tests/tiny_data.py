"""Small training sets in LLaVA's format and benchmarks in VLMEvalKit's, written where a test wants them; a sentence in 13 languages."""

import base64
import csv
import io
import json
from pathlib import Path

import tiny_models
from PIL import Image


DOG = "A brown dog runs across the wet grass with a red ball in its mouth."
TRANSLATIONS = {
    "zh": "一只棕色的狗嘴里叼着一个红色的球，在湿漉漉的草地上奔跑。",
    "pt": "Um cachorro marrom corre pela grama molhada com uma bola vermelha na boca.",
    "ar": "كلب بني يركض عبر العشب المبلل وفي فمه كرة حمراء.",
    "tr": "Kahverengi bir köpek, ağzında kırmızı bir topla ıslak çimlerin üzerinde koşuyor.",
    "ru": "Коричневая собака бежит по мокрой траве с красным мячом в зубах.",
    "cs": "Hnědý pes běží přes mokrou trávu s červeným míčkem v tlamě.",
    "de": "Ein brauner Hund rennt mit einem roten Ball im Maul über das nasse Gras.",
    "fr": "Un chien brun court dans l’herbe mouillée avec une balle rouge dans la gueule.",
    "hr": "Smeđi pas trči po mokroj travi s crvenom loptom u ustima.",
    "it": "Un cane marrone corre sull’erba bagnata con una palla rossa in bocca.",
    "ro": "Un câine maro aleargă prin iarba udă cu o minge roșie în gură.",
    "es": "Un perro marrón corre por la hierba mojada con una pelota roja en la boca.",
}


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


def encoded(image: int | Image.Image) -> str:
    """A picture, or that of `tiny_models.picture` with this index, as benchmarks hold it: PNG in base64."""
    file = io.BytesIO()
    (tiny_models.picture(image) if isinstance(image, int) else image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_tsv(path: Path, rows: list[dict]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)
