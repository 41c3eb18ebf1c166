"""CLIP's embeddings and the caption score: a tiny random model through the real loading code."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.pipelines import Scorers
from curation.scores import image_text
from curation.scores.chosen import check_models
from curation.scores.image_text import CaptionScore, Clip
from curation.scores.models import Seen, score_each
from curation.settings import ConfigError

CLIP_WIDTH = 16
MODEL = {
    "embed_dim": CLIP_WIDTH,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 8},
    "text_cfg": {
        **{"context_length": 12, "vocab_size": 49408},  # the real tokenizer's
        **{"width": 16, "heads": 2, "layers": 1},
    },
}
TEXTS = [
    "a red house by the sea",
    "two dogs",
    "rain on glass, then on leaves, then on nothing at all",
]


def build_clip(folder: Path) -> Path:
    """A folder with open_clip's config and random weights, as hub copies have them."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    torch.nn.init.normal_(model.visual.proj)
    torch.nn.init.normal_(model.token_embedding.weight)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    return folder


def cosines(clip: Path, clips: list[list[np.ndarray]], texts: list[str]) -> np.ndarray:
    """[clips, texts]: told again with open_clip's own functions alone, from RGB pictures."""
    import open_clip
    import torch
    from PIL import Image

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{clip}")(texts)
    with torch.no_grad():
        said = model.eval().encode_text(tokens)
        rows = []
        for pictures in clips:
            each = torch.stack([prepare(Image.fromarray(picture)) for picture in pictures])
            seen = torch.nn.functional.normalize(model.encode_image(each), dim=1).mean(dim=0)
            rows.append(torch.cosine_similarity(seen[None], said, dim=1))
    return torch.stack(rows).numpy()


def pictures(count: int, seed: int = 3) -> list[np.ndarray]:
    """Random soft pictures of mixed sizes."""
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 256, (3, 4, 3), dtype=np.uint8) for _ in range(count)]
    return [cv2.resize(c, (40 + 9 * i, 30 + 5 * i)) for i, c in enumerate(coarse)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


def scorers(clip: object) -> Scorers:
    return Scorers(caption="clip", caption_checkpoint=None if clip is None else str(clip))


def test_a_caption_score_is_the_cosine_of_the_two_embeddings(clip: Path) -> None:
    clips = [pictures(2, seed=1), pictures(1, seed=2), pictures(3, seed=4)]
    known = cosines(clip, clips, TEXTS)
    assert np.ptp(known, axis=0).min() > 0.02 < np.ptp(known, axis=1).min()  # both matter
    model = CaptionScore(scorers(clip))
    for order in ([0, 1, 2], [1, 0, 2]):  # the captions of two clips swapped
        looks = [Seen([p[..., ::-1] for p in clips[i]], TEXTS[n]) for i, n in enumerate(order)]
        found = [row["caption_score"] for row in model(looks)]
        assert found == pytest.approx([known[i, n] for i, n in enumerate(order)], abs=1e-5)


def test_no_caption_has_no_score_and_moves_no_other(clip: Path) -> None:
    model, look = CaptionScore(scorers(clip)), Seen(pictures(2), "two dogs")
    [alone] = model([look])
    rows = score_each(model, [Seen(pictures(1), None), look, Seen(pictures(3), " "), Seen([], "a")])
    nothing = {"caption_score": None}
    assert rows[:3] == [nothing, {"caption_score": pytest.approx(alone["caption_score"])}, nothing]
    assert "no frame" in rows[3]["error"]


def test_batches_change_nothing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Clip(str(clip))
    monkeypatch.setattr(image_text, "BATCH_SIZE", 2)
    batched = Clip(str(clip))
    assert whole.texts(TEXTS) == pytest.approx(batched.texts(TEXTS), abs=1e-6)
    assert whole.pictures(pictures(5)) == pytest.approx(batched.pictures(pictures(5)), abs=1e-6)
    assert np.linalg.norm(whole.texts(TEXTS), axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert whole.texts([]).shape == whole.pictures([]).shape == (0, CLIP_WIDTH)


def test_missing_weights_say_what_to_do_before_any_work(clip: Path, tmp_path: Path) -> None:
    check_models(scorers(clip), ["caption"])
    for name, says in (
        (None, "scorers.caption_checkpoint is not set; give a file"),
        (tmp_path, "has no open_clip_config.json and no open_clip_model.safetensors"),
        ("org/none", "--set scorers.caption_checkpoint=FOLDER, or leave scorers.caption out"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_models(scorers(name), ["caption"])
        assert says in str(caught.value) and "\n" not in str(caught.value)
