"""Made-up web text: pages, reviews and code, among them what each filter is there for."""

import json
import random
from pathlib import Path

NOUNS = (
    *("harbour", "valley", "teacher", "engine", "garden", "letter", "market"),
    *("winter", "railway", "orchard", "kitchen", "journal", "captain", "theatre"),
)
VERBS = ("repaired", "described", "painted", "visited", "measured", "carried", "borrowed", "explained", "collected")
OTHERS = ("quiet", "narrow", "bright", "careful", "distant", "ordinary", "golden", "patient", "hollow", "crowded")
HAN = "书店的内容很好看了我在这里买过一本不错学生老师喜欢房间干净服务态度差价格便宜早餐位置方便下次还会来住"


def page(seed: int, *, sentences: int = 12, extra: str = "") -> str:
    """An English page that every rule keeps; `extra` is written into its first sentence."""
    draw = random.Random(seed)
    lines = []
    for number in range(sentences):
        subject, verb, object_ = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(NOUNS)
        start = f"The {draw.choice(OTHERS)} {subject} {extra if number == 0 else ''} of {draw.choice(NOUNS)}"
        lines.append(
            f"{start} {verb} that {draw.choice(OTHERS)} {object_} with {draw.choice(NOUNS)} to {number * seed}."
        )
    return "\n".join(lines)


def review(seed: int, *, extra: str = "") -> str:
    """A Chinese review that every rule keeps."""
    draw = random.Random(seed)
    return f"我{extra}{''.join(draw.choices(HAN, k=40))}，{''.join(draw.choices(HAN, k=20))}了。"


def write_sources(folder: Path, *, pages: int = 60, reviews: int = 60) -> list[str]:
    """Write three sources and return their globs.

    Of the pages, one in ten is contentious and one in ten in Hungarian; of the reviews, one in six is a near-duplicate
    of the one before, and one in ten is nothing but marks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    english, chinese = list[str](), list[str]()
    for number in range(pages):
        if number % 10 == 3:
            english.append(f"Az öreg halász a kikötőben megjavította a hálót, és sokáig nézte a tengert. {number}")
        else:
            english.append(page(number, extra="communism propaganda segregation" if number % 10 == 6 else ""))
    for number in range(reviews):
        if number % 6 == 5:
            chinese.append(chinese[-1] + "。")
        else:
            chinese.append("！！！。。。" * 4 if number % 10 == 7 else review(number))
    code = [f"def f{n}(x):\n    return [y + {n} for y in range(x * {n})]\n" * 3 for n in range(12)]
    for name, texts, domain in (("pages", english, None), ("reviews", chinese, None), ("code", code, "code")):
        rows = [{"text": text} | ({"domain": domain} if domain else {}) for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / f"{name}.jsonl") for name in ("pages", "reviews", "code")]
