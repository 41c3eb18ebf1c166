"""Precomputed latents: the same losses as from raw clips, stale ones refused, nothing half."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray
import torch
from conftest import PACKAGED_JOB
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from test_training_runs import lines, losses, refused, threads, train  # noqa: F401
from training_media import TINY, clip, mp4, write_dataset
from typer.testing import CliRunner

from curation.settings import ConfigError
from curation.shards import Dataset, write_commit
from curation.validation.commits import check_dataset, check_files
from model.latents import SpaceToDepth, StableDiffusionLatents
from model.texts import TinyText
from training.config import Config, load_config
from training.data.batches import Batches
from training.data.rows import open_rows
from training.data.shapes import shapes_of
from training.latents import driver, encoders
from training.latents.encoders import Encoder, ShardOutcome, load_all
from training.latents.files import Encoded, File, Stored, open_latents, write_file
from training.precompute import app

EXACT = ("stored_dtype=float32", "windows=2")


def make_data(folder: Path) -> Path:
    """Two shards: clips of several lengths, images, one without caption, one broken."""
    rows = [clip(f"c{n}", mp4(4 + n), 4 + n) for n in range(5)]
    rows += [clip("image", mp4(1), 1), clip("mute", mp4(5), 5, caption=None)]
    rows += [clip("broken", b"junk", 4), clip("liar", mp4(1), 6)]
    return write_dataset(folder, rows, per_commit=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A dataset precomputed by the command itself, exact, two windows a clip."""
    folder = make_data(tmp_path_factory.mktemp("data") / "a")
    precompute(folder, *EXACT)
    return folder


def precompute(folder: Path, *overrides: str, output: str | None = None, **options: Any) -> None:
    given = {"workers": 1, "ray_address": None, "dry_run": False, **options}
    driver.precompute(str(folder), "tiny", [*TINY, *overrides], output, **given)


def config(*overrides: str) -> Config:
    return load_config("tiny", [*TINY, *overrides])


def here(folder: Path, *overrides: str, only: list[str] | None = None) -> Path:
    """Precompute without Ray; returns the folder of the files."""
    wanted = config("windows=1", *overrides)
    encoder = Encoder(wanted)
    facts = encoder.load()
    target = Dataset.at(folder / "latents" / driver.fingerprint_of(facts))
    encoder.encode_empty(target)
    made = driver.made_with(facts, wanted)
    target.write_bytes(json.dumps(made).encode(), "made_with.json")
    dataset = Dataset.at(folder)
    for commit in dataset.commits():
        if only and commit["name"] not in only:
            continue
        encoder.encode_shard(dataset, commit, target)
    return Path(target.root)


def files_of(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*.parquet") if "latents" in p.parts}


# -- the losses


def test_losses_are_those_of_raw_clips(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, dropped and missing captions, bad rows and held-out clips among them; and neither
    codec nor text encoder is used."""
    settings = (*EXACT, "caption_dropout=0.5", "max_steps=8", "evaluate_every=4", "batch_size=3")
    train(data, tmp_path / "raw", *settings)

    def encode(*_: Any) -> None:
        raise AssertionError("training does not need it")

    for encoder in (SpaceToDepth, TinyText):
        monkeypatch.setattr(encoder, "encode", encode)
    train(data, tmp_path / "stored", *settings, "precomputed=true")
    raw, stored = losses(tmp_path / "raw"), losses(tmp_path / "stored")
    assert [loss for _, loss in stored] == pytest.approx([loss for _, loss in raw], abs=1e-6)
    assert len(stored) == 8 and raw[0][1] > 0.01
    for key in ("held_out_loss", "held_out_loss_ema"):
        pairs = [[line[key] for line in lines(tmp_path / run, key)] for run in ("raw", "stored")]
        assert pairs[1] == pytest.approx(pairs[0], abs=1e-6)
    bad = [{x["bad_row"]: x["reason"] for x in lines(tmp_path / run, "bad_row")}
           for run in ("raw", "stored")]  # fmt: skip
    assert bad[0] == bad[1] and bad[0].keys() == {"broken"}


def test_half_precision_is_near(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "a")
    for dtype in ("float16", "bfloat16"):
        here(folder, f"stored_dtype={dtype}")
        run = tmp_path / dtype
        train(folder, run, f"stored_dtype={dtype}", "precomputed=true")
    train(folder, tmp_path / "raw", "windows=1")
    raw = [loss for _, loss in losses(tmp_path / "raw")]
    half = [loss for _, loss in losses(tmp_path / "float16")]
    assert half == pytest.approx(raw, rel=2e-3) and half != raw
    brain = [loss for _, loss in losses(tmp_path / "bfloat16")]
    assert brain == pytest.approx(raw, rel=2e-2) and brain != half


def test_a_sample_begins_in_the_window_of_its_own_draw(data: Path) -> None:
    wanted = config(*EXACT, "precomputed=true")
    rows = open_rows(str(data), "a", 1, shapes_of(wanted), 8, 0)
    raw = Batches([rows], wanted)
    # Whole epochs: what is precomputed comes in another order.
    places = range(6 * rows.num_trained)
    samples = {(s.epoch, s.clip_id): s for n in places if hasattr(s := raw.read(n), "raw")}
    starts = {id: int(s.draws.start * 2) for id, s in samples.items()}
    assert {0, 1} <= set(starts.values())
    rows.use(open_latents(rows.dataset, wanted))
    stored = Batches([rows], wanted)
    again = {(s.epoch, s.clip_id): s for n in places if hasattr(s := stored.read(n), "raw")}
    assert again.keys() == samples.keys()
    codec = SpaceToDepth()
    for id, sample in samples.items():
        assert torch.equal(again[id].latents, codec.encode(encoders.to_pixels(sample.raw[None]))[0])
        assert again[id].raw is None and again[id].caption == sample.caption
    assert len(stored.first_captions(3)) == 3


# -- the files


def test_any_reader_gets_what_ours_does(tmp_path: Path) -> None:
    """Nulls at either end of a group and a shape of its own, against pyarrow's own decoding; and
    the same from a filesystem that is not local."""
    torch.manual_seed(0)
    video, image = Stored((2, 4, 3, 2, 5), "float32"), Stored((1, 4, 1, 2, 5), "float32")
    states = Stored((7, 3), "bfloat16")
    rows = []
    for n in range(11):
        kind = image if n in (2, 9) else video
        good = n not in (0, 7, 8)
        latents, text = torch.randn(kind.shape), torch.randn(states.shape).bfloat16()
        rows.append(Encoded(f"c{n}", None if n == 4 else "said", None, latents, text) if good
                    else Encoded(f"c{n}", "said", "it is bad"))  # fmt: skip
    folder = Dataset.at(tmp_path)
    size = write_file(folder, "x", rows, [video, image], states, "sha")
    assert size == (tmp_path / "x.parquet").stat().st_size
    remote = Dataset(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "", "mem")
    assert not remote.is_local
    plain = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 3
    for file in (File(folder, "x"), File(remote, "x")):
        for n, row in enumerate(rows):
            got = file.row(n)
            assert (got.clip_id, got.caption, got.reason) == (row.clip_id, row.caption, row.reason)
            if row.latents is None or row.states is None:
                assert got.latents is None and got.states is None
                continue
            assert torch.equal(got.latents, row.latents) and torch.equal(got.states, row.states)
            column = plain[n]["latents_column"]
            assert plain[n][column] == row.latents.numpy().tobytes()
            got.latents.add_(1)  # its own memory, not the file's
            assert torch.equal(file.row(n).latents, row.latents)


def test_what_the_dtype_does_not_hold_is_a_bad_row(tmp_path: Path) -> None:
    half = Stored((1, 1, 1, 1, 1), "float16")
    states = Stored((1, 1), "float16")
    rows = [Encoded(str(x), "", None, torch.full(half.shape, x), torch.ones(1, 1))
            for x in (6e4, 7e4)]  # fmt: skip
    rows += [Encoded("wide", "", None, torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1))]
    write_file(Dataset.at(tmp_path), "x", rows, [half], states, "")
    file = File(Dataset.at(tmp_path), "x")
    assert file.row(0).latents is not None
    assert "stored_dtype=float32" in str(file.row(1).reason)
    assert "not as planned" in str(file.row(2).reason)


def test_a_write_that_stops_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[Encoded]:
        yield from (Encoded(str(n), "", "bad") for n in range(9))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(Dataset.at(tmp_path), "x", rows(), [], Stored((1,), "float16"), "")
    assert list(tmp_path.iterdir()) == []


# -- the command


class Dying(Encoder):
    """Its process is killed in the middle of a shard that holds a clip called poison."""

    def noted(self, rows: Iterator[Encoded], report: ShardOutcome) -> Iterator[Encoded]:
        for row in super().noted(rows, report):
            if row.clip_id == "poison":
                with Path(self.config.latents_path).open("a") as kills:  # unused by tiny otherwise
                    kills.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            yield row


@pytest.mark.slow
def test_a_lost_process_is_retried_and_then_told(
    local_ray: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL in the middle of a shard: nothing half under its name, and the rest is done."""
    rows = [clip(name, mp4(4), 4) for name in ("a", "b", "poison", "c")]
    folder = write_dataset(tmp_path / "a", rows, per_commit=2)
    monkeypatch.setattr(encoders, "Encoder", Dying)
    monkeypatch.setattr(encoders, "TASK_RETRIES", 1)
    kills, out = tmp_path / "kills", tmp_path / "out"
    kills.touch()
    register_pickle_by_value(sys.modules[__name__])  # workers do not find tests
    try:
        with pytest.raises(SystemExit) as stopped:
            precompute(folder, f"latents_path={kills}", output=str(out))
    finally:
        unregister_pickle_by_value(sys.modules[__name__])
    told = capsys.readouterr().out
    assert stopped.value.code == 1 and kills.read_text() == "xx"
    assert "2 clips encoded" in told and "1 shard failed" in told and "lost 2 times" in told
    names = [path.name for path in out.rglob("*.parquet")]
    assert len([name for name in names if not name.startswith(".tmp-")]) == 2  # one is the empty
    assert sum(name.startswith(".tmp-") for name in names) == 2
    assert "1 are not precomputed" in stale(folder, f"precomputed={out}")


def test_only_what_is_new_or_changed_is_done(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that the refusal names."""
    folder = make_data(tmp_path / "a")
    target = here(folder)
    before = files_of(folder)
    dataset = Dataset.at(folder)
    first, gone = dataset.commits()
    dataset.delete_commit(gone["name"])
    changed = {**first, "files": {**first["files"], "shards": {"sha256": "another", "bytes": 1}}}
    dataset.write_bytes(json.dumps(changed).encode(), "manifest", f"{first['name']}.json")
    for name in ("new", "kept"):
        ledger = [{"level": "video", "video_id": name, "source_url": "u", "decision": "kept",
                   "attempts": 1}]  # fmt: skip
        commit = write_commit(dataset, [clip(name, mp4(6), 6)], ledger, {"cut": "test"})
    here(folder, only=[commit["name"]])
    kept = str(target / f"{commit['name']}.parquet")
    before[kept] = files_of(folder)[kept]
    (target / ".tmp-half.parquet").write_bytes(b"half")

    command = shlex.split(stale(folder).split("run: vf-precompute ")[1])
    done = CliRunner().invoke(app, [*command, "--workers", "1"])
    assert done.exit_code == 0 and "shards: 1 there, 2 to do" in done.output
    after = files_of(folder)
    live = {commit["name"] for commit in dataset.commits()}
    assert {Path(path).stem for path in after} == {"empty", *live} and gone["name"] not in live
    redone = str(target / f"{first['name']}.parquet")
    assert after[redone] != before[redone] and after[kept] == before[kept]
    train(folder, tmp_path / "run", "precomputed=true")


def test_curation_lets_the_latents_be(data: Path) -> None:
    before = files_of(data)
    dataset = Dataset.at(data)
    assert dataset.sweep() == [] and files_of(data) == before and before
    manifests = dataset.commits()
    assert list(check_dataset(dataset, manifests)) == []
    assert [p for each in manifests for p in check_files(dataset, each)] == []


def test_a_dry_run_tells_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_data(tmp_path / "a")
    precompute(folder, "windows=3", dry_run=True)
    out = capsys.readouterr().out
    assert "2 shards, 9 clips" in out and "[3, 48, 2, 4, 4]" in out and '"windows": 3' in out
    assert not (folder / "latents").exists()


def test_mistakes_of_the_user(
    local_ray: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_data(tmp_path / "a")
    assert "is not a dataset folder" in refused(capsys, lambda: precompute(tmp_path))
    assert "did you mean 'windows'" in refused(capsys, lambda: precompute(folder, "window=3"))
    with monkeypatch.context() as job:
        job.setenv(*PACKAGED_JOB)
        told = refused(capsys, lambda: precompute(folder, output="runs/x"))
        assert "--output runs/x is relative" in told
    assert "Ray has 2 CPUs" in refused(capsys, lambda: precompute(folder, workers=99))
    encoder = Encoder(config("latents=stable_diffusion", f"latents_path={tmp_path / 'no'}"))
    with pytest.raises(ConfigError, match="no autoencoder at"):
        encoder.load()


def test_encoders_without_weights_or_with_others_are_refused(local_ray: None) -> None:
    def missing() -> None:
        raise ConfigError("no autoencoder at all")

    def encoder(load: Callable[[], Any]) -> Any:
        return SimpleNamespace(load=SimpleNamespace(remote=load))

    with pytest.raises(ConfigError) as error:
        load_all([encoder(ray.remote(missing).remote)])
    assert str(error.value) == "no autoencoder at all"
    same, other = (encoder(lambda facts=facts: ray.put(facts)) for facts in ({"w": 1}, {"w": 2}))
    assert load_all([same, same]) == {"w": 1}
    with pytest.raises(ConfigError, match="hold other weights"):
        load_all([same, other])


# -- stale


def stale(folder: Path, *overrides: str) -> str:
    wanted = config("precomputed=true", *overrides)
    with pytest.raises(ConfigError) as error:
        open_latents(Dataset.at(folder), wanted)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("num_frames=3", "shapes was [[2, 16, 16], [1, 16, 16]], is [[3, 16, 16]"),
        ("width=32", "is [[2, 16, 32], [1, 16, 32]]"),
        ("buckets=[[2,16,32]]", "is [[2, 16, 32], [1, 16, 32]]"),
        ("stride=2", "stride was 1, is 2"),
        ("stride=null", "stride was 1, is None"),
        ("windows=3", "windows was 2, is 3"),
        ("stored_dtype=bfloat16", "stored_dtype was 'float32', is 'bfloat16'"),
        ("text=open_clip", "text was 'tiny', is 'open_clip'"),
        ("latents=stable_diffusion", "latents was 'space_to_depth', is 'stable_diffusion'"),
    ],
)
def test_another_transform_is_refused(data: Path, change: str, told: str) -> None:
    message = stale(data, *EXACT, change)
    assert told in message and f"run: vf-precompute {data} --preset tiny" in message
    if change != "stride=null":
        assert f"--set {change}" in message


def test_weights_that_changed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the files, without loading them; and training itself does not load them either."""
    folder = write_dataset(tmp_path / "a", [clip(f"c{n}", mp4(4), 4) for n in range(3)])
    sd = ("latents=stable_diffusion", "unet.in_channels=4", "unet.out_channels=4")
    at = (*sd, f"latents_path={tmp_path / 'vae'}")
    save_vae(tmp_path / "vae", seed=0)
    here(folder, *at)
    save_vae(tmp_path / "same", seed=0)
    save_vae(tmp_path / "other", seed=1)
    assert "weights at latents_path" in stale(folder, *sd, f"latents_path={tmp_path / 'other'}")
    assert "latents_path was" in stale(folder, *sd, "latents_path=some/hub-id")
    moved = config("precomputed=true", *sd, f"latents_path={tmp_path / 'same'}")
    open_latents(Dataset.at(folder), moved)

    def vae(_: Any) -> None:
        raise FileNotFoundError("no autoencoder at all")

    monkeypatch.setattr(StableDiffusionLatents, "vae", property(vae))
    samples = ("num_samples=1", "max_steps=2", "sample_every=1")
    train(folder, tmp_path / "run", *at, "precomputed=true", *samples)
    assert len(losses(tmp_path / "run")) == 2 and not lines(tmp_path / "run", "samples")


def save_vae(folder: Path, seed: int) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder)


def test_a_text_encoder_that_is_built_otherwise_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.latents import fingerprints

    monkeypatch.setattr(fingerprints, "TinyText", lambda: TinyText(seed=1))
    assert "text=tiny is built otherwise now" in stale(data, *EXACT)


def test_shards_that_changed_or_are_missing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_data(tmp_path / "a")
    assert "nothing precomputed at" in stale(folder)
    first, second = (commit["name"] for commit in Dataset.at(folder).commits())
    target = here(folder, only=[first])
    missing = f"of its 2 shards 1 are not precomputed as they are now ({second} missing)"
    assert missing in stale(folder)
    manifest = folder / "manifest" / f"{first}.json"
    text = manifest.read_text()
    told = json.loads(text)
    told["files"]["shards"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(told))
    assert f"{first} of another shard of that name" in stale(folder)
    clips = told["num_clips"]
    manifest.write_text(text.replace(f'"num_clips": {clips}', '"num_clips": 6'))
    assert f"{first} of {clips} clips instead of 6" in stale(folder)
    manifest.write_text(text)
    (target / f"{first}.parquet").write_bytes(b"PAR1 and no more")
    message = stale(folder)
    assert f"{first} damaged" in message
    assert message in refused(capsys, lambda: train(folder, tmp_path / "run", "precomputed=true"))


def test_precomputed_data_are_part_of_the_run_card(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path / "run", *EXACT, "precomputed=true", "max_steps=2")
    told = refused(capsys, lambda: train(data, tmp_path / "run", *EXACT, "max_steps=3"))
    assert "precomputed was True, is False" in told and "data.a.fingerprint" in told
