"""LAION's predictor with a tiny random CLIP of the real class, through the real loading code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_embeddings import CLIP_WIDTH, build_clip

from curation.pipelines import Scorers
from curation.scores import image_text
from curation.scores.aesthetics import Laion, check_aesthetic
from curation.scores.chosen import check_models
from curation.settings import ConfigError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slowed by threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


def save_head(path: Path, kind: str, width: int = CLIP_WIDTH) -> Path:
    """A random head of LAION's shape: one layer, or the stack with its dropouts."""
    import torch
    from torch.nn import Dropout, Linear, Sequential

    torch.manual_seed(1)
    if kind == "linear":
        state = Linear(width, 1).state_dict()
    else:
        stack = Sequential(
            *(Linear(width, 64), Dropout(0.2), Linear(64, 32), Dropout(0.2), Linear(32, 16)),
            *(Dropout(0.1), Linear(16, 8), Linear(8, 1)),
        )
        state = {f"layers.{name}": tensor for name, tensor in stack.state_dict().items()}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module", params=["linear", "mlp"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_head(tmp_path_factory.mktemp("head") / f"{request.param}.pth", request.param)


def scorers(clip: object, head: object) -> Scorers:
    names = [None if given is None else str(given) for given in (clip, head)]
    return Scorers(aesthetic="laion", aesthetic_checkpoint=names[0], aesthetic_head=names[1])


def pictures(count: int) -> list[np.ndarray]:
    """Random soft pictures of mixed sizes."""
    rng = np.random.default_rng(3)
    coarse = [rng.integers(0, 256, (3, 4, 3), dtype=np.uint8) for _ in range(count)]
    return [cv2.resize(c, (40 + 9 * i, 30 + 5 * i)) for i, c in enumerate(coarse)]


def test_a_score_is_the_head_on_the_normalised_embedding(clip: Path, head: Path) -> None:
    """Told again with open_clip's and torch's own classes alone."""
    import open_clip
    import torch
    from PIL import Image

    given = pictures(3)
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    images = [Image.fromarray(picture[..., ::-1]) for picture in given]
    with torch.no_grad():
        values = model.eval().encode_image(torch.stack([prepare(i) for i in images]))
        values = values / values.norm(dim=1, keepdim=True)
        state = torch.load(head)
        keys = [k for k in state if k.endswith("weight")]
        for key in keys:  # saved in order
            values = values @ state[key].T + state[key.replace("weight", "bias")]
    found = Laion(scorers(clip, head))(given)
    assert found == pytest.approx(values[:, 0].tolist(), rel=1e-4, abs=1e-5)
    assert len(set(np.round(found, 6))) == 3  # the picture matters


def test_batches_change_nothing(clip: Path, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laion = Laion(scorers(clip, head))
    alone = [laion([picture])[0] for picture in pictures(5)]
    monkeypatch.setattr(image_text, "BATCH_SIZE", 2)
    assert laion(pictures(5)) == pytest.approx(alone, abs=1e-5)
    assert laion([]) == []


# -- before any work


def refusal(clip: object, head: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_aesthetic(scorers(clip, head))
    message = str(caught.value)
    assert "\n" not in message
    assert "--set scorers.aesthetic=technical_quality" in message
    return message


def test_what_is_whole_is_accepted(clip: Path, head: Path) -> None:
    check_aesthetic(scorers(clip, head))
    for weightless in (Scorers(), Scorers(aesthetic="technical_quality")):
        check_models(weightless, ["aesthetic", "caption", "watermark", "text"])


def test_what_is_not_set_is_named(clip: Path, head: Path) -> None:
    assert "scorers.aesthetic_checkpoint is not set" in refusal(None, head)
    assert "scorers.aesthetic_head is not set" in refusal(clip, None)
    assert "sac+logos+ava1-l14-linearMSE.pth" in refusal(clip, None)


def test_a_clip_that_cannot_be_had_is_refused(clip: Path, head: Path, tmp_path: Path) -> None:
    assert "hf download org/none" in refusal("org/none", head)
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert "has no open_clip_model.safetensors" in refusal(tmp_path, head)
    assert "cannot be loaded" in refusal(tmp_path / "none", head)


def test_a_head_that_does_not_lead_to_a_score_is_refused(clip: Path, tmp_path: Path) -> None:
    import torch

    assert "cannot be loaded" in refusal(clip, tmp_path / "none.pth")
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html>")
    assert "cannot be loaded" in refusal(clip, page)
    torch.save({"weight": torch.zeros(2, CLIP_WIDTH), "bias": torch.zeros(2)}, page)
    assert "[(2, 16)] do not lead" in refusal(clip, page)
    torch.save({"other": torch.zeros(2)}, page)
    assert "cannot be loaded" in refusal(clip, page)


def test_a_head_for_another_clip_is_refused(clip: Path, tmp_path: Path) -> None:
    wide = save_head(tmp_path / "wide.pth", "linear", width=768)
    with pytest.raises(ConfigError, match=r"embeddings of 768 numbers, and .* gives 16"):
        Laion(scorers(clip, wide))
