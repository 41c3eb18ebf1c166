"""Three ways to read a dataset folder: python examples/read_shards.py runs/demo"""

import io
import sys
from pathlib import Path

import av
import datasets
import pyarrow.dataset as ds

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")

# 1. pyarrow: any columns, without touching the media.
table = ds.dataset(folder / "shards").to_table(columns=["clip_id", "duration_s", "caption"])
print(table.to_pandas().to_string(max_colwidth=60))

# 2. The datasets library: `clip` is its Video layout.
files = [str(path) for path in sorted((folder / "shards").glob("*.parquet"))]
rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
row = next(iter(rows))
print({name: value for name, value in row.items() if name != "clip"})

# 3. One clip's frames: its mp4 holds exactly num_frames pictures. Of a stranger's dataset, too,
# nothing but an mp4 is read: other formats open files and hosts.
with av.open(io.BytesIO(row["clip"]["bytes"]), format="mp4") as video:
    frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
print(len(frames), "frames of", frames[0].shape)
assert len(frames) == row["num_frames"]
