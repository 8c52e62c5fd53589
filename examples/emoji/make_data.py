"""Make the compact emoji data of this example from the raw styles and Unicode CLDR names.

    python examples/emoji/make_data.py --source DIR --output examples/emoji/data

`DIR` holds `emoji.json` (names and keywords per language) and one `STYLE.parquet` (columns id, style, image) per
drawing style. The result is `images.parquet` (id, style, image bytes: lossless, RGB on white, 64 x 64) and
`concepts.json`. The same source always gives the same two files.
"""

import argparse
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


IMAGE_SIZE = 64
TRAIN_STYLES = ("noto", "fluent3d", "fluentflat", "blob", "fxemoji")
# fluent3d and fluentflat draw the same designs and both noto and blob are Google's: all four train. Twemoji has its
# own designer and draws every concept, so it is the unseen style.
HELD_OUT_STYLE = "twemoji"
HELD_OUT_SHARE = 0.15
MIN_TRAIN_STYLES = 3

# English CLDR names, separated by ";". Chosen by eye on contact sheets: things and faces that are clearly different
# pictures with short names. Names that are spelled as in English in four or more of the other languages (pizza,
# sushi, koala) are left out, since they say nothing about the language of an answer.
SELECTION = {
    "Smileys & Emotion": """
        ghost; alien; clown face; ogre; goblin; pile of poo; skull; grinning face; winking face; angry face;
        sleeping face; crying face; thinking face; nerd face; cowboy hat face; face with medical mask; nauseated face;
        hot face; cold face; face with monocle; exploding head; partying face; broken heart; red heart;
        heart with ribbon; kiss mark; collision; speech balloon; hundred points""",
    "Animals & Nature": """
        cat; dog; horse; pig; cow; tiger; rabbit; mouse; monkey; elephant; camel; wolf; bear; paw prints; lion;
        unicorn; bat; fox; deer; rhinoceros; giraffe; hedgehog; kangaroo; raccoon; crocodile; snake; turtle; lizard;
        whale; octopus; fish; dolphin; crab; shark; shrimp; snail; ant; honeybee; spider; spider web; scorpion;
        butterfly; rooster; penguin; duck; owl; peacock; parrot; swan; frog; feather; seedling; evergreen tree;
        palm tree; four leaf clover; maple leaf; mushroom; tulip; rose; sunflower; cherry blossom; bouquet""",
    "Food & Drink": """
        bread; french fries; bacon; pretzel; sandwich; hot pepper; eggplant; avocado; cucumber; potato; carrot;
        broccoli; garlic; onion; peanuts; tomato; grapes; watermelon; lemon; banana; pineapple; red apple; pear;
        strawberry; kiwi fruit; coconut; spaghetti; ice cream; doughnut; cookie; candy; lollipop; birthday cake;
        honey pot; chocolate bar; wine glass; teapot; glass of milk""",
    "Travel & Places": """
        umbrella; rainbow; water wave; crescent moon; thermometer; fire; ringed planet; sun; cloud; snowman; comet;
        high voltage; snowflake; star; volcano; desert island; tent; ferris wheel; roller coaster; circus tent;
        fountain; world map; compass; locomotive; bus; ambulance; fire engine; police car; tractor; bicycle;
        motorcycle; fuel pump; motor scooter; rocket; helicopter; parachute; airplane; sailboat; canoe; anchor; house;
        hospital; castle; factory; church; mosque; watch; alarm clock; stopwatch; luggage; droplet""",
    "Activities": """
        bullseye; slot machine; game die; crystal ball; puzzle piece; teddy bear; kite; magic wand; nesting dolls;
        video game; ribbon; wrapped gift; jack-o-lantern; Christmas tree; balloon; party popper; fireworks; trophy;
        skis; basketball; american football; volleyball; ice hockey; sled; diving mask; boxing glove; curling stone;
        soccer ball; baseball; artist palette; yarn; framed picture; performing arts; yo-yo; ice skate""",
    "Objects": """
        backpack; graduation cap; top hat; crown; glasses; necktie; t-shirt; jeans; dress; handbag; high-heeled shoe;
        lipstick; ring; gem stone; sunglasses; scarf; gloves; socks; running shoe; saxophone; guitar; trumpet; violin;
        drum; accordion; light bulb; camera; television; candle; hammer; wrench; axe; screwdriver; ladder; bomb;
        bow and arrow; balance scale; gear; syringe; pill; stethoscope; money bag; credit card; laptop; floppy disk;
        battery; electric plug; printer; calendar; paperclip; scissors; pencil; crayon; paintbrush; telephone;
        microscope; telescope; bell; key; envelope; package; door; toilet; bathtub; shopping cart; fire extinguisher;
        broom; bucket; toothbrush; soap; chair; open book; newspaper; microphone; headphone""",
}

# Drawings that show something else than the name says (these two styles were matched by English name).
MISMATCHED = {("fxemoji", "sunglasses"), ("fxemoji", "laptop"), ("blob", "laptop")}

# A concept's options are written as a list, so a name must not hold a separator or a quotation mark.
SEPARATORS = re.compile(r"[(),;:、，،؛：/\"«»“”„<>|]")


def select_concepts(source: dict[str, Any]) -> list[dict[str, Any]]:
    """Pick SELECTION from the source and mark HELD_OUT_SHARE of each group as held out.

    Args:
        source: content of `emoji.json`: `languages` and `items` (id, char, group, names, keywords).

    Returns:
        One dict per concept, in the order of SELECTION: id, char, group, split ("train" or "held_out"), `names` and
        `keywords` per language, and `spelled_as_english`: the languages in which the name is no evidence of the
        language, because it equals the English one.

    Raises:
        ValueError: a name is missing from the source, appears twice in a language, or holds a list separator.
    """
    languages = source["languages"]
    items = {(item["group"], item["names"]["en"]): item for item in source["items"]}
    concepts = []
    for group, text in SELECTION.items():
        names = [" ".join(name.split()) for name in text.split(";")]
        missing = [name for name in names if (group, name) not in items]
        if missing:
            raise ValueError(f"The source has no such name in group {group!r}: {missing}. Correct SELECTION.")
        chosen = [items[group, name] for name in names]
        # The smallest hashes are held out: a choice that does not move when other concepts come or go elsewhere.
        by_hash = sorted(chosen, key=lambda item: hashlib.sha256(item["id"].encode()).hexdigest())
        held_out = {item["id"] for item in by_hash[: round(HELD_OUT_SHARE * len(chosen))]}
        for item in chosen:
            english = item["names"]["en"].casefold()
            concepts.append(
                {
                    "id": item["id"],
                    "char": item["char"],
                    "group": group,
                    "split": "held_out" if item["id"] in held_out else "train",
                    "names": {lang: item["names"][lang] for lang in languages},
                    "keywords": {lang: item["keywords"][lang] for lang in languages},
                    "spelled_as_english": [
                        lang for lang in languages if lang != "en" and item["names"][lang].casefold() == english
                    ],
                }
            )
    for lang in languages:
        seen: dict[str, str] = {}
        for concept in concepts:
            name = concept["names"][lang]
            if SEPARATORS.search(name):
                raise ValueError(f"{concept['id']}: the name {name!r} ({lang}) holds a list separator. Deselect it.")
            if name.casefold() in seen:
                raise ValueError(f"{concept['id']} and {seen[name.casefold()]} are both {name!r} in {lang}.")
            seen[name.casefold()] = concept["id"]
    return concepts


def flatten(image_bytes: bytes) -> Image.Image:
    """Decode a drawing with transparency and put it on white, IMAGE_SIZE pixels square."""
    drawing = Image.open(io.BytesIO(image_bytes)).convert("RGBA")
    drawing = drawing.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(white, drawing).convert("RGB")


def encode(image: Image.Image) -> bytes:
    """Lossless WebP: smaller than PNG for every one of these drawings."""
    buffer = io.BytesIO()
    # For lossless WebP, quality and method are effort; more takes 20 times as long and saves 2%.
    image.save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def make(source: Path, output: Path) -> None:
    """Write `concepts.json` and `images.parquet` to `output`."""
    data = json.loads((source / "emoji.json").read_text(encoding="utf-8"))
    concepts = select_concepts(data)
    rows: dict[str, list[Any]] = {"id": [], "style": [], "image": []}
    for style in (*TRAIN_STYLES, HELD_OUT_STYLE):
        table = pq.read_table(source / f"{style}.parquet", columns=["id", "image"])
        drawings = dict(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))
        for concept in concepts:
            if concept["id"] in drawings and (style, concept["names"]["en"]) not in MISMATCHED:
                rows["id"].append(concept["id"])
                rows["style"].append(style)
                rows["image"].append(encode(flatten(drawings[concept["id"]])))
    for concept in concepts:
        styles = {style for id_, style in zip(rows["id"], rows["style"], strict=True) if id_ == concept["id"]}
        if HELD_OUT_STYLE not in styles or len(styles) - 1 < MIN_TRAIN_STYLES:
            raise ValueError(f"{concept['id']} ({concept['names']['en']}) is drawn only in {sorted(styles)}.")
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "languages": data["languages"],
        "train_styles": TRAIN_STYLES,
        "held_out_style": HELD_OUT_STYLE,
        "image_size": IMAGE_SIZE,
        "concepts": concepts,
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (output / "concepts.json").write_text(text + "\n", encoding="utf-8")
    # The images are compressed already.
    pq.write_table(pa.table(rows), output / "images.parquet", compression="none")
    held_out = sum(concept["split"] == "held_out" for concept in concepts)
    print(f"{len(concepts)} concepts ({held_out} held out), {len(rows['id'])} images in {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with emoji.json and STYLE.parquet files")
    parser.add_argument("--output", type=Path, required=True, help="folder for concepts.json and images.parquet")
    arguments = parser.parse_args()
    make(arguments.source, arguments.output)
