"""3D corruptions by video compression: H.265 at low quality or low bit rate, and bit errors.

The image becomes a clip (a camera motion there and back, 119 frames at 25 frames per second in
H.264), the clip is compressed or damaged, and the last frame, which shows the first view again, is
the result. Constants: Kar et al., CVPR 2022. Needs PyAV (``pip install av``); pixels depend on the
versions of its codecs (:func:`codec_versions`).
"""

from __future__ import annotations

import io
import platform
from fractions import Fraction

import numpy as np

from certbench.corruptions.three_d_motion import FRAMES, draw_motion, frames
from certbench.errors import CertbenchError

CRF = (24, 26, 32, 39, 41)
"""Constant rate factors of ``h265_crf``."""

RATE_DIVISORS = (2, 4, 8, 16, 32)
"""``h265_abr`` has the clip's bit rate divided by these."""

NOISE_AMOUNT = (100000, 50000, 30000, 20000, 10000)
"""``bit_error`` damages about one byte in so many."""

RATE = 25

SMALLEST = 64
"""Frames are padded to this height and width."""


def codec_versions() -> str:
    """Versions of PyAV and libavcodec, for the provenance of results."""
    av = _av()
    return (
        f"av {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
    )


def video_compression(
    image: np.ndarray, depth: np.ndarray, corruption: str, severities, rng: np.random.Generator
) -> list[np.ndarray]:
    """Send the image through a damaged video.

    Args:
        image: uint8 [H, W, 3].
        depth: Relative depth, float32 [H, W], positive.
        corruption: ``h265_crf``, ``h265_abr`` or ``bit_error``.
        severities: Severities, each 1 to 5; the clip is made once.
        rng: Random generator of the image: picks the motion.

    Returns:
        One uint8 [H, W, 3] for each severity.

    Raises:
        CertbenchError: PyAV or a codec is missing, or no frame could be decoded.
    """
    _av()
    height, width = image.shape[:2]
    motion = draw_motion("xy" if rng.random() < 0.5 else "z", rng)
    # Video needs even sizes, and libx265 writes out of bounds below its 64-pixel coding unit:
    # repeat the last row and column as often as needed, and cut that off again at the end.
    pad = ((0, _padding(height)), (0, _padding(width)), (0, 0))
    there = [
        np.pad(np.clip(np.rint(frame), 0, 255).astype(np.uint8), pad, mode="edge")
        for frame in frames(image, depth, motion, FRAMES)
    ]
    clip = _encode(there + there[-2::-1], "libx264", {"x264-params": _x264_params()})
    made = []
    for severity in severities:
        if corruption == "bit_error":
            last = _damaged(clip, NOISE_AMOUNT[severity - 1])
        else:
            params = "pools=1:frame-threads=1:log-level=none"
            decoded = _decode(clip)
            if corruption == "h265_crf":
                options, rate = {"crf": str(CRF[severity - 1]), "x265-params": params}, None
            else:
                rate = max(1000, _bit_rate(clip) // RATE_DIVISORS[severity - 1])
                limit = max(1, rate // 1000)
                vbv = f"{params}:vbv-maxrate={limit}:vbv-bufsize={limit}"
                options = {"x265-params": vbv}
            last = _decode(_encode(decoded, "libx265", options, rate))[-1]
        if last.shape[0] < height or last.shape[1] < width:
            raise CertbenchError("the decoded frame has the wrong size", where=corruption)
        made.append(last[:height, :width])
    return made


def _x264_params() -> str:
    # With the AVX-512 code of x264 equal clips are now and then coded differently, above all after
    # x265 ran in the same process; its SSE2 code repeats itself and is as fast at these sizes.
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "threads=1:asm=SSE2" if on_x86 else "threads=1"


def _padding(size: int) -> int:
    return max(SMALLEST - size, size % 2)


def _av():
    try:
        import av
    except ImportError as error:
        raise CertbenchError(
            "video corruptions need PyAV, which is not installed",
            where="3D corruptions",
            remedy="pip install av, or leave h265_crf, h265_abr and bit_error out",
        ) from error
    missing = {"libx264", "libx265"} - av.codecs_available
    if missing:
        raise CertbenchError(
            f"this PyAV lacks {', '.join(sorted(missing))}",
            where="3D corruptions",
            remedy="install the wheel from PyPI (pip install av)",
        )
    av.logging.set_level(av.logging.PANIC)
    return av


def _encode(images: list[np.ndarray], codec: str, options: dict, rate: int | None = None) -> bytes:
    av = _av()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.codec_context.thread_count = 1
        if rate is not None:
            stream.codec_context.bit_rate = rate
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _decode(clip: bytes) -> list[np.ndarray]:
    av = _av()
    with av.open(io.BytesIO(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _bit_rate(clip: bytes) -> int:
    """Bit rate of the whole file."""
    return int(len(clip) * 8 * RATE / (2 * FRAMES - 1))


def _damaged(clip: bytes, amount: int) -> np.ndarray:
    """Last frame that decodes after bytes were overwritten in the compressed stream."""
    av = _av()
    from av.bitstream import BitStreamFilterContext

    last = None
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.video[0]
        noise = BitStreamFilterContext(f"noise=amount={amount}", stream)
        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata = stream.codec_context.extradata
        decoder.thread_count = 1
        packets = [out for packet in container.demux(stream) for out in noise.filter(packet)]
        for packet in [*packets, None]:
            try:
                decoded = decoder.decode(packet)
            except av.error.FFmpegError:
                # A packet too damaged to decode is lost, as it is to a player.
                continue
            for frame in decoded:
                last = frame.to_ndarray(format="rgb24")
    if last is None:
        raise CertbenchError("no frame survived the bit errors", where="bit_error")
    return last
