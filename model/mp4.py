"""Frames to an mp4."""

from fractions import Fraction
from pathlib import Path

from torch import Tensor


def write_mp4(frames: Tensor, path: Path, fps: float) -> None:
    """Write frames uint8 [T, H, W, 3] as H.264, yuv420p, crf 18; folders are made.

    ffmpeg's guide to H.264 calls 17 to 18 visually lossless: what is seen is the sampler's.

    Colours are BT.709 and marked so: unmarked, players take 768 rows for BT.709 and 192 for BT.601.

    Raises ValueError for odd sides, which yuv420p does not have.
    """
    import av

    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height} frames: an mp4 needs even sides. Crop or resize.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        bt709 = "colorprim=bt709:transfer=bt709:colormatrix=bt709"
        stream.options = {"crf": "18", "x264-params": bt709}
        for picture in frames.numpy():
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
