"""Curation from Python, cell by cell: python examples/from_python.py, or open it as a notebook."""

# %% Curate the samples beside this file; the same call again decodes nothing.
from pathlib import Path

from torch.utils.data import DataLoader

from curation import curate
from training.data.clips import VideoClips


def main() -> None:
    samples = [str(path) for path in sorted((Path(__file__).parent / "media").glob("*.mp4"))]
    done = curate(samples, "web", output="runs/from_python")

    # %% What was kept, and why the rest was not.
    clips, videos = done.funnel.clips, done.funnel.videos
    print(f"{clips.kept} of {clips.total} clips kept, {videos.kept} of {videos.total} videos")
    ledger = done.ledger(["level", "source_url", "decision", "rule"]).to_pandas()
    print(ledger[ledger.decision == "dropped"].to_string(index=False))
    shown = done.clips(["clip_id", "duration_s", "motion", "caption"]).to_pandas()
    print(shown.to_string(index=False, max_colwidth=50))

    # %% Another threshold: what was measured stays, nothing is decoded again.
    longer = curate(
        samples, "web", output="runs/from_python", set={"rules.duration.min": 4}
    ).funnel.clips
    print(f"{longer.kept} clips of 4 s and more")

    # %% Frames for a training of your own.
    frames = VideoClips("runs/from_python", num_frames=8, height=64, width=112, held_out=0)
    batch = next(iter(DataLoader(frames, batch_size=2)))
    print(batch["pixels"].shape, batch["pixels"].dtype, batch["caption"])


if __name__ == "__main__":  # Ray and PyTorch start processes
    main()
